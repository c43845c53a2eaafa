"""Labeled cells that train the classifiers, and the parts in which these cells are held out.

The labeled cells are divided into `PARTS` parts, as in a cross-validation. For each part, one classifier learns from
the cells of all other parts. Each labeled cell therefore has a prediction from a classifier that has not seen its
label, and every classifier learns from most cells of a rare label. If a label has only one cell, all classifiers learn
from this cell, and the cell is never held out. A cell is also never held out if the model was trained with its label.
The latent position of the cell then depends on the label, so the label would be too easy to predict.

Letters in array shapes: n cells, m labeled cells, c labels.
"""

from __future__ import annotations

import numpy as np

PARTS = 5
# Largest number of labeled cells that train the classifiers. Cells of frequent labels are left out first.
MOST_CELLS = 6000


def chosen_cells(code_n: np.ndarray, n_labels: int, *, seed: int, most: int = MOST_CELLS) -> np.ndarray:
    """Choose labeled cells for training: all cells of rare labels, and equally many cells of each frequent label.

    Parameters
    ----------
    code_n
        Index of the label of each cell; −1 for cells without a label.
    most
        Largest number of cells to choose. At least one cell of each label is chosen, even if `most` is smaller.

    Returns
    -------
    Indices of the chosen cells, in ascending order; shape (m,).
    """
    size_c = np.bincount(code_n[code_n >= 0], minlength=n_labels)
    limit = _limit(size_c, most)
    random, chosen = np.random.default_rng(seed), []
    for c in range(n_labels):
        cells = np.flatnonzero(code_n == c)
        chosen.append(cells if len(cells) <= limit else random.permutation(cells)[:limit])
    return np.sort(np.concatenate(chosen))


def _limit(size_c: np.ndarray, most: int) -> int:
    """Return the largest number of cells per label with which at most `most` cells are chosen, but at least 1.

    >>> _limit(np.array([100, 10, 3]), 50), _limit(np.array([10, 10]), 50), _limit(np.array([10, 10]), 1)
    (37, 10, 1)
    """
    low, high = 1, max(1, int(size_c.max()))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(size_c, middle).sum() <= most else (low, middle - 1)
    return low


def parts_of(code_m: np.ndarray, *, unseen_m: np.ndarray, seed: int, n_parts: int = PARTS) -> np.ndarray:
    """Assign labeled cells to parts at random, such that the cells of each label are spread evenly; shape (m,).

    The part of a cell is −1 if no other cell has the same label, or if the model may have been trained with the label
    of the cell. `unseen_m` is a mask of the cells with whose labels the model was not trained.
    """
    random = np.random.default_rng(seed)
    part_m = np.full(len(code_m), -1)
    first = 0
    for c in np.unique(code_m):
        alone = np.count_nonzero(code_m == c) == 1
        cells = random.permutation(np.flatnonzero((code_m == c) & unseen_m))
        if not alone:
            part_m[cells] = (np.arange(len(cells)) + first) % n_parts
            first += len(cells)
    return part_m
