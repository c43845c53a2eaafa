"""`scvae score`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console
from scvae_cli.importing import importing


def score(
    data: o.Data,
    model: o.ModelFolder = None,
    samples: Annotated[int, typer.Option(min=1, help="Importance samples a cell.")] = 100,
    simulated: Annotated[int, typer.Option(min=100, help="Cells drawn from the model to compare with.")] = 4000,
    fdr: Annotated[float, typer.Option(help="False discovery rate at which anomalies are counted.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples and the simulated cells.")] = 0,
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
    """Write how likely each cell is, and whether it is unlike what the model would make.

    In nats: obs["scvae_elbo"], its parts obs["scvae_reconstruction"] and obs["scvae_kl"], the tighter
    obs["scvae_iwae"], and obs["scvae_iwae_density"], with cells where training cells are instead of where the prior has
    them. obs["scvae_anomaly_p"] is the share of cells simulated from the model, at that depth and in that batch, whose
    counts and place are together as odd or odder; obs["scvae_anomaly_p_adjusted"] bounds the false discovery rate.
    """
    with importing():
        from scvae_cli.data.slots import SlotNames
        from scvae_cli.errors import ConfigError
        from scvae_cli.session import Session
        from scvae_cli.tools.score import scoring

    console = Console(json=json, quiet=quiet)
    names = SlotNames(key_added=key_added)
    if not 0 < fdr < 1:
        raise ConfigError(f"--fdr is {fdr}", "it takes a share between 0 and 1, such as 0.05")
    if plot is not None:
        from scvae_cli.report.figure_file import check_figure_file
        from scvae_cli.tools.score.drawing import draw_scores

        check_figure_file(plot, force=force)
    session = Session.open(
        data,
        o.model_folder(model, data),
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
        needs_batch=True,
    )
    session.check_destination(names.written_by("score"), names=names, output=output, force=force)
    result = scoring.score(session.model, session.counts, n_samples=samples, n_simulated=simulated, seed=seed)
    told = {"n_samples": samples, "n_simulated": simulated, "seed": seed}
    slots = session.write(result.slots(names), names=names, run="score", options=told, output=output, force=force)
    if plot is not None:
        draw_scores(session, result, fdr, plot)
    values = {
        "output": str(output or data),
        "n_cells": len(result.elbo),
        "mean_elbo": float(result.elbo.mean()),
        "mean_iwae": float(result.iwae.mean()),
        "mean_iwae_density": float(result.iwae_density.mean()),
        "mean_reconstruction": float(result.reconstruction.mean()),
        "mean_kl": float(result.kl.mean()),
        "anomalies": int(result.anomalies(fdr).sum()),
        "fdr": fdr,
        "heldout_below_05": result.heldout_below_05,
        "n_heldout": int(result.heldout.sum()),
        "samples": samples,
        "simulated": len(result.simulated_score),
        "missing_genes": len(session.missing_genes),
        "plot": None if plot is None else str(plot),
        "slots": slots,
    }
    console.result(values, _text(values))
    console.next_step(f'the cells least like the model: adata.obs["{names.anomaly_score}"].nlargest(20)')


def _text(values: dict[str, Any]) -> str:
    lines = [
        f"mean ELBO {values['mean_elbo']:.2f} (reconstruction {values['mean_reconstruction']:.2f}, KL "
        f"{values['mean_kl']:.2f}), importance bound {values['mean_iwae']:.2f}, with places drawn from where cells are "
        f"{values['mean_iwae_density']:.2f} nats a cell over {values['n_cells']:,} cells",
        f"anomalies: {values['anomalies']:,} cells at a false discovery rate of {values['fdr']:g}, beside "
        f"{values['simulated']:,} simulated cells",
    ]
    if values["heldout_below_05"] is not None:
        lines.append(
            f"of {values['n_heldout']:,} held-out cells {values['heldout_below_05']:.1%} have p ≤ 0.05; it would be 5% "
            "if the cells were the model's own"
        )
    if values["plot"]:
        lines.append(f"→ {values['plot']}")
    lines.append(f"→ {', '.join(values['slots'])} of {values['output']}")
    return "\n".join(lines)
