"""Mean, variance and share of zeros of every gene, and how far two sets of cells differ in them.

Shapes: n cells, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

# A standard deviation below this share of the values' size is what rounding leaves of a constant.
_ROUNDING = 1e-6


class GeneMoments:
    """Mean, variance and share of zeros of every gene, from blocks of cells that come by.

    Parameters
    ----------
    n_genes
        g.
    """

    def __init__(self, n_genes: int) -> None:
        self.n_cells = 0
        self._sum_g, self._squares_g, self._seen_g = (np.zeros(n_genes) for _ in range(3))

    def add(self, block: sp.csr_matrix | np.ndarray) -> GeneMoments:
        """Count some cells in."""
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
        """Mean counts."""
        return self._sum_g / max(self.n_cells, 1)

    @property
    def variance_g(self) -> np.ndarray:
        """Variance of the counts, without bias; of a single cell 0."""
        spread_g = self._squares_g - self.n_cells * np.square(self.mean_g)
        variance_g: np.ndarray = np.maximum(spread_g, 0) / max(self.n_cells - 1, 1)
        return variance_g

    @property
    def varies_g(self) -> np.ndarray:
        """Mask of those whose values differ by more than rounding makes them."""
        varies_g: np.ndarray = self.variance_g > np.square(_ROUNDING * self.mean_g)
        return varies_g

    @property
    def zero_g(self) -> np.ndarray:
        """Share of cells without a count."""
        return 1 - self._seen_g / max(self.n_cells, 1)

    def differences(self, other: GeneMoments, *, real: bool = False) -> Differences:
        """How far these are from those of as many or more other cells.

        Real numbers may have any sign and unit: their means are compared in standard deviations of the other cells, and
        nothing is made of zeros.
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
    """Root mean squares over the genes.

    Parameters
    ----------
    mean, variance
        Of log2 ratios, one count in n cells added to both sides; for means of real numbers, of differences in
        standard deviations.
    zero_fraction
        Of differences; None for real numbers.
    """

    mean: float
    variance: float
    zero_fraction: float | None
