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
from scvae_cli.shared_options import Drawing, Reading, Writing, batch_as_option, library_option
from scvae_cli.verb import Verb

OPTIMIZATION = "Optimization"
_LISTED_GENES = 3
_GENES = "genes: A,B,C or @FILE, one gene per line"


@dataclass(frozen=True, kw_only=True)
class OptimizeOptions(Reading, Drawing, Writing):
    """Options that say which genes change along a trajectory, where the trajectory starts, and how far it goes."""

    toward: tuple[str, ...] | Callable[..., Any] = option(
        (),
        help="Genes to increase: A,B,C or @FILE.",
        python_help="Genes to increase, or a torch function that maps decoded values (cells × genes) to one score "
        "per cell.",
        parse=parse_genes,
        metavar="GENES",
        takes=_GENES,
    )
    away: tuple[str, ...] = option(
        (),
        help="Genes to decrease: A,B,C or @FILE.",
        python_help="Genes to decrease.",
        parse=parse_genes,
        metavar="GENES",
        takes=_GENES,
    )
    groupby: str | None = option(None, help="Column of obs that names the groups.")
    group: str | None = option(None, help="Group at which the trajectory starts.", label=True)
    from_cell: str | None = option(None, help="Cell at which the trajectory starts, instead of a group.", metavar="ID")
    name: str | None = option(None, help="Name of the result.", shown_default="toward_GENE")
    n_steps: int = option(
        50, flags=("--steps",), help="Number of steps along the trajectory, both ends included.", least=2
    )
    within: float = option(
        0.9,
        help="Stay in the densest region of latent space that contains this fraction of the held-out cells.",
        panel=OPTIMIZATION,
        above=0,
        most=OFF_MANIFOLD,
        takes=f"a fraction above 0, up to {OFF_MANIFOLD}; --unconstrained allows any region",
    )
    unconstrained: bool = option(False, help="Allow any region, even without cells.", panel=OPTIMIZATION)
    max_length: float | None = option(
        None,
        help="Maximum length of the trajectory, in standard deviations of a count, or of the noise of real numbers.",
        panel=OPTIMIZATION,
        above=0,
        shown_default="five times the distance from the start to the farthest cell",
    )
    n_starts: int = option(
        8,
        flags=("--starts",),
        help="Number of starting positions to try in the group. More than one is tried only if the first trajectory "
        "ends with a lower score than the best cell. With 1, the score increases at every step.",
        panel=OPTIMIZATION,
        least=1,
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1, panel=OPTIMIZATION)
    library: str | float = library_option("median")
    batch_as: str = batch_as_option()
    path_out: Path | None = option(
        None, help="Also write the steps as an .h5ad file, one row per step.", panel=OUTPUT, metavar="FILE",
        in_record=False,
    )  # fmt: skip

    def check(self) -> None:
        """Require a gene or a function, exactly one start, and that no gene is both to increase and to decrease."""
        for side in ("toward", "away"):
            genes = getattr(self, side)
            if not callable(genes):
                object.__setattr__(self, side, tuple(dict.fromkeys(gene for gene in genes if gene)))
        if callable(self.toward):
            if self.away:
                raise ConfigError(
                    "--away cannot be combined with a function", "write a function that decreases with these genes"
                )
        elif not self.toward and not self.away:
            raise ConfigError(
                "no gene to increase or to decrease", "--toward and --away take A,B,C or @FILE, one gene per line"
            )
        elif both := [gene for gene in self.toward if gene in self.away]:
            raise ConfigError(f"{both[0]!r} is in both --toward and --away", "leave it out of one of them")
        if self.from_cell is not None and self.group is not None:
            raise ConfigError("the start was given twice", "use one of --group and --from-cell")
        if self.from_cell is None and (self.group is None or self.groupby is None):
            raise ConfigError(
                "an optimization needs --groupby with --group (or --from-cell)",
                "scvae check DATA lists the columns that group cells",
            )

    @property
    def increased(self) -> tuple[str, ...]:
        """Names of the genes to increase, or the name of the function."""
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
        """Name of the result: the option `name`, or a name made from the first gene if this option is not given.

        >>> OptimizeOptions(toward=("Klf1", "Car1"), from_cell="A").result_name
        'toward_Klf1'
        """
        return self.name or (f"toward_{self.increased[0]}" if self.increased else f"away_{self.away[0]}")

    def record(self) -> dict[str, Any]:
        """Return the options as they are recorded, with the name of a function in place of the function."""
        return super().record() | {"name": self.result_name, "toward": self.increased}


def _listed(genes: tuple[str, ...]) -> str:
    more = f" and {len(genes) - _LISTED_GENES} more" if len(genes) > _LISTED_GENES else ""
    return ", ".join(genes[:_LISTED_GENES]) + more


OPTIMIZE = Verb(
    name="optimize",
    panel="Trajectories",
    options=OptimizeOptions,
    home="scvae_cli.tools.optimize.question:Optimize",
    about="""Find a trajectory through regions with cells along which some genes increase and others decrease.

    The score is the mean standardized expression of the genes to increase minus the mean of the genes to decrease.
    Writes the trajectory in the same way as interpolate, with the score of every step. Prints how the score at the
    end of the trajectory compares with the scores of the cells. Warns about steps that score higher than every cell,
    about steps where no cells were observed, and if the trajectory ends at a local maximum.""",
    example="scvae optimize data.h5ad --toward Klf1,Car1 --away Irf8 --groupby cell_type --group MEP",
)
