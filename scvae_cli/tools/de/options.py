"""Options of `scvae de` and `scvae_cli.de`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scvae_cli.errors import ConfigError
from scvae_cli.options import OUTPUT, option
from scvae_cli.shared_options import Drawing, Reading, Writing
from scvae_cli.verb import Verb

# Smallest number of cells in a group for which the error of the mean can be estimated.
MIN_CELLS = 3

Centre = Literal["auto", "bulk", "none"]
Sort = Literal["bound", "probability", "change"]


def parse_within(flag: str, texts: str | Sequence[str]) -> dict[str, str]:
    """Read one or several texts KEY=VALUE as columns of obs and values; refuse a column that is given twice.

    >>> parse_within("--within", ["cell_type=B cells", "donor=2"])
    {'cell_type': 'B cells', 'donor': '2'}
    """
    within: dict[str, str] = {}
    for text in [texts] if isinstance(texts, str) else texts:
        key, is_there, value = text.partition("=")
        if not (key and is_there and value):
            raise ConfigError(f"{flag} is {text!r}", f'it takes KEY=VALUE, for example: {flag} "cell_type=B cells"')
        if key in within:
            raise ConfigError(f"{flag} is given twice for {key!r}", "a cell has only one value in this column")
        within[key] = value
    return within


@dataclass(frozen=True, kw_only=True)
class DeOptions(Reading, Drawing, Writing):
    """Options that say which groups are compared, and how."""

    groupby: str = option(help="Column of obs that names the groups.", takes="a column of obs")
    group: str = option(
        help="Group to compare with the reference.", takes="a group of the --groupby column", label=True
    )
    reference: str | None = option(
        None, help="Reference group.", label=True, shown_default="all other cells of the column"
    )
    within: Mapping[str, str] | None = option(
        None,
        help="Compare only cells that have this VALUE in the column KEY of obs. This option may be used several "
        "times, each time with another column.",
        metavar="KEY=VALUE",
        python_help="Compare only cells with certain values: a mapping from columns of obs to values.",
        takes="columns of obs, each with one value", parse=parse_within, repeated=True, label=True,
    )  # fmt: skip
    replicate_key: str | None = option(
        None,
        help="Column of obs with replicates, such as donors. With this option, differences between replicates of a "
        "group count as uncertainty. Each group needs at least two replicates; three or more are better.",
        takes="a column of obs",
        shown_default="cells are compared",
    )
    threshold: float = option(
        0.25,
        help="Absolute log2 ratio above which a gene counts as changed. With a threshold of 0, any change counts.",
        least=0,
    )
    fdr: float = option(
        0.05,
        help="Highest expected share of false discoveries among the genes that are called differentially expressed.",
        above=0,
        below=1,
    )
    centre: Centre = option(
        "auto",
        help="Kind of change to report. bulk: a gene's log2 ratio minus the common log2 ratio of most genes. none: the "
        "log2 ratio of a gene's share of all counts. auto: bulk if the log2 ratios of at least half of the genes are "
        "within 0.25 of the common log2 ratio, otherwise none.",
    )
    sort: Sort = option(
        "bound",
        help="Order of the genes. bound: by the smallest change in the 90% interval, which combines effect size and "
        "certainty. probability: the most certain change first. change: the largest change first. The order does not "
        "affect which genes are called.",
    )
    name: str | None = option(
        None,
        help="Name of the result. One file can contain several results with different names.",
        shown_default="none",
    )
    max_cells: int = option(
        5000, flags=("--cells",), help="Maximum number of cells per group. Larger groups are subsampled.",
        least=MIN_CELLS,
    )  # fmt: skip
    n_samples: int = option(
        10,
        flags=("--samples",),
        help="Number of posterior samples over which the expected counts of each cell are averaged.",
        least=1,
        most=10_000,
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1)
    table: Path | None = option(
        None, help="Also write all genes to a .csv file, in the order of --sort.", panel=OUTPUT,
        metavar="FILE", in_record=False,
    )  # fmt: skip

    @property
    def needs_batch(self) -> bool:
        """Always True, because groups are compared within each batch."""
        return True

    def check(self) -> None:
        """Raise a ConfigError if the group and the reference are the same."""
        if self.group == self.reference:
            raise compared_with_itself(self.group)


def compared_with_itself(group: str) -> ConfigError:
    """Return the error for a group that is compared with itself."""
    return ConfigError(f"{group!r} is compared with itself", "choose another --reference, or leave it out")


DE = Verb(
    name="de",
    panel="Comparisons",
    options=DeOptions,
    home="scvae_cli.tools.de.question:De",
    about="""Test which genes differ in expression between two groups of cells.

    All genes of the data are tested, also those that the model lacks. The results are written to
    uns["rank_genes_groups_scvae"], or with --name NAME to uns["rank_genes_groups_scvae_NAME"]. For every gene, the
    results include the log2 ratio of the two groups and the posterior probability that the absolute log2 ratio exceeds
    --threshold. The results also include, for every gene, the expected false discovery rate if this gene and all more
    certain genes are called. scanpy's functions sc.get.rank_genes_groups_df and sc.pl.rank_genes_groups read the
    results with key="rank_genes_groups_scvae". The method has no p-values: scanpy's field pvals is NaN, and pvals_adj
    is the expected false discovery rate.

    Without --replicate-key, cells are treated as independent, and differences between replicates, such as donors, count
    as differences between the groups.""",
    example='scvae de data.h5ad --groupby condition --group stim --reference ctrl --within "cell_type=B cells"',
)
