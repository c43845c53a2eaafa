"""`scvae diagnose`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console
from scvae_cli.cli.shell_line import shell_line
from scvae_cli.importing import importing

if TYPE_CHECKING:
    from scvae_cli.tools.diagnose.diagnosis import Diagnosis


def diagnose(
    data: o.Data,
    model: o.ModelFolder = None,
    samples: Annotated[int, typer.Option(help="Importance samples a cell.")] = 200,
    refine: Annotated[int, typer.Option(help="Steps of refinement that the encoder is compared with.")] = 100,
    cells: Annotated[int, typer.Option(help="Most cells that gaps and calibration are measured on.")] = 1000,
    quick: Annotated[
        bool, typer.Option("--quick", help="Ask this model alone: no baselines, no other seeds, no training.")
    ] = False,
    trainings: Annotated[
        int, typer.Option(help="Trainings with different seeds to compare, this model among them.")
    ] = 3,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    layer: o.Layer = None,
    allow_missing_genes: o.AllowMissingGenes = False,
    drop_empty: o.DropEmpty = False,
    output: o.Output = None,
    plot: o.Plot = None,
    key_added: o.KeyAdded = "scvae",
    force: o.Force = False,
    device: o.Device = "auto",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say how healthy a model is: a page of verdicts, each with its number and what to do.

    Is the latent space used, is the prior where the cells are, does the encoder place cells as well as can be, does the
    likelihood make their zeros and variances, do distances mean anything? Measured on held-out cells. Then, unless
    --quick, the same is trained again: with a linear decoder and on thinned counts, to see whether the VAE is worth it
    beside that, PCA and a mean model, and with other seeds, to see what they agree on. Numbers go to
    uns["scvae"]["diagnosis"].
    """
    with importing():
        from scvae_cli.data.slots import DEFAULT_KEY, SlotNames
        from scvae_cli.errors import ConfigError
        from scvae_cli.session import Session
        from scvae_cli.tools.diagnose.diagnosis import DiagnosisOptions
        from scvae_cli.tools.diagnose.diagnosis import diagnose as judge

    console = Console(json=json, quiet=quiet)
    if not quick and trainings < 2:
        raise ConfigError(f"--trainings is {trainings}", "it takes 2 or more, the model itself among them")
    names = SlotNames(key_added=key_added)
    options = DiagnosisOptions(n_samples=samples, n_steps=refine, max_cells=cells, seed=seed)
    if plot is not None:
        from scvae_cli.report.figure_file import check_figure_file
        from scvae_cli.tools.diagnose.figure import draw_diagnosis

        check_figure_file(plot, force=force)
    folder = o.model_folder(model, data)
    session = Session.open(
        data,
        folder,
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
        needs_batch=True,
    )
    session.check_destination(names.written_by("diagnose"), names=names, output=output, force=force)
    result, worth, stability = judge(session.model, session.counts, options), None, None
    if not quick:
        from scvae_cli.tools.diagnose.trained_verdicts import with_studies

        result, worth, stability = with_studies(
            result, session.model, session.counts, n_trainings=trainings, say=console.info
        )
    told = asdict(options) | {"quick": quick, "trainings": trainings}
    slots = session.write(result.slots(names), names=names, run="diagnose", options=told, output=output, force=force)
    if plot is not None:
        draw_diagnosis(result, plot)
    values = {
        "output": str(output or data),
        **_values(result),
        "worth": None if worth is None else asdict(worth),
        "stability": None if stability is None else asdict(stability),
        "missing_genes": len(session.missing_genes),
        "plot": None if plot is None else str(plot),
        "slots": slots,
    }
    console.result(values, _text(result, values))
    # An output is an .h5ad that takes results back, whatever DATA is; no model lies beside it.
    following = shell_line(
        "embed",
        output or data,
        m=model if output is None else folder,
        refine=100,
        layer=layer,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
        key_added=None if key_added == DEFAULT_KEY else key_added,
    )
    console.next_step(following)


def _values(result: Diagnosis) -> dict[str, Any]:
    shape, gaps, distortion = result.shape, result.gaps.values(), result.distortion.values()
    pair = shape.most_correlated
    return {
        "n_cells": result.n_cells,
        "n_judged": result.n_judged,
        "heldout": result.heldout,
        "beta": result.beta,
        "level": result.level,
        "verdicts": [verdict.values() for verdict in result.verdicts],
        "n_latent": len(result.usage.kl_k),
        "active_units": result.usage.n_active,
        "kl_to_prior": shape.kl_to_prior,
        "mutual_information": shape.mutual_information,
        "total_correlation": shape.total_correlation,
        "correlation": shape.correlation,
        "correlated_axes": None if pair is None else [axis + 1 for axis in pair],
        "holes": shape.holes,
        "gaps": gaps,
        "zeros": None if result.check.zeros is None else _genes(result.check.zeros.values(result.check.genes)),
        "variances": _genes(result.check.variances.values(result.check.genes)),
        "condition": distortion["condition"],
        "active_condition": distortion.get("active_condition"),
        "rank_correlation": distortion.get("rank_correlation"),
    }


def _genes(values: dict[str, Any]) -> dict[str, Any]:
    told = {key: values[key] for key in ("outside", "error", "error_expected", "median_ratio", "judged")}
    worst = zip(values["worst_genes"], values["worst_scores"], strict=True)
    return told | {"worst": [{"gene": gene, "score": float(score)} for gene, score in worst]}


def _text(result: Diagnosis, values: dict[str, Any]) -> str:
    from scvae_cli.tools.diagnose.verdicts import page

    which = "held-out cells" if result.heldout else "cells, held out or not (the data has too few held-out ones),"
    lines = [f"on {result.n_judged:,} {which} of {result.n_cells:,}", "", page(result.verdicts), ""]
    if values["plot"]:
        lines.append(f"→ {values['plot']}")
    lines.append(f"→ {', '.join(values['slots'])} of {values['output']}")
    return "\n".join(lines)
