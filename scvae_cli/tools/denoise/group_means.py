"""Compare the mean denoised counts and the mean raw counts of groups of cells.

The raw mean of a gene in a group is noisy, but it is unbiased and does not depend on the model. If the denoised mean
differs from the raw mean by more than the sampling error, the denoised counts of the gene are wrong in this group.

A residual is a raw count minus the denoised count. The standard error of the difference between the denoised and the
raw mean of a group is the standard error of the mean residual over the n cells of the group. If a group has no counts
of a gene, the residuals of this gene hardly vary, even if the expected counts are wrong. The variance of a count is
therefore assumed to be at least the expected count, as in a Poisson distribution. The decoder was fitted to the
compared cells, so denoised and raw means differ by less than the sampling error alone would imply. Agreement of
denoised and raw means is therefore weaker evidence than disagreement. Cells are treated as independent: variation
between samples or donors is not part of the error.

Letters in array shapes: n cells, g modeled genes, p groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scvae_cli.brief import brief

FDR = 0.05
# Smallest number of cells of a group that is compared. The mean counts of smaller groups are far from normally
# distributed.
LEAST_CELLS = 10
# Half-width of a 95% interval, in standard errors.
_HALF_WIDTH = 1.96


@dataclass(frozen=True, kw_only=True)
class GroupMeans:
    """Raw and denoised means of each gene in each group, and the standard errors of their differences.

    Parameters
    ----------
    groupby
        Column of obs that names the groups.
    groups, genes
        Names of p groups and of g genes.
    n_cells_p
        Number of cells in each group.
    raw_pg, denoised_pg, error_pg
        Means of raw and of denoised counts, and standard errors of their differences. All means and errors are in
        counts, at the library sizes at which the cells were decoded.
    """

    __repr__ = brief

    groupby: str
    groups: tuple[str, ...]
    genes: tuple[str, ...]
    n_cells_p: np.ndarray
    raw_pg: np.ndarray
    denoised_pg: np.ndarray
    error_pg: np.ndarray

    @cached_property
    def differs_pg(self) -> np.ndarray:
        """Mask of denoised means that differ from the raw means, at a Benjamini–Hochberg FDR of 5% over all means."""
        from scipy.stats import false_discovery_control, norm

        difference_pg = np.abs(self.denoised_pg - self.raw_pg)
        z_pg = np.divide(difference_pg, self.error_pg, out=np.zeros_like(difference_pg), where=self.error_pg > 0)
        adjusted: np.ndarray = false_discovery_control(2 * norm.sf(z_pg.ravel()))
        return (adjusted <= FDR).reshape(z_pg.shape)

    @cached_property
    def worst(self) -> list[tuple[int, int]]:
        """Group and gene of each denoised mean that differs from the raw mean, the largest deviation first.

        The deviation is the distance of the denoised mean from the 95% interval of the raw mean, divided by the gene's
        largest raw mean in any group.
        """
        beyond_pg = np.abs(self.denoised_pg - self.raw_pg) - _HALF_WIDTH * self.error_pg
        highest_g = np.maximum(np.abs(self.raw_pg).max(0), np.finfo(np.float64).tiny)
        share_pg = np.where(self.differs_pg, beyond_pg / highest_g, -np.inf)
        order = np.argsort(-share_pg, axis=None, kind="stable")[: int(self.differs_pg.sum())]
        return [(int(p), int(g)) for p, g in zip(*np.unravel_index(order, share_pg.shape), strict=True)]


def groups_of(label_n: np.ndarray) -> list[str]:
    """Return the groups that have enough cells for a comparison; cells with the label None belong to no group."""
    labels, size = np.unique(label_n[label_n != None].astype(str), return_counts=True)  # noqa: E711  # elementwise
    return [str(label) for label in labels[size >= LEAST_CELLS]]


class GroupSums:
    """Sums over the cells of each group; blocks of cells are added in the order of the cells.

    Parameters
    ----------
    groupby, label_n
        Column of obs, and the group of each cell; None for a cell without a group.
    genes
        Names of the genes.
    of_counts
        Whether the values are counts. The variance of a count is assumed to be at least its expectation.
    """

    def __init__(self, groupby: str, label_n: np.ndarray, genes: Sequence[str], *, of_counts: bool) -> None:
        self._groupby, self._genes, self._of_counts = groupby, tuple(genes), of_counts
        self._groups = groups_of(label_n)
        index = {label: p for p, label in enumerate(self._groups)}
        self._group_n = np.asarray([index.get(label, -1) for label in label_n])
        shape = (len(self._groups), len(self._genes))
        self._raw_pg, self._denoised_pg, self._square_pg, self._poisson_pg = np.zeros((4, *shape))
        self._n_added = 0

    def add(self, raw_ng: np.ndarray, denoised_ng: np.ndarray, scale_n: np.ndarray) -> None:
        """Add a block of cells.

        `scale_n` is the library size at which each cell was decoded, divided by the library size of the cell's raw
        counts.
        """
        group_n = self._group_n[self._n_added : self._n_added + len(raw_ng)]
        self._n_added += len(raw_ng)
        scaled_ng = raw_ng * scale_n[:, None]
        for p in np.unique(group_n[group_n >= 0]):
            mine = group_n == p
            expected_ng = denoised_ng[mine].astype(np.float64)
            self._raw_pg[p] += scaled_ng[mine].sum(0)
            self._denoised_pg[p] += expected_ng.sum(0)
            self._square_pg[p] += ((scaled_ng[mine] - expected_ng) ** 2).sum(0)
            # The product of a number s and a Poisson count with mean m has the mean sm and the variance s²m.
            self._poisson_pg[p] += (scale_n[mine, None] * expected_ng).sum(0)

    @property
    def complete(self) -> bool:
        """Whether all cells were added."""
        return self._n_added == len(self._group_n)

    def means(self) -> GroupMeans:
        """Compute the raw and denoised means of the groups; all cells must have been added before."""
        assert self.complete, "the caller checks that all cells were added"
        n_p = np.bincount(self._group_n[self._group_n >= 0], minlength=len(self._groups))
        size_p1 = n_p[:, None].astype(np.float64)
        raw_pg, denoised_pg = self._raw_pg / size_p1, self._denoised_pg / size_p1
        variance_pg = (self._square_pg / size_p1 - (raw_pg - denoised_pg) ** 2) * size_p1 / (size_p1 - 1)
        if self._of_counts:
            variance_pg = np.maximum(variance_pg, self._poisson_pg / size_p1)
        return GroupMeans(
            groupby=self._groupby,
            groups=tuple(self._groups),
            genes=self._genes,
            n_cells_p=n_p,
            raw_pg=raw_pg,
            denoised_pg=denoised_pg,
            error_pg=np.sqrt(np.maximum(variance_pg, 0) / size_p1),
        )
