"""Implementation of `simulate` for the command line."""

from __future__ import annotations

from typing import Any

from scvae_cli.amounts import amount
from scvae_cli.data.h5ad_create import create_h5ad
from scvae_cli.data.simulation import simulate as set_up
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.options import declarations
from scvae_cli.path_names import refuse_long_name
from scvae_cli.progress import counted
from scvae_cli.question import Outcome, Report, Shell
from scvae_cli.shell_line import shell_line
from scvae_cli.tools.simulate.options import SimulateOptions
from scvae_cli.verb import Request


def simulate(request: Request, shell: Shell) -> Outcome:
    """Write simulated cells to a new file.

    Raises
    ------
    DataError
        If the file exists and must not be replaced, or if it cannot be written.
    """
    options: SimulateOptions = request.options
    refuse_long_name(request.data)
    simulation = set_up(SimulationConfig(**{d.name: getattr(options, d.name) for d in declarations(SimulationConfig)}))
    with shell.progress("Simulating", options.n_cells * (2 if options.true_mean else 1)) as advance:
        means = {"true_mean": counted(simulation.true_mean_blocks(), advance)} if options.true_mean else None
        create_h5ad(
            request.data,
            obs=simulation.obs,
            var=simulation.var,
            uns=simulation.uns,
            varm=simulation.varm,
            blocks=counted(simulation.blocks(), advance),
            layer_blocks=means,
            force=options.force,
        )
    return Outcome(value=None, report=lambda: _report(request))


def _report(request: Request) -> Report:
    options: SimulateOptions = request.options
    facts: dict[str, Any] = {
        "path": str(request.data),
        "n_cells": options.n_cells,
        "n_genes": options.n_genes,
        "n_branches": options.n_branches,
        "n_batches": options.n_batches,
        "seed": options.seed,
        "true_mean": options.true_mean,
    }
    shape = f"{amount(options.n_cells, 'cell')} × {amount(options.n_genes, 'gene')}"
    return Report(
        facts=facts,
        text=f"wrote {request.data}: {shape}, branches: {options.n_branches}, batches: {options.n_batches}",
        next_step=shell_line("train", request.data, batch_key="batch" if options.n_batches > 1 else None),
    )
