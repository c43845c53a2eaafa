"""Perturbations at once that nobody has been under together: what their changes come to.

Where two do opposite things to a gene, or only one does anything, their changes add up. Where both raise it, or both
lower it, nothing that each does alone tells whether the second adds to the first, or finds done what it would have
done: then it is the mean of the two, half the sum and half the stronger change.

Shapes: p perturbations, g genes.
"""

from __future__ import annotations

import numpy as np


def combined(change_pg: np.ndarray) -> np.ndarray:
    """Change under all of some perturbations, shape (g,).

    Parameters
    ----------
    change_pg
        What each does alone, log ratios or differences.

    >>> combined(np.array([[1.0, 1.0, -2.0, 0.0], [0.5, -1.5, -1.0, 3.0]])).tolist()
    [1.25, -0.5, -2.5, 3.0]
    """
    strongest_g = change_pg.max(0).clip(min=0) + change_pg.min(0).clip(max=0)
    result: np.ndarray = (change_pg.sum(0) + strongest_g) / 2
    return result
