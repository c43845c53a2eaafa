"""`scvae sample`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console, told
from scvae_cli.importing import importing

if TYPE_CHECKING:
    from scvae_cli.tools.sample.agreement import Agreement
    from scvae_cli.tools.sample.prototype import Prototype
    from scvae_cli.tools.sample.result import Sampled

DRAW = "Drawing"
_SHOWN_GENES = 20


def sample(
    data: o.Data,
    cells: Annotated[int | None, typer.Option("--cells", "-n", help="Number of new cells.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The new .h5ad.", show_default=False, rich_help_panel=o.OUTPUT),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="prior (N(0, I)), density (where the cells are), or auto: what held-out cells are likelier under.",
            rich_help_panel=DRAW,
        ),
    ] = "auto",
    groupby: Annotated[
        str | None, typer.Option(help="Or draw from a group's cells: column of obs.", rich_help_panel=DRAW)
    ] = None,
    group: Annotated[str | None, typer.Option(help="And the group in it.", rich_help_panel=DRAW)] = None,
    prototype: Annotated[
        bool, typer.Option("--prototype", help="Or decode z = 0, a single cell.", rich_help_panel=DRAW)
    ] = False,
    avoid_holes: Annotated[
        bool,
        typer.Option("--avoid-holes", help="Reject draws with an off-manifold score above 0.95.", rich_help_panel=DRAW),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of everything drawn.", rich_help_panel=DRAW)] = 0,
    model: o.ModelFolder = None,
    library: Annotated[
        str | None,
        typer.Option(
            help="Depth: observed (drawn from the cells'), median, or a number of counts.",
            show_default="observed; for the prototype, median",
            rich_help_panel=o.DECODE,
        ),
    ] = None,
    batch_as: Annotated[
        str | None,
        typer.Option(
            help="Batch to decode in: a category, or drawn (by their share of the training cells).",
            show_default="drawn; for the prototype, average",
            rich_help_panel=o.DECODE,
        ),
    ] = None,
    mean: Annotated[
        bool, typer.Option("--mean", help="Write what drawn counts average to.", rich_help_panel=o.DECODE)
    ] = False,
    layer: o.Layer = None,
    allow_missing_genes: o.AllowMissingGenes = False,
    drop_empty: o.DropEmpty = False,
    plot: o.Plot = None,
    key_added: o.KeyAdded = "scvae",
    force: o.Force = False,
    device: o.Device = "auto",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw new cells: counts from the likelihood at latent positions from the prior, the cells' density or a group.

    Writes them to a file of their own, with obs["scvae_off_manifold"] (above 0.95 a draw fell in a hole) and
    obs["scvae_library"], and prints how the genes' means, variances and zeros agree with real cells, beside real cells
    among themselves.
    """
    with importing():
        from scvae_cli.api_sample import SampleRequest
        from scvae_cli.data.new_cells import check_output
        from scvae_cli.data.slots import SlotNames
        from scvae_cli.session import Session
        from scvae_cli.tools.sample.agreement import Comparison
        from scvae_cli.tools.sample.result import Sampled

    console = Console(json=json, quiet=quiet)
    names = SlotNames(key_added=key_added)
    request = SampleRequest(
        n=cells,
        source=source,
        groupby=groupby,
        group=group,
        library=library,
        batch_as=batch_as,
        mean=mean,
        prototype=prototype,
        avoid_holes=avoid_holes,
        seed=seed,
    )
    target = check_output(output, data, force=force)
    _check_plot(plot, counts_are_drawn=not (mean or prototype), force=force)
    session = Session.open(
        data,
        o.model_folder(model, data),
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
    )
    result = request.answer(session)
    made = request.new_cells(session, result, names)
    comparison = None
    if isinstance(result, Sampled) and not mean:
        real = request.real_cells(session)
        comparison = Comparison(real.matrix, result.options.n, seed=seed, of_counts=session.model.of_counts)
        made = replace(made, blocks=comparison.watch(made.blocks))
    with console.progress("Sampling", total=len(made.cell_names)) as advance:
        replace(made, blocks=told(made.blocks, advance)).write(target, force=force)
    if plot is not None:
        from scvae_cli.tools.sample.figure import draw_sample

        assert isinstance(result, Sampled)
        assert comparison is not None, "a picture needs drawn counts"
        draw_sample(session, request.real_cells(session), result, comparison, plot)
    # At another depth than the cells' the genes must differ.
    agreement = comparison.agreement() if comparison is not None and library in (None, "observed") else None
    values = {
        "output": str(target),
        "n_cells": len(made.cell_names),
        "n_genes": len(result.genes),
        **_facts(result),
        "groupby": groupby,
        "group": group,
        "batch_as": _batch(result),
        "mean": mean or prototype,
        "agreement": None if agreement is None else agreement.as_dict(),
        "missing_genes": len(session.missing_genes),
        "plot": None if plot is None else str(plot),
        "slots": [slot.path for slot in result.slots(names)],
    }
    console.result(values, "\n".join([*_text(result, values), *_verdict(agreement), *_places(values)]))
    if isinstance(result, Sampled) and result.in_holes > 0.5:
        console.warn(
            f"{result.in_holes:.0%} of the cells lie in holes, where the decoder is guessing: "
            "--avoid-holes leaves such draws out"
        )
    console.next_step(f'anndata.concat({{"real": adata, "sampled": anndata.read_h5ad("{target}")}}, label="origin")')


