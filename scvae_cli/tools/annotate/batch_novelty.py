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

The novelty of the cells of a mapped batch is computed in two ways: from states that the encoder computes with its
correction for the batch, and without. If the correction fits, it removes differences between technologies or
conditions. But if the cells of the batch are of other types or proportions than the training cells, the correction may
move cells to states in which no training cells are. The second way is used if its novelty needs a clearly smaller
correction of shift and scale.

A batch in which all cells are of one new type looks like a batch with a large shift. Of a shift above `LARGEST`, only
`LARGEST` is removed, and the scale is then not removed.

Letters in array shapes: n cells, m held-out labeled cells, c labels, k parts of the labeled cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scvae_cli.tools.annotate.conformal import HeldOutScores
from scvae_cli.tools.annotate.held_out_novelty import HeldOutNovelty

# Largest shift that is removed, in interquartile ranges of the novelty of held-out cells. This is the distance beyond
# which a value is "far out" (Tukey 1977, Exploratory Data Analysis).
LARGEST = 3.0
# Largest scale that is removed. Without a limit, cells of new types could be taken for variable cells of known types.
MOST_VARIABLE = 4.0
# Smallest number of cells of a batch from which its shift and scale are estimated.
FEW_CELLS = 10
# Difference between the sizes of two corrections above which the smaller correction shows the better way to compute
# novelty. On the flows of `benchmarks/expected_accuracy.py`, the difference is below 1.5 where the encoder's correction
# fits, and mostly above 2.5 where known types would be called unknown.
CLEARLY_LARGER = 2.0
# Quantiles of the cells of known types: two that give shift and scale, and one below which cells are counted.
_QUARTILE, _MEDIAN, _HIGH = 0.25, 0.5, 0.9
_ROUNDS = 30


def known_type_p(
    ways: Sequence[tuple[HeldOutNovelty, np.ndarray]], label_n: np.ndarray, batch_n: np.ndarray
) -> np.ndarray:
    """Compute the p-value of the hypothesis that a cell belongs to a known type, shape (n,).

    Parameters
    ----------
    ways
        Novelty of the held-out cells, and novelty of all cells for the classifier of each part, shape (k, n). If there
        are several ways to compute the novelty, a new batch uses the way with the smallest correction, if the
        correction of the first way is larger by more than `CLEARLY_LARGER`. All other cells use the first way.
    label_n
        Index of the predicted label of each cell.
    batch_n
        Index of the new batch of each cell; −1 for cells that are not in a new batch, whose novelty is not corrected.
    """
    held, novelty_kn = ways[0]
    p_n = held.p_values(novelty_kn, label_n)
    for batch in np.unique(batch_n[batch_n >= 0]):
        own_n = batch_n == batch
        found = [
            (held, *corrected_novelty(novelty_kn[:, own_n], label_n[own_n], held.scores)) for held, novelty_kn in ways
        ]
        first, best = found[0], min(found, key=lambda way: way[2])
        held, corrected_kn, _ = best if first[2] > best[2] + CLEARLY_LARGER else first
        p_n[own_n] = held.p_values(corrected_kn, label_n[own_n])
    return p_n


def corrected_novelty(novelty_kn: np.ndarray, label_n: np.ndarray, held: HeldOutScores) -> tuple[np.ndarray, float]:
    """Compute the novelty that the cells of a new batch would have in a batch of labeled cells.

    Parameters
    ----------
    novelty_kn, label_n
        Novelty of each cell of the batch for the classifier of each part, and predicted label of each cell.
    held
        Negative novelty and predicted label of the held-out labeled cells.

    Returns
    -------
    The corrected novelty, shape (k, n), and the size of the correction: the estimated shift, in interquartile ranges of
    the novelty of held-out cells, plus the part of the scale above 1. If a batch has too few cells, its novelty is not
    corrected, and the size is 0.
    """
    low_c, range_c = _typical(held)
    # The novelty differs between labels, so it is measured from the first quartile, in interquartile ranges.
    usable_c = range_c > 0
    usable_m, own_n = usable_c[held.code_m], usable_c[label_n]
    if own_n.sum() < FEW_CELLS or not usable_m.any():
        return novelty_kn, 0.0
    code_m = held.code_m[usable_m]
    standard_m = (-held.score_m[usable_m] - low_c[code_m]) / range_c[code_m]
    low_n, range_n = low_c[label_n[own_n]], range_c[label_n[own_n]]
    standard_kn = (novelty_kn[:, own_n] - low_n) / range_n
    shift, scale = shift_and_scale(np.median(standard_kn, axis=0), standard_m)
    size = shift + scale - 1
    if shift > LARGEST:
        shift, scale = LARGEST, 1.0
    corrected_kn = novelty_kn.copy()
    corrected_kn[:, own_n] = (standard_kn - shift) / scale * range_n + low_n
    return corrected_kn, size


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
