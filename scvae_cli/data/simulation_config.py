"""Configuration of a simulation. The module imports no large libraries, because every command imports the module."""

from __future__ import annotations

from dataclasses import dataclass

from scvae_cli.options import Options, option

# The defaults were measured in six public UMI data sets, which `simulation.py` lists.
DEFAULT_DEPTH = 1500.0  # the two data sets with 2,000 to 3,000 genes have medians of 900 and 1,700
# Fraction of zeros in excess of a negative binomial: 0.00 for the median gene, and 0.03 to 0.10 at the 95th percentile
# of genes. The fraction of a simulated gene is drawn from Beta(1, 49), whose 95th percentile is 0.06.
DEFAULT_ZERO_INFLATION = 0.02


@dataclass(frozen=True, kw_only=True)
class SimulationConfig(Options):
    """Options of a simulation of cells that differentiate along a tree.

    The parameters of the genes do not depend on the number of cells.
    """

    n_cells: int = option(5000, flags=("--cells",), help="Number of cells to simulate.", least=1, most=10**9)
    n_genes: int = option(2000, flags=("--genes",), help="Number of genes to simulate.", least=10, most=10**6)
    n_branches: int = option(
        2,
        flags=("--branches",),
        help="Number of branches after the trunk. With 1 branch, the tree is a single line.",
        least=1,
        most=20,
    )
    n_batches: int = option(
        1, flags=("--batches",), help="Number of batches, each with its own effect on every gene.", least=1, most=1000
    )
    depth: float = option(
        DEFAULT_DEPTH, help="Median library size before zero inflation, in counts.", above=0, most=10**9
    )
    zero_inflation: float = option(
        DEFAULT_ZERO_INFLATION,
        help="Probability that a count is replaced by zero, averaged over genes. With 0, counts are negative binomial.",
        least=0,
        most=0.9,
    )
    batch_sd: float = option(
        0.3,
        help="Standard deviation of the effects of a batch on the natural logarithm of gene expression.",
        least=0,
        most=3,
        on_command_line=False,
    )
    seed: int = option(0, help="Random seed; the same seed gives the same file.", least=0)

    @property
    def branches(self) -> list[str]:
        """Names of the branches after the trunk.

        The name of a branch is also the name of the lineage from pseudotime 0 to the tip of the branch.
        """
        return [f"branch_{k + 1}" for k in range(self.n_branches)]
