"""Nearest neighbors of cells in an embedding, and the fraction of neighbors that two embeddings have in common.

Letters in array shapes: n cells, k coordinates, m neighbors.
"""

from __future__ import annotations

import numpy as np

# The number of neighbors that scanpy.pp.neighbors uses by default.
NEIGHBORS = 15


def nearest_neighbors(x_nk: np.ndarray, n_neighbors: int = NEIGHBORS) -> np.ndarray:
    """Return the indices of the nearest other cells of each cell by Euclidean distance, nearest first, shape (n, m).

    If the data have at most m + 1 cells, the neighbors of a cell are all other cells.
    """
    return neighbors_and_distances(x_nk, n_neighbors)[0]


def neighbors_and_distances(x_nk: np.ndarray, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and Euclidean distances of the nearest other cells of each cell, each of shape (n, m)."""
    from sklearn.neighbors import NearestNeighbors

    distance_nm, index_nm = NearestNeighbors(n_neighbors=min(n_neighbors, len(x_nk) - 1)).fit(x_nk).kneighbors()
    return index_nm, distance_nm


def shared(a_nm: np.ndarray, b_nm: np.ndarray) -> float:
    """Compute the mean fraction of neighbors that two lists of neighbors have in common.

    >>> shared(np.array([[1, 2], [0, 2]]), np.array([[2, 3], [2, 0]]))
    0.75
    """
    both = np.sort(np.concatenate([a_nm, b_nm], axis=1), axis=1)
    return float((both[:, 1:] == both[:, :-1]).sum() / a_nm.size)


def shared_by_chance(n_cells: int, n_neighbors: int = NEIGHBORS) -> float:
    """Return the expected fraction of neighbors that two unrelated embeddings of the cells have in common.

    >>> shared_by_chance(151), shared_by_chance(4)
    (0.1, 1.0)
    """
    return min(n_neighbors, n_cells - 1) / (n_cells - 1)
