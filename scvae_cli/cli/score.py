"""`scvae score`."""

from __future__ import annotations

from typing import Annotated

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console


def score(
    data: o.Data,
    model: o.ModelFolder = None,
    samples: Annotated[int, typer.Option(min=1, help="Importance samples a cell.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    layer: o.Layer = None,
    allow_missing_genes: o.AllowMissingGenes = False,
    drop_empty: o.DropEmpty = False,
    output: o.Output = None,
    key_added: o.KeyAdded = "scvae",
    force: o.Force = False,
    device: o.Device = "auto",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write how likely each cell is: obs["scvae_elbo"] and the tighter obs["scvae_iwae"], in nats."""
    from scvae_cli.data.slots import SlotNames
    from scvae_cli.latent import scoring
    from scvae_cli.session import Session

    console = Console(json=json, quiet=quiet)
    names = SlotNames(key_added=key_added)
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
    result = scoring.score(session.model, session.counts, n_samples=samples, seed=seed)
    told = {"n_samples": samples, "seed": seed}
    slots = session.write(result.slots(names), names=names, run="score", options=told, output=output, force=force)
    values = {
        "output": str(output or data),
        "n_cells": len(result.elbo),
        "mean_elbo": float(result.elbo.mean()),
        "mean_iwae": float(result.iwae.mean()),
        "samples": samples,
        "missing_genes": len(session.missing_genes),
        "slots": slots,
    }
    text = (
        f"mean ELBO {values['mean_elbo']:.2f}, importance bound {values['mean_iwae']:.2f} nats a cell over "
        f"{len(result.elbo):,} cells → {', '.join(slots)} of {output or data}"
    )
    console.result(values, text)
    console.next_step(f'the least likely cells: adata.obs["{names.iwae}"].nsmallest(20)')
