"""Test whether cells without a label differ from labeled cells: can a classifier distinguish the two kinds of cells?

If cells are exchangeable with the labeled cells, their prediction sets have the requested coverage, and their
probabilities are calibrated. To test exchangeability, a classifier learns to distinguish cells without a label from
labeled cells. The classifier is tested on cells that it has not seen (Lopez-Paz and Oquab 2017,
doi:10.48550/arXiv.1610.06545). For each predicted label, equal numbers of labeled cells and cells without a label are
compared. A difference in the proportions of the labels alone does little harm, because prediction sets and "unknown"
are calibrated for each label separately.

The result is the area under the ROC curve of the classifier. The area is 0.5 if cells with and without a label are
alike, and 1 if the classifier is always right.

Letters in array shapes: n cells, c labels, j coordinates.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

# Largest number of labeled cells (and of cells without a label), and number of folds of the cross-validation.
MOST_CELLS, PARTS = 1000, 5
# The comparison needs at least FEW_CELLS labeled cells, and at least FEW_CELLS cells without a label.
FEW_CELLS = 20
# Cells clearly differ if the area exceeds 0.5 by more than ERRORS standard errors, and also exceeds LEAST.
ERRORS, LEAST = 4.0, 0.6
_INVERSE_PENALTY = 0.01


@dataclass(frozen=True)
class Difference:
    """How well a classifier distinguishes cells without a label from labeled cells.

    Parameters
    ----------
    auc
        Area under the ROC curve, on cells that the classifier has not seen.
    standard_error
        Standard error of the area under the ROC curve, if the two kinds of cells are alike.
    """

    auc: float
    standard_error: float

    @property
    def is_clear(self) -> bool:
        """Whether the classifier clearly distinguishes labeled cells from cells without a label."""
        return self.auc > max(LEAST, 0.5 + ERRORS * self.standard_error)


def difference(
    labeled_nj: np.ndarray, labeled_label_n: np.ndarray, others_nj: np.ndarray, others_label_n: np.ndarray, *, seed: int
) -> Difference | None:
    """Compare labeled cells with cells without a label that have the same predicted labels.

    The result is None if too few cells can be compared.

    Parameters
    ----------
    labeled_nj, others_nj
        Coordinates of labeled cells and of cells without a label.
    labeled_label_n, others_label_n
        Index of the predicted label of each cell.
    seed
        Random seed of the cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    kind_n = np.repeat([0, 1], [len(labeled_nj), len(others_nj)])
    x_nj, kind_n, label_n = _balanced(
        np.concatenate([labeled_nj, others_nj]), kind_n, np.concatenate([labeled_label_n, others_label_n])
    )
    if np.bincount(kind_n, minlength=2).min() < FEW_CELLS:
        return None
    folds = StratifiedKFold(PARTS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        classifier = LogisticRegression(C=_INVERSE_PENALTY, max_iter=100)
        x_nj = x_nj / np.maximum(x_nj.std(axis=0), 1e-9)
        # For each label, all folds have equal shares of labeled cells and of cells without a label. With unequal
        # shares, a kind of cells that is too frequent in the tested fold would be too rare in the folds that train the
        # classifier.
        parts = folds.split(x_nj, 2 * label_n + kind_n)
        score_n = cross_val_predict(classifier, x_nj, kind_n, cv=list(parts), method="decision_function")
    n = len(kind_n) // 2
    return Difference(float(roc_auc_score(kind_n, score_n)), float(np.sqrt((2 * n + 1) / (12 * n * n))))


def some_cells(cells: np.ndarray, *, seed: int) -> np.ndarray:
    """Choose at most `MOST_CELLS` of the given cells at random, and sort the chosen cells."""
    chosen: np.ndarray = np.sort(np.random.default_rng(seed).permutation(cells)[:MOST_CELLS])
    return chosen


def _balanced(x_nj: np.ndarray, kind_n: np.ndarray, label_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose equal numbers of labeled cells and of cells without a label for each predicted label.

    Labels with fewer cells than folds are left out.
    """
    kept = [np.empty(0, dtype=np.int64)]
    for label in np.unique(label_n):
        cells = [np.flatnonzero((label_n == label) & (kind_n == kind)) for kind in (0, 1)]
        few = min(map(len, cells))
        kept += [part[:few] for part in cells if few >= PARTS]
    rows = np.sort(np.concatenate(kept))
    return x_nj[rows], kind_n[rows], label_n[rows]
