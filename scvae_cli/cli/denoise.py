"""`scvae denoise`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console, told
from scvae_cli.importing import importing


def denoise(
    data: o.Data,
    model: o.ModelFolder = None,
    estimate: Annotated[
        str,
        typer.Option(
            help="state: what cells in this state show on average; cell: this cell's own rate, its counts weighed in.",
            rich_help_panel=o.DECODE,
        ),
    ] = "state",
    samples: Annotated[
        int,
        typer.Option(min=0, help="Seeded posterior samples averaged; 0 decodes the mean.", rich_help_panel=o.DECODE),
    ] = 10,
    library: o.Library = "observed",
    genes: Annotated[
        str | None,
        typer.Option(help="Only these genes: A,B,C or @FILE.", show_default="all modelled", rich_help_panel=o.DECODE),
    ] = None,
    batch_as: Annotated[
        str,
        typer.Option(
            help="Batch to decode in: a category, average (over all, by their share of the training), or observed.",
            rich_help_panel=o.DECODE,
        ),
    ] = "average",
    with_zero_inflation: Annotated[
        bool, typer.Option("--with-zero-inflation", help="Count technical zeros in.", rich_help_panel=o.DECODE)
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of the posterior samples.", rich_help_panel=o.DECODE)] = 0,
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
    """Write the counts each cell would be expected to show: layers["scvae_denoised"].

    Averaged over seeded posterior samples, so the same command gives the same numbers. Genes outside the model are
    NaN, and var["scvae_modelled"] is False for them.
    """
    with importing():
        from scvae_cli.data.slots import SlotNames
        from scvae_cli.session import Session
        from scvae_cli.tools.denoise import denoising

    console = Console(json=json, quiet=quiet)
    names = SlotNames(key_added=key_added)
    options = denoising.DenoisingOptions(
        estimate=estimate,
        n_samples=samples,
        library=library,
        genes=None if genes is None else o.gene_list("--genes", genes),
        batch_as=batch_as,
        with_zero_inflation=with_zero_inflation,
        seed=seed,
    )
    session = Session.open(
        data,
        o.model_folder(model, data),
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
        needs_batch=options.needs_batch,
    )
    session.check_destination(names.written_by("denoise"), names=names, output=output, force=force)
    result = denoising.denoise(session.model, session.counts, session.store.gene_names, options)
    n_cells, n_genes = result.rows.shape
    console.info(f"writing {n_cells:,} × {n_genes:,} values, {result.n_bytes / 2**20:,.0f} MiB before compression")
    with console.progress("Denoising", total=n_cells) as advance:
        watched = replace(result, rows=replace(result.rows, blocks=told(result.rows.blocks, advance)))
        slots = session.write(
            watched.slots(names), names=names, run="denoise", options=asdict(options), output=output, force=force
        )
    n_modelled = int(result.modelled.sum())
    values = {
        "output": str(output or data),
        "n_cells": n_cells,
        "n_genes": n_genes,
        "n_genes_modelled": n_modelled,
        "n_bytes": result.n_bytes,
        "missing_genes": len(session.missing_genes),
        "slots": slots,
    }
    averaged = f"mean of {samples} posterior samples" if samples else "at the posterior mean"
    unit = "counts" if session.model.of_counts else "values"
    whose = "rates of the cells themselves" if estimate == "cell" else f"expected {unit}"
    what = f"{whose}, {n_cells:,} cells × {n_modelled:,} genes ({averaged})"
    console.result(values, f"{what} → {', '.join(slots)} of {output or data}")
    if n_modelled < n_genes:
        console.next_step(f'adata[:, adata.var["{names.modelled}"]] leaves out the genes that are not modelled')
    else:
        console.next_step(f'sc.pl.dotplot(adata, genes, groupby=..., layer="{names.denoised}")')
