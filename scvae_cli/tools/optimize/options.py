"""Options of `scvae optimize` and `scvae_cli.optimize`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scvae_cli.errors import ConfigError
from scvae_cli.gene_list import parse_genes
from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.options import OUTPUT, option
from scvae_cli.shared_options import Drawing, Reading, Subset, Writing, batch_as_option, library_option
from scvae_cli.verb import Verb

OPTIMIZATION = "Optimization"
_LISTED_GENES = 3
_GENES = "genes: A,B,C or @FILE, one gene per line"


@dataclass(frozen=True, kw_only=True)
class OptimizeOptions(Reading, Subset, Drawing, Writing):
    """Options that say which genes change along a trajectory, where the trajectory starts, and how far it goes."""

    toward: tuple[str, ...] | Callable[..., Any] = option(
        (),
        help="Genes whose expression increases: A,B,C, or @FILE to read them from a text file with one gene per line.",
        python_help="Genes whose expression increases, or a torch function that maps decoded values (cells × genes) "
        "to one score per cell.",
        parse=parse_genes,
        metavar="GENES",
        takes=_GENES,
    )
    away: tuple[str, ...] = option(
        (),
        help="Genes whose expression decreases: A,B,C, or @FILE to read them from a text file with one gene per line.",
        python_help="Genes whose expression decreases.",
        parse=parse_genes,
        metavar="GENES",
        takes=_GENES,
    )
    groupby: str | None = option(None, help="Column of obs that names the groups.")
    group: str | None = option(None, help="Group at which the trajectory starts.", label=True)
    from_cell: str | None = option(None, help="Cell at which the trajectory starts, instead of a group.", metavar="ID")
    name: str | None = option(None, help="Name of the result.", shown_default="toward_GENE")
    n_steps: int = option(
        50, flags=("--steps",), help="Number of steps along the trajectory, both ends included.", least=2, most=10_000
    )
    within: float = option(
        0.9,
        help="The trajectory stays in the densest region of latent space that contains this fraction of the held-out "
        "cells.",
        panel=OPTIMIZATION,
        above=0,
        most=OFF_MANIFOLD,
        takes=f"a fraction above 0, up to {OFF_MANIFOLD}; --unconstrained allows any region",
    )
    unconstrained: bool = option(
        False,
        help="Allow the trajectory to pass through any region of latent space, even without cells.",
        panel=OPTIMIZATION,
    )
    max_length: float | None = option(
        None,
        help="Maximum length of the trajectory. One unit of length is the standard deviation of a single count around "
        "its expected value. In a model of real-valued data, one unit is the standard deviation of the noise.",
        panel=OPTIMIZATION,
        above=0,
        shown_default="five times the distance from the start to the farthest cell",
    )
    n_starts: int = option(
        8,
        flags=("--starts",),
        help="Number of cells of the group from which gradient ascent increases the score. The trajectory always "
        "starts at a typical cell of the group. If gradient ascent from another cell reaches a higher score, the "
        "trajectory leads through regions with cells to this score. With --starts 1, the score increases at every "
        "step.",
        panel=OPTIMIZATION,
        least=1,
        most=10_000,
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1, panel=OPTIMIZATION)
    library: str | float = library_option("median")
    batch_as: str = batch_as_option()
    path_out: Path | None = option(
        None, help="Also write the steps to an .h5ad file, one row per step.", panel=OUTPUT, metavar="FILE",
        in_record=False,
    )  # fmt: skip

    def check(self) -> None:
        """Check that `toward` or `away` is given, that no gene is in both of them, and that there is one start."""
        for side in ("toward", "away"):
            genes = getattr(self, side)
            if not callable(genes):
                object.__setattr__(self, side, tuple(dict.fromkeys(gene for gene in genes if gene)))
        if callable(self.toward):
            if self.away:
                raise ConfigError(
                    "--away cannot be combined with a function",
                    "write a function whose value decreases with the expression of the --away genes",
                )
        elif not self.toward and not self.away:
            raise ConfigError(
                "no gene to increase or to decrease", "--toward and --away take A,B,C or @FILE, one gene per line"
            )
        elif both := [gene for gene in self.toward if gene in self.away]:
            raise ConfigError(f"{both[0]!r} is in both --toward and --away", "remove the gene from one of the lists")
        if self.from_cell is not None and self.group is not None:
            raise ConfigError("the start was given twice", "use one of --group and --from-cell")
        if self.from_cell is None and (self.group is None or self.groupby is None):
            raise ConfigError(
                "an optimization needs --groupby with --group (or --from-cell)",
                "scvae check DATA lists the columns that group cells",
            )

    @property
    def increased(self) -> tuple[str, ...]:
        """Names of the genes to increase; if `toward` is a function, the name of the function."""
        if callable(self.toward):
            return (getattr(self.toward, "__name__", type(self.toward).__name__),)
        return self.toward

    @property
    def target(self) -> str:
        """The aim of the trajectory in a few words.

        >>> OptimizeOptions(toward=("Klf1", "Car1"), away=("Irf8",), from_cell="A").target
        'more Klf1, Car1, less Irf8'
        """
        sides = (("more", self.increased), ("less", self.away))
        return ", ".join(f"{word} {_listed(genes)}" for word, genes in sides if genes)

    @property
    def result_name(self) -> str:
        """Name of the result: the option `name`, or a name made from the first gene if no name is given.

        >>> OptimizeOptions(toward=("Klf1", "Car1"), from_cell="A").result_name
        'toward_Klf1'
        """
        return self.name or (f"toward_{self.increased[0]}" if self.increased else f"away_{self.away[0]}")

    def record(self) -> dict[str, Any]:
        """Return the options for the record of the run; a function is replaced by the name of the function."""
        return super().record() | {"name": self.result_name, "toward": self.increased}


def _listed(genes: tuple[str, ...]) -> str:
    more = f" and {len(genes) - _LISTED_GENES} more" if len(genes) > _LISTED_GENES else ""
    return ", ".join(genes[:_LISTED_GENES]) + more


OPTIMIZE = Verb(
    name="optimize",
    panel="Trajectories",
    options=OptimizeOptions,
    home="scvae_cli.tools.optimize.question:Optimize",
    about="""Find a trajectory along which the expression of some genes increases and that of others decreases.

    The trajectory starts at a typical cell of the group and stays in regions of latent space with cells. Along the
    trajectory, a score increases. If gradient ascent from other cells of the group reaches a higher score, the
    trajectory leads through regions with cells to the higher score. For the score, the expression of each gene is
    standardized over the cells. The score is the mean standardized expression of the genes of --toward, minus that of
    the genes of --away.

    The trajectory and the score of every step are written to the same slots as by scvae interpolate. The printed
    summary compares the score at the end of the trajectory with the scores of the cells. A warning names the steps
    whose score is higher than that of every cell. Another warning names the steps at which no cells were observed. A
    third warning says that the trajectory ends at a local maximum and more than one cell in a hundred has a higher
    score.""",
    example="scvae optimize data.h5ad --toward Klf1,Car1 --away Irf8 --groupby cell_type --group MEP",
)