def _check_plot(plot: Path | None, *, counts_are_drawn: bool, force: bool) -> None:
    if plot is None:
        return
    from scvae_cli.errors import ConfigError
    from scvae_cli.report.figure_file import check_figure_file

    if not counts_are_drawn:
        raise ConfigError("--plot compares drawn counts with the cells'", "leave out --mean or --prototype, or --plot")
    check_figure_file(plot, force=force)


def _facts(result: Sampled | Prototype) -> dict[str, Any]:
    """What differs between cells that were drawn and the prototype; the keys are the same."""
    from scvae_cli.tools.sample.result import Sampled

    if not isinstance(result, Sampled):
        return {
            "source": "prototype",
            "prior_nats": None,
            "density_nats": None,
            "n_compared": None,
            "off_manifold": result.off_manifold,
            "rejected": 0.0,
            "genes": _gene_table(result),
        }
    scores = result.scores
    return {
        "source": result.source,
        "prior_nats": None if scores is None else scores.prior,
        "density_nats": None if scores is None else scores.density,
        "n_compared": None if scores is None else scores.n_cells,
        "off_manifold": result.in_holes,
        "rejected": result.rejected,
        "genes": None,
    }


def _batch(result: Sampled | Prototype) -> str | None:
    from scvae_cli.tools.sample.result import Sampled

    if not isinstance(result, Sampled):
        return result.batch
    return None if result.batch_n is None else result.options.batch_as


def _gene_table(result: Prototype) -> list[dict[str, Any]]:
    return [
        {
            "gene": result.genes[g],
            "prototype": float(result.mean_g[g]),
            "average": float(result.average_g[g]),
            "change": float(result.change_g[g]),
        }
        for g in result.top_genes(_SHOWN_GENES)
    ]


def _text(result: Sampled | Prototype, values: dict[str, Any]) -> list[str]:
    from scvae_cli.tools.sample.result import Sampled

    if not isinstance(result, Sampled):
        of_counts = result.library is not None
        depth = f", at {result.library:,.0f} counts" if of_counts else ""
        lines = [f"the prototype, z = 0{depth}; off-manifold score {result.off_manifold:.2f}"]
        lines.append(f"{'gene':<16}{'prototype':>11}{'average':>10}{'change':>9}")
        for row in values["genes"]:
            lines.append(f"{row['gene']:<16}{row['prototype']:>11.3g}{row['average']:>10.3g}{row['change']:>+9.2f}")
        expected, unit = "counts" if of_counts else "values", o.noise_unit(of_counts=of_counts)
        return [*lines, f"(expected {expected}, beside the average training cell; change in {unit})"]
    what = {"prior": "the prior", "density": "the cells' density", "group": f"the cells of {values['group']}"}
    lines = [f"{values['n_cells']:,} cells × {values['n_genes']:,} genes drawn from {what[result.source]}"]
    if (scores := result.scores) is not None:
        asked = f"{scores.n_cells:,} {'held-out cells' if scores.heldout else 'cells, held out or not,'}"
        other = "prior" if scores.better == "density" else "density"
        lines.append(f"{asked} are {scores.gain:.2f} nats a cell likelier under the {scores.better} than the {other}")
    lines.append(f"in holes (off-manifold score above 0.95): {result.in_holes:.1%}, of held-out cells 5%")
    if result.options.avoid_holes:
        lines[-1] = f"in holes: {result.rejected:.1%} of {result.n_proposed:,} draws, which were rejected"
    return lines


def _verdict(agreement: Agreement | None) -> list[str]:
    if agreement is None:
        return []
    lines = [f"{f'against {agreement.n_real:,} real cells':<34}{'sampled':>10}{'real':>10}"]
    real_numbers = agreement.real.zero_fraction is None
    for field, label in (
        ("mean", "gene means, standard deviations" if real_numbers else "gene means, log2 ratio"),
        ("variance", "gene variances, log2 ratio"),
        ("zero_fraction", "zero fractions, difference"),
    ):
        if field == "zero_fraction" and real_numbers:
            continue
        both = (getattr(part, field) for part in (agreement.samples, agreement.real))
        lines.append(f"{label:<34}" + "".join(f"{value:>10.3f}" for value in both))
    return [*lines, f"(root mean squares over the genes, {agreement.n_cells:,} cells each)"]


def _places(values: dict[str, Any]) -> list[str]:
    return [f"→ {place}" for place in (values["plot"], values["output"]) if place]
