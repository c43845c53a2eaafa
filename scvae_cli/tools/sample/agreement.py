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

from scvae_cli.latent.gene_moments import Differences, GeneMoments

# With fewer cells on a side nothing can be said.
MIN_CELLS = 20
# More real cells than this make it no surer.
MAX_CELLS = 20_000


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
