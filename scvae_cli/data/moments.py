"""Means and variances of every feature, of a sparse matrix, some cells at a time.

Shapes: n cells, g features.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

_CELLS_AT_ONCE = 4096
# Where their values are transformed in float64 as well.
_TRANSFORMED_AT_ONCE = 256
# A mean over so many cells is known to a hundredth of its standard deviation.
_ENOUGH_CELLS = 10_000
# A standard deviation below this share of the values' size is what rounding to float32 leaves of a constant.
_ROUNDING = 1e-6


def moments(matrix: sp.csr_matrix, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (over n) of each feature over some cells, by index; each of shape (g,), float64.

    Taken in two passes, so that a feature far from zero keeps its digits. The variance of a constant is exactly 0.
    """
    n, n_features = len(cells), matrix.shape[1]
    sum_g, seen_g, spread_g = np.zeros(n_features), np.zeros(n_features), np.zeros(n_features)
    for block in _blocks(matrix, cells):
        sum_g += np.bincount(block.indices, block.data, n_features)
        seen_g += np.bincount(block.indices, minlength=n_features)
    mean_g = sum_g / n
    for block in _blocks(matrix, cells):
        rest = block.data.astype(np.float64) - mean_g[block.indices]
        spread_g += np.bincount(block.indices, rest**2, n_features)
    variance_g = (spread_g + (n - seen_g) * mean_g**2) / n
    return mean_g, np.where(variance_g > (_ROUNDING * mean_g) ** 2, variance_g, 0.0)


def mean_log1p(matrix: sp.csr_matrix, cells: np.ndarray, depth: float) -> np.ndarray:
    """Mean of log(1 + x · depth / library) of each gene over some cells, by index, shape (g,), float64.

    Of many cells an even selection is taken.
    """
    some = cells[:: -(-len(cells) // _ENOUGH_CELLS)]
    sum_g = np.zeros(matrix.shape[1])
    for block in _blocks(matrix, some, size=_TRANSFORMED_AT_ONCE):
        library_n = block.sum(axis=1, dtype=np.float64).A1
        scale_m = np.repeat(depth / library_n, np.diff(block.indptr))
        sum_g += np.bincount(block.indices, np.log1p(block.data * scale_m), matrix.shape[1])
    return sum_g / len(some)


def _blocks(matrix: sp.csr_matrix, cells: np.ndarray, size: int = _CELLS_AT_ONCE) -> Iterator[sp.csr_matrix]:
    return (matrix[cells[start : start + size]] for start in range(0, len(cells), size))
