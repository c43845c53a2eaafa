"""The options of `scvae simulate`."""

from __future__ import annotations

from dataclasses import dataclass

from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.options import OUTPUT, option
from scvae_cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class SimulateOptions(SimulationConfig):
    """The parameters of a simulation, and what is written to the file."""

    true_mean: bool = option(
        False,
        help="Also write the true mean of every count to layers/true_mean. The matrix of true means is dense, with 4 "
        "bytes per value.",
        panel=OUTPUT,
    )
    force: bool = option(False, help="Replace an existing file.", panel=OUTPUT)


SIMULATE = Verb(
    name="simulate",
    panel="Start",
    options=SimulateOptions,
    home="scvae_cli.tools.simulate.simulating:simulate",
    about="""Simulate raw counts of cells that differentiate along a tree, and write them with the true parameters.

    The columns of obs and var whose names begin with true_ hold the true parameters. varm["true_rho_BRANCH"] holds the
    true expression of every gene along a branch. obs["cell_type"] and obs["batch"] hold the cell type and the batch of
    every cell.""",
    example="scvae simulate tree.h5ad --cells 5000 --branches 3 --batches 2",
    argument="OUT",
    argument_help="The .h5ad file to write.",
    takes_model=False,
    in_python=False,
)
