"""Novelty of cells, compared with the novelty of held-out labeled cells.

Letters in array shapes: n cells, h held-out labeled cells, j coordinates, k parts of the labeled cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.tools.annotate.conformal import HeldOutScores, enough_cells
from scvae_cli.tools.annotate.learning import Learned
from scvae_cli.tools.annotate.novelty import Metric, novelty

# Number of cells whose distances from all labels are computed at once.
_BLOCK_CELLS = 4096


@dataclass(frozen=True)
class HeldOutNovelty:
    """Mahalanobis metrics that give the novelty of cells, and the novelty of the held-out labeled cells.

    Parameters
    ----------
    metrics_k, everything
        Metric of the labels for each part of the labeled cells, and metric of all cells.
    scores
        Negative novelty and predicted label of each held-out cell.
    p_h
        p-value of the hypothesis that a held-out cell belongs to a known type, shape (h,).
    """

    metrics_k: list[Metric]
    everything: Metric
    scores: HeldOutScores
    p_h: np.ndarray

    def of(self, state_nj: np.ndarray) -> np.ndarray:
        """Compute the novelty of cells for the classifier of each part, shape (k, n)."""
        found_kn = np.empty((len(self.metrics_k), len(state_nj)))
        for start in range(0, len(state_nj), _BLOCK_CELLS):
            rows = slice(start, start + _BLOCK_CELLS)
            for k, metric in enumerate(self.metrics_k):
                found_kn[k, rows] = novelty(state_nj[rows], metric, self.everything)
        return found_kn

    def p_values(self, novelty_kn: np.ndarray, label_n: np.ndarray) -> np.ndarray:
        """Compute the p-value of the hypothesis that a cell belongs to a known type, shape (n,).

        `label_n` contains the index of the predicted label of each cell.
        """
        p_n = np.empty(len(label_n))
        for c in np.unique(label_n):
            p_n[label_n == c] = self.scores.p_values(-novelty_kn[:, label_n == c], c)
        return p_n


def held_out_novelty(learned: Learned, everything: Metric, label_h: np.ndarray, *, rate: float) -> HeldOutNovelty:
    """Compute the novelty of the held-out labeled cells.

    Parameters
    ----------
    everything
        Mahalanobis metric of all cells.
    label_h
        Index of the predicted label of each held-out cell.
    rate
        Largest p-value of cells that are called unknown.
    """
    usual_h = everything.squared_distances(learned.state_hj)[:, 0] - learned.nearest_h
    scores = HeldOutScores(usual_h, label_h, learned.part_h, len(learned.names), enough_cells(rate))
    p_h = np.empty(len(label_h))
    for c in np.unique(label_h):
        p_h[label_h == c] = scores.p_values_of_held_out(usual_h, int(c))[label_h == c]
    return HeldOutNovelty(learned.metrics_k, everything, scores, p_h)
