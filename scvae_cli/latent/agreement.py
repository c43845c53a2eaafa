"""Do sampled cells have the genes' means, variances and zeros of real ones? Beside real cells among themselves.

Real cells are cut in two at random. One half is the measure; with it are compared as many sampled cells as the other
half has, and, the baseline, the other half itself. What is beyond the baseline is the model's fault.

Shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

# With fewer cells on a side nothing can be said.
MIN_CELLS = 20
# More real cells than this make it no surer.
MAX_CELLS = 20_000
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


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far samples and, beside them, real cells are from the same real cells.

    Parameters
    ----------
    samples, real
        Of the sampled cells, and of the other half of the real ones.
    n_cells
        Cells that were compared, of either.
    n_real
        Cells they were compared with.
    """

    samples: Differences
    real: Differences
    n_cells: int
    n_real: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Comparison:
    """Compares sampled counts with real ones while they pass by.

    Parameters
    ----------
    real
        Counts of real cells, CSR (n, g).
    n_samples
        Number of cells that will pass.
    seed
        Of the halves.
    of_counts
        Whether the values are counts, and not real numbers.
    """

    def __init__(self, real: sp.csr_matrix, n_samples: int, *, seed: int, of_counts: bool = True) -> None:
        self._of_counts = of_counts
        order = np.random.default_rng(seed).permutation(real.shape[0])[:MAX_CELLS]
        half = len(order) // 2
        self._n = min(half, n_samples)
        n_genes = real.shape[1]
        self._measure = GeneMoments(n_genes).add(real[order[half : 2 * half]])
        self._other = GeneMoments(n_genes).add(real[order[: self._n]])
        self._some = GeneMoments(n_genes)
        self.real = GeneMoments(n_genes).add(real[order])
        self.samples = GeneMoments(n_genes)

    def watch(self, blocks: Iterable[Any]) -> Iterator[Any]:
        """Pass blocks on, counting them in."""
        for block in blocks:
            self.samples.add(block)
            if self._some.n_cells < self._n:
                self._some.add(block[: self._n - self._some.n_cells])
            yield block

    def agreement(self) -> Agreement | None:
        """The verdict, when all have passed; None where the cells are too few for one."""
        if self._n < MIN_CELLS:
            return None
        return Agreement(
            samples=self._some.differences(self._measure, real=not self._of_counts),
            real=self._other.differences(self._measure, real=not self._of_counts),
            n_cells=self._n,
            n_real=self._measure.n_cells,
        )
