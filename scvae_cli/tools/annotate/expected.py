"""Share of the cells without a label that are expected to get their correct label.

If all cells belong to known types, the mean probability of the predicted labels is the expected share of correct
labels. A cell of a type that the labels lack never gets its correct label, but may get a wrong label with a high
probability. The share of such cells is therefore estimated from the p-values of "unknown" (`novelty`), as Storey (2002,
doi:10.1111/1467-9868.00346) estimates the share of true null hypotheses. Cells of missing types nearly always have
p-values of at most SMALL. The number of cells with larger p-values therefore shows how many cells belong to known
types, and how many cells of known types have small p-values. All other cells with small p-values are counted as wrong.
If the share of cells of missing types is not clearly above 0, it is set to 0.

SMALL is lower than is usual in tests of many genes. Cells of missing types have very small p-values, and if SMALL were
higher, differences between batches would be mistaken for missing types more often.

Letters in array shapes: n cells without a label, h held-out labeled cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALL = 0.1
# Number of standard errors by which the share of cells of missing types must exceed 0.
_ERRORS = 2.0


@dataclass(frozen=True)
class Expected:
    """What is expected of the predicted labels of the cells without a label.

    Parameters
    ----------
    accuracy
        Expected share of the cells that get their correct label. Unknown cells get no label.
    of_missing_types
        Estimated share of the cells that belong to types that the labels lack.
    """

    accuracy: float
    of_missing_types: float


def expected(
    probability_n: np.ndarray, p_n: np.ndarray, held_p_h: np.ndarray, weight_h: np.ndarray, *, rate: float
) -> Expected:
    """Estimate the accuracy of predicted labels.

    Parameters
    ----------
    probability_n, p_n
        Probability of the predicted label of each cell, and p-value of the hypothesis that the cell belongs to a known
        type.
    held_p_h, weight_h
        p-value of each held-out labeled cell, and number of labeled cells that the held-out cell represents.
    rate
        Largest p-value of cells that are called unknown.
    """
    small, share_h = max(SMALL, rate), weight_h / weight_h.sum()
    known = _known_share(p_n > small, float(share_h[held_p_h > small].sum()), 1 / float(share_h @ share_h))
    # Cells that get a label in spite of a small p-value are of known or of missing types.
    between_n = (p_n > rate) & (p_n <= small)
    of_known_n = np.where(p_n > small, 1.0, 0.0)
    if known == 1:
        of_known_n[between_n] = 1.0
    elif between_n.any():
        share = known * float(share_h[(held_p_h > rate) & (held_p_h <= small)].sum())
        of_known_n[between_n] = min(1.0, share / float(between_n.mean()))
    return Expected(accuracy=float(probability_n @ of_known_n) / len(p_n), of_missing_types=1 - known)


def _known_share(large_n: np.ndarray, large_of_known: float, n_held: float) -> float:
    """Estimate the share of the cells that belong to known types.

    Parameters
    ----------
    large_n
        Whether the p-value of each cell is large.
    large_of_known
        Share of large p-values among `n_held` held-out cells.
    """
    large = float(large_n.mean())
    error = np.sqrt(large_of_known * (1 - large_of_known) * (1 / len(large_n) + 1 / n_held))
    if large >= large_of_known - _ERRORS * error:
        return 1.0
    return large / large_of_known
