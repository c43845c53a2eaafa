"""Correction of the novelty of cells in batches without labeled cells.

In a new batch, and most of all in a new technology, the novelty (`novelty`) of all cells may be higher and more
variable than that of the labeled cells, so that many cells of known types would be called unknown. The novelty of cells
of known types in a new batch is assumed to be distributed as that of the held-out cells, but shifted and scaled. Shift
and scale are estimated from the cells of the batch, without their labels (an empirical null distribution; Efron 2004,
doi:10.1198/016214504000000089), and removed.

The cells of known types have the lowest novelties of the batch. If s is their share of the batch, their quantile q is
the quantile s·q of all cells of the batch. The first quartile and the median of the cells of known types give the shift
and the scale, which give a new estimate of s. Both steps are repeated. The estimates are therefore also correct if most
cells of the batch are of new types, provided that these cells have clearly higher novelties than the others.

A batch in which all cells are of one new type looks like a batch with a large shift. Of a shift above `LARGEST`, only
`LARGEST` is removed, and the scale is then not removed.

Letters in array shapes: n cells, m held-out labeled cells, c labels, k parts of the labeled cells.
"""

from __future__ import annotations

import numpy as np

from scvae_cli.tools.annotate.conformal import HeldOutScores

# Largest shift that is removed, in interquartile ranges of the novelty of held-out cells. This is the distance beyond
# which a value is "far out" (Tukey 1977, Exploratory Data Analysis).
LARGEST = 3.0
# Largest scale that is removed. Without a limit, cells of new types could be taken for variable cells of known types.
MOST_VARIABLE = 4.0
# Smallest number of cells of a batch from which its shift and scale are estimated.
FEW_CELLS = 10
# Quantiles of the cells of known types: two that give shift and scale, and one below which cells are counted.
_QUARTILE, _MEDIAN, _HIGH = 0.25, 0.5, 0.9
_ROUNDS = 30


def corrected_novelty(
    novelty_kn: np.ndarray, label_n: np.ndarray, batch_n: np.ndarray, held: HeldOutScores
) -> np.ndarray:
    """Compute the novelty that the cells would have in a batch of labeled cells, shape (k, n).

    Parameters
    ----------
    novelty_kn, label_n
        Novelty of each cell for the classifier of each part, and predicted label of each cell.
    batch_n
        Index of the new batch of each cell; −1 for cells that are not in a new batch, whose novelty is not changed.
    held
        Negative novelty and predicted label of the held-out labeled cells.
    """
    low_c, range_c = _typical(held)
    # The novelty differs between labels, so it is measured from the first quartile, in interquartile ranges.
    usable_c = range_c > 0
    code_m = held.code_m[usable_c[held.code_m]]
    standard_m = (-held.score_m[usable_c[held.code_m]] - low_c[code_m]) / range_c[code_m]
    corrected_kn = novelty_kn.copy()
    for batch in np.unique(batch_n[batch_n >= 0]):
        own_n = (batch_n == batch) & usable_c[label_n]
        if own_n.sum() < FEW_CELLS or not len(standard_m):
            continue
        low_n, range_n = low_c[label_n[own_n]], range_c[label_n[own_n]]
        standard_kn = (novelty_kn[:, own_n] - low_n) / range_n
        shift, scale = shift_and_scale(np.median(standard_kn, axis=0), standard_m)
        shift, scale = (shift, scale) if shift <= LARGEST else (LARGEST, 1.0)
        corrected_kn[:, own_n] = (standard_kn - shift) / scale * range_n + low_n
    return corrected_kn


def shift_and_scale(value_n: np.ndarray, standard_m: np.ndarray) -> tuple[float, float]:
    """Estimate the shift and the scale of the lower part of `value_n`, compared with `standard_m`.

    The shift is at least 0, and the scale is at least 1 and at most `MOST_VARIABLE`.
    """
    low, middle, high = np.quantile(standard_m, [_QUARTILE, _MEDIAN, _HIGH])
    share = 1.0
    for _ in range(_ROUNDS):
        low_here, middle_here = np.quantile(value_n, [_QUARTILE * share, _MEDIAN * share])
        scale = float(np.clip((middle_here - low_here) / max(middle - low, 1e-9), 1.0, MOST_VARIABLE))
        shift = float(middle_here - scale * middle)
        found = min(1.0, float((value_n <= shift + scale * high).mean()) / _HIGH)
        if abs(found - share) < 1e-3:
            break
        share = (share + found) / 2
    return max(0.0, shift), scale


def _typical(held: HeldOutScores) -> tuple[np.ndarray, np.ndarray]:
    """Return the first quartile and the interquartile range of the novelty of held-out cells, shape (c,) each."""
    low_c, range_c = np.empty(held.n_labels), np.empty(held.n_labels)
    for c in range(held.n_labels):
        own = -held.score_m[held.compared_with(c)]
        low_c[c], high = np.quantile(own, [_QUARTILE, 1 - _QUARTILE])
        range_c[c] = high - low_c[c]
    return low_c, range_c
