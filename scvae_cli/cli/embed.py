"""`scvae embed`."""

from __future__ import annotations

from typing import Annotated

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console
from scvae_cli.importing import importing


def embed(
    data: o.Data,
    model: o.ModelFolder = None,
    axes: Annotated[
        str,
        typer.Option(
            help="canonical: axes that explain most of the expression come first, alike in two trainings; training: as "
            "the networks have them."
        ),
    ] = "canonical",
    refine: Annotated[
        int,
        typer.Option(
            help="Steps by gradient from the encoder's posterior towards each cell's best one; 100 is plenty. Needs "
            "the batches that the model knows."
        ),
    ] = 0,
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
    """Place every cell in latent space: obsm["X_scvae"], with variances in obsm["scvae_latent_var"].

    Works on new data. The encoder does not see the batch, so cells of new batches embed too. --refine improves on the
    encoder cell by cell.
    """
    with importing():
        from scvae_cli.data.slots import SlotNames
        from scvae_cli.errors import ConfigError
        from scvae_cli.latent import posteriors as embedding
        from scvae_cli.session import Session

    console = Console(json=json, quiet=quiet)
    names = SlotNames(key_added=key_added)
    if refine < 0:
        raise ConfigError(f"--refine is {refine}", "it takes a number of steps, 0 or more; 100 is plenty")
    session = Session.open(
        data,
        o.model_folder(model, data),
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
        needs_batch=refine > 0,
    )
    session.check_destination(names.written_by("embed"), names=names, output=output, force=force)
    result = embedding.embed(session.model, session.counts, axes=axes, refine=refine)
    told = {"axes": axes, "refine": refine}
    slots = session.write(result.slots(names), names=names, run="embed", options=told, output=output, force=force)
    n_cells, n_latent = result.mean_nk.shape
    values = {
        "output": str(output or data),
        "n_cells": n_cells,
        "n_latent": n_latent,
        "refined_gain": result.gain,
        "missing_genes": len(session.missing_genes),
        "slots": slots,
    }
    text = f"{n_cells:,} cells in {n_latent} latent dimensions → {', '.join(slots)} of {output or data}"
    if result.gain is not None:
        text = f"{refine} steps raised the ELBO by {result.gain:.2f} nats a cell\n{text}"
    console.result(values, text)
    if axes == "canonical" and (ties := session.model.axes.near_ties()):
        named = ", ".join(f"{axis + 1} and {axis + 2}" for axis in ties)
        console.info(f"axes {named} are nearly as strong: they may change places, or mix, in another training")
    console.next_step(f'sc.pp.neighbors(adata, use_rep="{names.embedding}")')
