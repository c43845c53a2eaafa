"""Selection of cells at regular intervals."""

from __future__ import annotations

import numpy as np


def even(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the given rows, chosen at regular intervals.

    >>> even(np.arange(5), 2)
    array([0, 3])
    """
    return rows[:: max(1, -(-len(rows) // most))]
