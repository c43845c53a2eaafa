"""Conformal p-values: how unusual a score is among the scores of held-out labeled cells.

A cell's p-value for a label is the share of held-out cells of this label whose scores are not higher than the cell's
score. If a cell is exchangeable with the held-out cells of its true label, the p-value for this label is at most α with
a probability of at most α. A prediction set holds all labels whose p-value exceeds 1 − coverage. A prediction set
therefore contains the true label with a probability of at least `coverage`.

The scores come from several classifiers, one for each part of the labeled cells (`held_out_parts`). A score of a
classifier is compared with the scores that this classifier gives to its own held-out cells (cross-conformal prediction;
Vovk 2015, doi:10.1007/s10472-013-9368-4). The score of a labeled cell is compared with the scores of the held-out cells
in all parts except its own part.

Rare labels, which have few held-out cells, are calibrated together, because a few cells do not show how low scores can
be. If the held-out cells of all rare labels together are still too few, rare labels are calibrated with all held-out
cells.

Letters in array shapes: n cells, m held-out labeled cells, c labels, k parts of the labeled cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


def enough_cells(rate: float) -> int:
    """Return how many held-out cells of a label are needed to find the cells whose p-values are at most `rate`.

    With n held-out cells, p-values are rounded up to multiples of 1/(n + 1). With 50 cells or more, the rounding of
    p-values increases the coverage of prediction sets by at most 2 percentage points. With 2/rate cells or more, the
    smallest possible p-value is at most half the rate.

    >>> enough_cells(0.1), enough_cells(0.01), enough_cells(0.0)
    (50, 200, 50)
    """
    return max(50, math.ceil(2 / rate)) if rate > 0 else 50


@dataclass(frozen=True)
class HeldOutScores:
    """Scores of held-out labeled cells, computed by the classifiers that have not seen these cells.

    Parameters
    ----------
    score_m, code_m, part_m
        Score, label and part of each held-out cell, shape (m,) each. A cell usually has a high score for its label.
    n_labels
        Number of labels, c.
    enough
        Smallest number of held-out cells with which a label is calibrated by its own held-out cells alone.
    """

    score_m: np.ndarray
    code_m: np.ndarray
    part_m: np.ndarray
    n_labels: int
    enough: int

    def compared_with(self, label: int) -> np.ndarray:
        """Return a mask of the cells whose scores calibrate a label, shape (m,)."""
        size_c = np.bincount(self.code_m, minlength=self.n_labels)
        own_m: np.ndarray = self.code_m == label
        if size_c[label] >= self.enough:
            return own_m
        rare_m: np.ndarray = size_c[self.code_m] < self.enough
        return rare_m if rare_m.sum() >= self.enough else np.ones(len(self.code_m), dtype=bool)

    def p_values(self, score_kn: np.ndarray, label: int) -> np.ndarray:
        """Compute the p-value of each cell for one label, shape (n,), from the scores of all classifiers."""
        chosen_m = self.compared_with(label)
        lower_n = np.ones(score_kn.shape[1])
        for part, score_n in enumerate(score_kn):
            known = np.sort(self.score_m[chosen_m & (self.part_m == part)])
            lower_n += np.searchsorted(known, score_n, side="right")
        p_n: np.ndarray = lower_n / (chosen_m.sum() + 1)
        return p_n

    def p_values_of_held_out(self, score_m: np.ndarray, label: int) -> np.ndarray:
        """Compute the p-value of each held-out cell for one label, shape (m,).

        `score_m` holds the scores of the held-out cells for the label, by the classifiers that have not seen the cells.
        """
        chosen_m, p_m = self.compared_with(label), np.empty(len(score_m))
        for part in np.unique(self.part_m):
            own_m = self.part_m == part
            known = np.sort(self.score_m[chosen_m & ~own_m])
            p_m[own_m] = (np.searchsorted(known, score_m[own_m], side="right") + 1) / (len(known) + 1)
        return p_m
