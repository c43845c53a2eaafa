"""An even selection of many cells."""

from __future__ import annotations

import numpy as np


def even(rows: np.ndarray, most: int) -> np.ndarray:
    """An even selection of at most `most` rows.

    >>> even(np.arange(5), 2)
    array([0, 3])
    """
    return rows[:: max(1, -(-len(rows) // most))]
