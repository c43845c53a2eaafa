"""`scvae simulate`: counts of a branching differentiation whose truth is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scvae_cli.cli.console import Console, told
from scvae_cli.cli.shell_line import shell_line
from scvae_cli.importing import importing


def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT.h5ad", help="The file to write.", show_default=False)],
    cells: Annotated[int, typer.Option(help="Number of cells.")] = 5000,
    genes: Annotated[int, typer.Option(help="Number of genes.")] = 2000,
    branches: Annotated[int, typer.Option(help="Branches after the trunk; 1 gives a straight line.")] = 2,
    batches: Annotated[int, typer.Option(help="Batches, each with its own shift of every gene.")] = 1,
    depth: Annotated[float, typer.Option(help="Median counts a cell.")] = 1500.0,
    zero_inflation: Annotated[float, typer.Option(help="Mean probability that a count is lost to zero.")] = 0.02,
    true_mean: Annotated[
        bool, typer.Option("--true-mean", help="Also write layers/true_mean, dense: 4 bytes a cell and gene.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same file.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no hints.")] = False,
) -> None:
    """Simulate raw counts of cells that differentiate along a tree, with the truth beside them.

    The truth is in obs true_*, var true_* and varm true_rho_BRANCH (expression along a branch).
    Cells are grouped by obs cell_type and obs batch.
    """
    with importing():
        from scvae_cli.data.h5ad_create import create_h5ad
        from scvae_cli.data.simulation import SimulationConfig
        from scvae_cli.data.simulation import simulate as set_up

    console = Console(json=json, quiet=quiet)
    config = SimulationConfig(
        n_cells=cells,
        n_genes=genes,
        n_branches=branches,
        n_batches=batches,
        depth=depth,
        zero_inflation=zero_inflation,
        seed=seed,
    )
    simulation = set_up(config)
    with console.progress("Simulating", total=cells * (2 if true_mean else 1)) as advance:
        create_h5ad(
            out,
            obs=simulation.obs,
            var=simulation.var,
            uns=simulation.uns,
            varm=simulation.varm,
            blocks=told(simulation.blocks(), advance),
            layer_blocks={"true_mean": told(simulation.true_mean_blocks(), advance)} if true_mean else None,
            force=force,
        )
    facts = {"path": str(out), "n_cells": cells, "n_genes": genes, "n_branches": branches, "n_batches": batches}
    shape = f"{cells:,} cells × {genes:,} genes, branches: {branches}, batches: {batches}"
    console.result(facts | {"seed": seed, "true_mean": true_mean}, f"Wrote {out}: {shape}")
    console.next_step(shell_line("train", out, batch_key="batch" if batches > 1 else None))
