"""Whether the cells without a label differ from the labeled cells: can a classifier tell them apart?

Prediction sets cover the true label, and probabilities are calibrated, for cells that are exchangeable with the labeled
cells. Whether they are can be tested: a classifier learns to tell cells without a label from labeled cells, and is
tested on cells that it has not seen (Lopez-Paz and Oquab 2017, doi:10.48550/arXiv.1610.06545). Of each predicted label,
equally many cells of both kinds are compared, because other proportions of the labels alone do little harm: sets and
"unknown" are calibrated label by label.

The figure is the area under the ROC curve of the classifier: 0.5 if the cells are alike, and 1 if the classifier
is always right.

Letters in array shapes: n cells, c labels, j coordinates.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

# Largest number of cells of each kind, and number of parts in which they are held out.
MOST_CELLS, PARTS = 1000, 5
# With fewer cells of a kind, nothing can be learned.
FEW_CELLS = 20
# The cells differ if the area exceeds that of alike cells by this many standard errors, and at least the second number.
ERRORS, LEAST = 4.0, 0.6
_INVERSE_PENALTY = 0.01


@dataclass(frozen=True)
class Difference:
    """How well a classifier tells the cells without a label from the labeled cells.

    Parameters
    ----------
    auc
        Area under the ROC curve, on cells that the classifier has not seen.
    standard_error
        Standard error of the area if the cells are alike.
    """

    auc: float
    standard_error: float

    @property
    def is_clear(self) -> bool:
        """Whether the cells differ, by much more than chance."""
        return self.auc > max(LEAST, 0.5 + ERRORS * self.standard_error)


def difference(
    labeled_nj: np.ndarray, labeled_label_n: np.ndarray, others_nj: np.ndarray, others_label_n: np.ndarray, *, seed: int
) -> Difference | None:
    """Compare two kinds of cells within their predicted labels; None if there are too few cells.

    Parameters
    ----------
    labeled_nj, others_nj
        Coordinates of labeled cells and of cells without a label.
    labeled_label_n, others_label_n
        Index of the predicted label of each cell.
    seed
        Random seed of the parts in which cells are held out.
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
        # With equal shares of both kinds of each label in all parts. The labels then tell nothing about the kind; with
        # other shares, what one part has too many of, the other parts would have too few of.
        parts = folds.split(x_nj, 2 * label_n + kind_n)
        score_n = cross_val_predict(classifier, x_nj, kind_n, cv=list(parts), method="decision_function")
    n = len(kind_n) // 2
    return Difference(float(roc_auc_score(kind_n, score_n)), float(np.sqrt((2 * n + 1) / (12 * n * n))))


def some_cells(cells: np.ndarray, *, seed: int) -> np.ndarray:
    """Choose at most `MOST_CELLS` of some cells at random, in ascending order."""
    chosen: np.ndarray = np.sort(np.random.default_rng(seed).permutation(cells)[:MOST_CELLS])
    return chosen


def _balanced(x_nj: np.ndarray, kind_n: np.ndarray, label_n: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep equal numbers of both kinds of cells of each label, and leave out labels with fewer cells than parts."""
    kept = [np.empty(0, dtype=np.int64)]
    for label in np.unique(label_n):
        cells = [np.flatnonzero((label_n == label) & (kind_n == kind)) for kind in (0, 1)]
        few = min(map(len, cells))
        kept += [part[:few] for part in cells if few >= PARTS]
    rows = np.sort(np.concatenate(kept))
    return x_nj[rows], kind_n[rows], label_n[rows]
