"""Means and variances of the features of a sparse matrix, computed for some cells at a time.

Letters in array shapes: n cells, g features.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

CELLS_AT_ONCE = 4096
# Blocks are smaller if values are also transformed in float64.
_TRANSFORMED_AT_ONCE = 256
# The standard error of a mean over 10,000 cells is a hundredth of the standard deviation.
_ENOUGH_CELLS = 10_000
# A feature whose standard deviation is below this fraction of its mean is constant up to rounding to float32.
_ROUNDING = 1e-6


def moments(matrix: sp.csr_matrix, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean and the variance of each feature over the cells with the indices `cells`.

    The means and the variances have shape (g,) and type float64. The variance has the divisor n, not n − 1. The
    variance of a constant feature is exactly 0. Two passes over the data avoid a loss of precision for features whose
    values are far from zero.
    """
    n, n_features = len(cells), matrix.shape[1]
    sum_g, seen_g, spread_g = np.zeros(n_features), np.zeros(n_features), np.zeros(n_features)
    for block in cell_blocks(matrix, cells):
        sum_g += np.bincount(block.indices, block.data, n_features)
        seen_g += np.bincount(block.indices, minlength=n_features)
    mean_g = sum_g / n
    for block in cell_blocks(matrix, cells):
        rest = block.data.astype(np.float64) - mean_g[block.indices]
        spread_g += np.bincount(block.indices, rest**2, n_features)
    variance_g = (spread_g + (n - seen_g) * mean_g**2) / n
    return mean_g, np.where(variance_g > (_ROUNDING * mean_g) ** 2, variance_g, 0.0)


def mean_log1p(matrix: sp.csr_matrix, cells: np.ndarray, depth: float) -> np.ndarray:
    """Compute the mean of log(1 + x · depth / library) of each gene over the cells with the indices `cells`.

    x is the count of the gene, library is the library size of the cell, and `depth` is the library size to which all
    cells are scaled. The result has shape (g,) and type float64. If there are many cells, only cells at regular
    intervals of `cells` are used.
    """
    some = cells[:: -(-len(cells) // _ENOUGH_CELLS)]
    sum_g = np.zeros(matrix.shape[1])
    for block in cell_blocks(matrix, some, size=_TRANSFORMED_AT_ONCE):
        library_n = block.sum(axis=1, dtype=np.float64).A1
        scale_m = np.repeat(depth / library_n, np.diff(block.indptr))
        sum_g += np.bincount(block.indices, np.log1p(block.data * scale_m), matrix.shape[1])
    return sum_g / len(some)


def cell_blocks(matrix: sp.csr_matrix, cells: np.ndarray, size: int = 0) -> Iterator[sp.csr_matrix]:
    """Return the rows with the indices `cells` in blocks of `size` rows, which limits the memory needed.

    If `size` is 0, a block has `CELLS_AT_ONCE` rows.
    """
    size = size or CELLS_AT_ONCE
    return (matrix[cells[start : start + size]] for start in range(0, len(cells), size))
