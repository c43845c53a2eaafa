"""Mean, variance and fraction of zeros of every gene, and a comparison of these statistics between two sets of cells.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

# Ratio of a gene's standard deviation to its mean below which the gene is regarded as constant, because of rounding
# errors.
_ROUNDING = 1e-6


class GeneMoments:
    """Mean, variance and fraction of zeros of every gene, accumulated over blocks of cells."""

    def __init__(self, n_genes: int) -> None:
        self.n_cells = 0
        self._sum_g, self._squares_g, self._seen_g = (np.zeros(n_genes) for _ in range(3))

    def add(self, block: sp.csr_matrix | np.ndarray) -> GeneMoments:
        """Add the counts of a block of cells to the statistics."""
        block = sp.csr_matrix(block)
        self.n_cells += block.shape[0]
        value = block.data.astype(np.float64)
        n_genes = len(self._sum_g)
        self._sum_g += np.bincount(block.indices, weights=value, minlength=n_genes)
        self._squares_g += np.bincount(block.indices, weights=value**2, minlength=n_genes)
        self._seen_g += np.bincount(block.indices, weights=value > 0, minlength=n_genes)
        return self

    @property
    def mean_g(self) -> np.ndarray:
        """Mean count of every gene, shape (g,)."""
        return self._sum_g / max(self.n_cells, 1)

    @property
    def variance_g(self) -> np.ndarray:
        """Unbiased variance of the counts of every gene, shape (g,). For a single cell, the variance is 0."""
        spread_g = self._squares_g - self.n_cells * np.square(self.mean_g)
        variance_g: np.ndarray = np.maximum(spread_g, 0) / max(self.n_cells - 1, 1)
        return variance_g

    @property
    def varies_g(self) -> np.ndarray:
        """Mask of the genes whose counts vary by more than rounding errors, shape (g,)."""
        varies_g: np.ndarray = self.variance_g > np.square(_ROUNDING * self.mean_g)
        return varies_g

    @property
    def zero_g(self) -> np.ndarray:
        """Fraction of zeros of every gene, shape (g,)."""
        return 1 - self._seen_g / max(self.n_cells, 1)

    def differences(self, other: GeneMoments, *, real: bool = False) -> Differences:
        """Compare mean, variance and fraction of zeros of every gene between the cells of `self` and of `other`.

        `other` must have at least as many cells as `self`.

        If `real` is True, the difference between two means is divided by the standard deviation of the gene over the
        cells of `other`, and fractions of zeros are not compared.
        """
        if real:
            varies = other.varies_g
            least_g = 1e-6 * other.variance_g[varies]
            apart_g = (self.mean_g - other.mean_g)[varies] / np.sqrt(other.variance_g[varies])
            ratio_g = (self.variance_g[varies] + least_g) / (other.variance_g[varies] + least_g)
            return Differences(
                mean=float(np.sqrt(np.mean(apart_g**2))),
                variance=float(np.sqrt(np.mean(np.log2(ratio_g) ** 2))),
                zero_fraction=None,
            )
        least = 1 / min(self.n_cells, other.n_cells)

        def apart(a_g: np.ndarray, b_g: np.ndarray) -> float:
            return float(np.sqrt(np.mean(np.log2((a_g + least) / (b_g + least)) ** 2)))

        return Differences(
            mean=apart(self.mean_g, other.mean_g),
            variance=apart(self.variance_g, other.variance_g),
            zero_fraction=float(np.sqrt(np.mean((self.zero_g - other.zero_g) ** 2))),
        )


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Differences between the moments of two sets of cells, as root mean squares over genes.

    Parameters
    ----------
    mean, variance
        For counts, root mean square of the log2 ratio of means (or variances) of the two sets. Before division, 1/n is
        added to means and variances, where n is the number of cells of the smaller set. For real numbers, variances are
        also compared by their log2 ratio, but means are compared by their difference in standard deviations of the
        second set.
    zero_fraction
        Root mean square of the differences between fractions of zeros, or None if the data are real numbers.
    """

    mean: float
    variance: float
    zero_fraction: float | None
