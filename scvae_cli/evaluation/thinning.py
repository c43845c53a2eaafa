"""Count thinning: some molecules of every cell are held out to test how well a denoising method predicts them.

Each molecule is independently assigned to the first part with a fixed probability, and otherwise to the second part
(molecular cross-validation; Batson, Royer & Webber 2019, doi:10.1101/786269). After thinning, the expected counts of
the two parts of a cell are equal up to a factor. Given the expected counts, the sampling noise of the first part is
independent of the sampling noise of the second part. A prediction from the first part is evaluated on the second part
by the Poisson loss. The expected Poisson loss is smallest if the prediction is the true mean. The expected squared
error of log counts is not smallest at the true mean.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.counts import Counts
from scvae_cli.latent.expected_counts import expected_counts
from scvae_cli.model.bundle import Model

KEPT = 0.9
# Smallest predicted mean. Without the lower bound, an observed molecule would have an infinite loss if the predicted
# mean is zero. Without denoising, the predicted mean is zero for every zero count.
LEAST_MEAN = 1e-8


@dataclass(frozen=True, kw_only=True)
class Thinned:
    """Counts whose molecules are randomly split into two parts.

    Parameters
    ----------
    kept
        First part: counts for training and prediction. Cells without counts in the first part are removed.
    withheld
        Second part: the remaining counts of the cells in `kept`, CSR float32, shape (n, g).
    share
        Probability that a molecule is in the first part.
    """

    kept: Counts
    withheld: sp.csr_matrix
    share: float

    def poisson_loss(self, blocks: Iterable[np.ndarray]) -> np.ndarray:
        """Compute the Poisson loss Σ_g (λ − x log λ) of every cell, shape (n,), nats up to a constant.

        In the formula of the Poisson loss, x are the withheld counts, and λ are the predicted withheld counts. `blocks`
        contains expected counts at the library size of the first part, shape (n, g), as consecutive blocks of rows. The
        predictions λ are the expected counts in `blocks`, rescaled to the second part.
        """
        losses, start = [], 0
        for block in blocks:
            x = self.withheld[start : start + len(block)]
            expected_ng = np.maximum(block.astype(np.float64) * ((1 - self.share) / self.share), LEAST_MEAN)
            row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
            gain = x.data * np.log(expected_ng[row, x.indices])
            losses.append(expected_ng.sum(1) - np.bincount(row, weights=gain, minlength=x.shape[0]))
            start += len(block)
        assert start == self.withheld.shape[0], "the blocks must cover every cell"
        return np.concatenate(losses)


def thin(counts: Counts, *, share: float = KEPT, seed: int = 0) -> Thinned:
    """Hold out some molecules of every cell. Each molecule is kept with the probability `share`."""
    matrix = counts.matrix
    kept_values = np.random.default_rng(seed).binomial(matrix.data.astype(np.int64), share).astype(np.float32)
    kept = _with_values(matrix, kept_values)
    withheld = _with_values(matrix, matrix.data - kept_values)
    first = replace(counts, matrix=kept)
    return Thinned(kept=first.filled_cells(), withheld=withheld[first.filled], share=share)


def predicted(model: Model, kept: Counts, estimate: str) -> Iterator[np.ndarray]:
    """Compute expected counts from the kept molecules, in blocks of cells.

    Each cell is decoded in its own batch. Expected counts are averaged over posterior samples, because models with
    different β differ in the width of the posterior.
    """
    return expected_counts(model, kept, estimate=estimate, n_samples=10, batch_as="observed")


def _with_values(matrix: sp.csr_matrix, values: np.ndarray) -> sp.csr_matrix:
    # The arrays are copied, because `eliminate_zeros` changes the arrays of a matrix in place.
    result = sp.csr_matrix((values.copy(), matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)
    result.eliminate_zeros()
    return result
