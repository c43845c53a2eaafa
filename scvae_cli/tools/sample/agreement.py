"""Differences between sampled and real cells in the genes' means, variances and zero fractions.

The real cells are split into two random halves. One half of the real cells is the reference. Sampled cells are compared
with the reference. As a baseline, equally many real cells of the other half are compared with the reference. If the
sampled cells differ more from the reference than the real cells of the other half do, the model is inaccurate.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from scvae_cli.latent.gene_moments import Differences, GeneMoments

# A comparison needs at least this many sampled cells, and equally many real cells.
MIN_CELLS = 20
# At most this many real cells are used; more would not make the comparison more precise.
MAX_CELLS = 20_000


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Differences from a reference of real cells, for sampled cells and for other real cells.

    `samples` holds the differences between `n_cells` sampled cells and the reference. `real` is the baseline: the
    differences between `n_cells` real cells and the reference. The reference has `n_real` cells.
    """

    samples: Differences
    real: Differences
    n_cells: int
    n_real: int


class Comparison:
    """A comparison of sampled cells with real cells, made while the sampled cells are written.

    `real` is a CSR matrix of n real cells × g genes; the seed of the random split into halves is `seed`. `n_samples` is
    the number of sampled cells. `of_counts` is False if the cells have real numbers instead of counts.
    """

    def __init__(self, real: sp.csr_matrix, n_samples: int, *, seed: int, of_counts: bool = True) -> None:
        self._of_counts = of_counts
        order = np.random.default_rng(seed).permutation(real.shape[0])[:MAX_CELLS]
        half = len(order) // 2
        self._n_compared = min(half, n_samples)
        n_genes = real.shape[1]
        chosen = (order[half : 2 * half], order[: self._n_compared], order)
        self._reference, self._other_half, self.real = (GeneMoments(n_genes).add(real[rows]) for rows in chosen)
        self._compared, self.samples = GeneMoments(n_genes), GeneMoments(n_genes)

    def watch(self, blocks: Iterable[Any]) -> Iterator[Any]:
        """Yield the blocks of sampled counts unchanged, and add up the moments of the counts."""
        for block in blocks:
            self.samples.add(block)
            if self._compared.n_cells < self._n_compared:
                self._compared.add(block[: self._n_compared - self._compared.n_cells])
            yield block

    def agreement(self) -> Agreement | None:
        """Return the differences, or None if there are too few cells. All blocks must have been written before."""
        if self._n_compared < MIN_CELLS:
            return None
        samples, real = (
            moments.differences(self._reference, real=not self._of_counts)
            for moments in (self._compared, self._other_half)
        )
        return Agreement(samples=samples, real=real, n_cells=self._n_compared, n_real=self._reference.n_cells)
