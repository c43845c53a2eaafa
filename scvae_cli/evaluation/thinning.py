"""Count thinning: some of every cell's molecules are set aside, and who predicts them best has denoised best.

A molecule is kept with a fixed probability, independently (Batson, Royer & Webber 2019, molecular cross-validation,
doi:10.1101/786269). Both parts then have the same mean up to that factor and, given the mean, independent sampling
noise. A prediction made from one part is judged on the other by the Poisson loss, whose expectation is least at the
true mean; that of squared errors of log counts is not.

Shapes: n cells, g genes.
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
# A gene's prediction never sinks below this share of a count: one molecule where none was expected at all would
# otherwise cost without bound. Not doing anything about noise predicts zero for every zero.
LEAST_MEAN = 1e-8


@dataclass(frozen=True, kw_only=True)
class Thinned:
    """Counts in two parts.

    Parameters
    ----------
    kept
        The counts to learn and predict from; cells that lost all of them are left out.
    aside
        The rest of the same cells' counts, CSR float32, shape (n, g).
    share
        Probability with which a molecule was kept.
    """

    kept: Counts
    aside: sp.csr_matrix
    share: float

    def poisson_loss(self, blocks: Iterable[np.ndarray]) -> np.ndarray:
        """Σ_g λ − x log λ of every cell, λ the expected counts set aside, shape (n,), nats up to a constant.

        Parameters
        ----------
        blocks
            Consecutive blocks of rows of the expected counts at the depth of the kept part, together (n, g).
        """
        losses, start = [], 0
        for block in blocks:
            x = self.aside[start : start + len(block)]
            expected_ng = np.maximum(block.astype(np.float64) * ((1 - self.share) / self.share), LEAST_MEAN)
            hits = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
            gain = x.data * np.log(expected_ng[hits, x.indices])
            losses.append(expected_ng.sum(1) - np.bincount(hits, weights=gain, minlength=x.shape[0]))
            start += len(block)
        assert start == self.aside.shape[0], "the blocks must cover every cell"
        return np.concatenate(losses)


def thin(counts: Counts, *, share: float = KEPT, seed: int = 0) -> Thinned:
    """Set some of every cell's molecules aside.

    Parameters
    ----------
    counts
        n cells, g genes.
    share
        Probability with which a molecule is kept, between 0 and 1.
    seed
        Of the draw.
    """
    matrix = counts.matrix
    kept_values = np.random.default_rng(seed).binomial(matrix.data.astype(np.int64), share).astype(np.float32)
    kept = _with_values(matrix, kept_values)
    aside = _with_values(matrix, matrix.data - kept_values)
    left = replace(counts, matrix=kept)
    return Thinned(kept=left.filled_cells(), aside=aside[left.filled], share=share)


def predicted(model: Model, kept: Counts, estimate: str) -> Iterator[np.ndarray]:
    """What a model expects of kept counts, in blocks: technical zeros counted in, each cell in its batch.

    `estimate` is as for `expected_counts`.
    """
    return expected_counts(model, kept, estimate=estimate, with_zero_inflation=True, batch_as="observed")


def _with_values(matrix: sp.csr_matrix, values: np.ndarray) -> sp.csr_matrix:
    # Removing zeros moves the values in place.
    same_places = sp.csr_matrix((values.copy(), matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)
    same_places.eliminate_zeros()
    return same_places
