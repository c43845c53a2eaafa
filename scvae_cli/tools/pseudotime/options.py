"""Options of `scvae pseudotime` and `scvae_cli.pseudotime`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scvae_cli.errors import ConfigError
from scvae_cli.gene_list import parse_genes
from scvae_cli.options import OUTPUT, option
from scvae_cli.shared_options import Drawing, Reading, Subset, Writing
from scvae_cli.verb import Verb

# Branch of the cells that are not clearly on the way to one end.
UNCOMMITTED = "uncommitted"
# Largest number of genes in the figure.
MOST_GENES = 24

EndKind = Literal["extreme", "density", "centroid"]


@dataclass(frozen=True, kw_only=True)
class PseudotimeOptions(Reading, Subset, Drawing, Writing):
    """Options that say where the order of the cells begins, and where it may end."""

    groupby: str | None = option(None, help="Column of obs that names the groups.")
    root: str | None = option(None, help="Group at which pseudotime begins.", label=True)
    root_cell: str | None = option(None, help="Cell at which pseudotime begins, instead of a group.", metavar="ID")
    ends: tuple[str, ...] = option(
        (),
        flags=("--to",),
        help="Group at which a branch ends. This option may be used several times.",
        python_help="Groups at which the branches end.",
        metavar="GROUP",
        label=True,
    )
    endpoint: EndKind = option(
        "extreme",
        help="Cells that represent an end. extreme: the cells of the group that are farthest along the order. density: "
        "the cells of the group where the density of cells is highest. centroid: the cells nearest to the mean of the "
        "group.",
    )
    name: str | None = option(None, help="Name of the result.", shown_default="from_ROOT")
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1)
    genes: tuple[str, ...] = option(
        (),
        help="Genes for --plot: the figure also shows the mean of each gene along pseudotime. A,B,C, or @FILE with one "
        "gene per line.",
        python_help="Genes whose means along the order the figure also shows.",
        parse=parse_genes,
        metavar="GENES",
        panel=OUTPUT,
        in_record=False,
    )

    def check(self) -> None:
        """Require exactly one root, and ends that differ from the root and from each other."""
        if self.root is not None and self.root_cell is not None:
            raise ConfigError("the root was given twice", "use one of --root and --root-cell")
        if self.root is None and self.root_cell is None:
            raise ConfigError("pseudotime needs --root (or --root-cell)", "name the group or cell where it begins")
        if self.root is not None and self.groupby is None:
            raise ConfigError(
                "--root names a group, so --groupby is needed",
                "give the column of obs with the groups, or choose a single cell with --root-cell",
            )
        if self.ends and self.groupby is None:
            raise ConfigError("--to names groups, so --groupby is needed", "give the column of obs with the groups")
        named = [*self.ends] if self.root is None else [self.root, *self.ends]
        for group in named:
            if named.count(group) > 1:
                raise ConfigError(f"the group {group!r} was named twice", "--root and --to must name different groups")
        if self.genes and self.plot is None:
            raise ConfigError("--genes was given without --plot", "name the file of the figure with --plot")
        if len(self.genes) > MOST_GENES:
            raise ConfigError(f"--genes names {len(self.genes)} genes", f"a figure shows at most {MOST_GENES} genes")
        if UNCOMMITTED in self.ends:
            raise ConfigError(
                f"no group in --to may be called {UNCOMMITTED!r}: this is the branch of the cells without a clear fate",
                "give that group another name in obs",
            )


PSEUDOTIME = Verb(
    name="pseudotime",
    panel="Trajectories",
    options=PseudotimeOptions,
    home="scvae_cli.tools.pseudotime.question:OrderCells",
    about="""Order the cells by their distance from a root, and compute their fates.

    The order is measured in expression space, along paths from cell to neighboring cell. obs["scvae_pseudotime_NAME"]
    holds the order of the cells, from 0 to 1, and obs["scvae_distance_NAME"] holds the distance from the root.

    With --to, obsm["scvae_ends_NAME"] holds the probability that a cell develops into each group of --to. The
    probabilities of a cell sum to 1. obs["scvae_branch_NAME"] holds the most probable group, or "uncommitted" if no
    group has a probability of at least 0.5 and at least twice that of every other group.

    With --plot, a figure shows the cells colored by pseudotime and by branch (or group), and the means of --genes along
    the order toward each end.""",
    example='scvae pseudotime data.h5ad --groupby cell_type --root HSC --to Erythrocyte --to "CD14+ Monocyte"',
)
