"""Correction of the novelty of cells in batches without labeled cells.

In a new batch, and most of all in a new technology, the novelty (`novelty`) of all cells may be higher than that of the
labeled cells, so that many cells of known types would be called unknown. The offset of a batch is estimated from the
typical cells of the batch, without their labels, and subtracted (an empirical null distribution; Efron 2004,
doi:10.1198/016214504000000089). Cells of new types hardly change the estimate, for two reasons. First, the offset is
estimated from a low quantile of the novelty. Second, the offset of the batch is a median over the predicted labels, and
the cells of a new type usually get few different labels.

An offset above `LARGEST` is not subtracted: then most cells of the batch may be of new types.

Letters in array shapes: n cells, c labels.
"""

from __future__ import annotations

import numpy as np

from scvae_cli.tools.annotate.conformal import HeldOutScores

# Quantile of the novelty that is compared between a batch and the held-out cells.
QUANTILE = 0.25
# Largest offset that is subtracted, in interquartile ranges of the novelty of held-out cells. This is the distance
# beyond which a value is "far out" (Tukey 1977, Exploratory Data Analysis).
LARGEST = 3.0
# Smallest number of cells of a batch from which the offset of a predicted label is estimated.
FEW_CELLS = 10


def batch_offsets(novelty_n: np.ndarray, label_n: np.ndarray, batch_n: np.ndarray, held: HeldOutScores) -> np.ndarray:
    """Estimate how much higher the novelty of each cell is because of its batch, shape (n,).

    Parameters
    ----------
    novelty_n, label_n
        Novelty and predicted label of each cell.
    batch_n
        Index of the new batch of each cell; −1 for cells that are not in a new batch, whose offset is 0.
    held
        Negative novelty and predicted label of the held-out labeled cells.
    """
    offset_n = np.zeros(len(novelty_n))
    low_c, range_c = _typical(held)
    for batch in np.unique(batch_n[batch_n >= 0]):
        own_n = batch_n == batch
        offset = _offset(novelty_n[own_n], label_n[own_n], low_c, range_c)
        offset_n[own_n] = offset * range_c[label_n[own_n]] if 0 < offset <= LARGEST else 0.0
    return offset_n


def _typical(held: HeldOutScores) -> tuple[np.ndarray, np.ndarray]:
    """Return a low quantile and the interquartile range of the novelty of held-out cells, shape (c,) each."""
    low_c, range_c = np.empty(held.n_labels), np.empty(held.n_labels)
    for c in range(held.n_labels):
        own = -held.score_m[held.compared_with(c)]
        low_c[c] = np.quantile(own, QUANTILE)
        range_c[c] = np.quantile(own, 0.75) - np.quantile(own, 0.25)
    return low_c, range_c


def _offset(novelty_n: np.ndarray, label_n: np.ndarray, low_c: np.ndarray, range_c: np.ndarray) -> float:
    """Return the median offset of the cells of one batch, in interquartile ranges; 0 if no label has enough cells."""
    offsets: list[float] = [0.0]
    sizes = [0]
    for c in np.unique(label_n):
        own = novelty_n[label_n == c]
        if len(own) >= FEW_CELLS and range_c[c] > 0:
            offsets.append(float((np.quantile(own, QUANTILE) - low_c[c]) / range_c[c]))
            sizes.append(len(own))
    order = np.argsort(offsets)
    below = np.cumsum(np.asarray(sizes)[order])
    return offsets[int(order[np.searchsorted(below, below[-1] / 2)])]
