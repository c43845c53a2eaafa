"""The joint effect of perturbations that have never been combined, predicted from their separate effects.

Where two perturbations change a gene in opposite directions, or only one of them changes it, their changes add up.
Where both raise it, or both lower it, their separate effects do not show whether the second adds to the first or has
nothing left to do. Then the prediction is the mean of the two cases: half the sum and half the stronger change.

Shapes: p perturbations, g genes.
"""

from __future__ import annotations

import numpy as np


def combined(change_pg: np.ndarray) -> np.ndarray:
    """Change under all perturbations together, shape (g,).

    Parameters
    ----------
    change_pg
        Change under each perturbation alone, log ratios or differences.

    >>> combined(np.array([[1.0, 1.0, -2.0, 0.0], [0.5, -1.5, -1.0, 3.0]])).tolist()
    [1.25, -0.5, -2.5, 3.0]
    """
    strongest_g = change_pg.max(0).clip(min=0) + change_pg.min(0).clip(max=0)
    result: np.ndarray = (change_pg.sum(0) + strongest_g) / 2
    return result
