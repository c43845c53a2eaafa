"""Recognition of cells that belong to none of the known types, by relative Mahalanobis distances.

The novelty of a cell is its squared Mahalanobis distance from the nearest known type, minus its squared Mahalanobis
distance from all cells (Ren et al. 2021, doi:10.48550/arXiv.2106.09022). The distance from a type is computed with the
center of the type and the covariance within types. The distance from all cells is computed with the center and the
covariance of all cells. Along directions of technical variation, even a cell of a known type may be far from the center
of the type. The difference of the two Mahalanobis distances removes the influence of technical variation. Mahalanobis
distances are computed from decoded states in expression space. The probabilities of a classifier say little about
novelty, because a classifier only compares known types with each other.

Letters in array shapes: n cells, m labeled cells, c labels, j coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Metric:
    """Centers, and a factor of the inverse covariance matrix, which define Mahalanobis distances.

    The Mahalanobis distance of a position x from a center c is the length of the vector (x − c)·factor.
    """

    center_cj: np.ndarray
    factor_jj: np.ndarray

    def squared_distances(self, x_nj: np.ndarray) -> np.ndarray:
        """Compute the squared Mahalanobis distances of n positions from c centers, shape (n, c)."""
        from scipy.spatial.distance import cdist

        found: np.ndarray = cdist(x_nj @ self.factor_jj, self.center_cj @ self.factor_jj, "sqeuclidean")
        return found


def metric_of_labels(x_mj: np.ndarray, code_m: np.ndarray, n_labels: int) -> Metric:
    """Estimate the center of each label, and the covariance of cells around the centers of their labels."""
    sum_cj = np.zeros((n_labels, x_mj.shape[1]))
    np.add.at(sum_cj, code_m, x_mj)
    center_cj = sum_cj / np.bincount(code_m, minlength=n_labels)[:, None]
    return Metric(center_cj, _factor(x_mj - center_cj[code_m]))


def metric_of_all(x_nj: np.ndarray) -> Metric:
    """Estimate the center and the covariance of all cells."""
    center_1j = x_nj.mean(axis=0, keepdims=True, dtype=np.float64)
    return Metric(center_1j, _factor(x_nj - center_1j))


def nearest(x_nj: np.ndarray, labels: Metric) -> np.ndarray:
    """Compute the squared distance of cells to the nearest known type, shape (n,)."""
    found: np.ndarray = labels.squared_distances(x_nj).min(axis=1)
    return found


def novelty(x_nj: np.ndarray, labels: Metric, everything: Metric) -> np.ndarray:
    """Compute the novelty of each cell, which is high if the cell is unlike all known types; shape (n,)."""
    found: np.ndarray = nearest(x_nj, labels) - everything.squared_distances(x_nj)[:, 0]
    return found


def _factor(centered_nj: np.ndarray) -> np.ndarray:
    """Return F, such that F·Fᵀ is the inverse of the shrunken covariance (Ledoit and Wolf 2004); shape (j, j)."""
    from sklearn.covariance import ledoit_wolf

    covariance_jj, _ = ledoit_wolf(centered_nj, assume_centered=True)
    value_j, vector_jj = np.linalg.eigh(covariance_jj)
    # Along directions in which the cells do not vary, the covariance is 0, and the distance is set to 0.
    kept_j = value_j > 1e-12 * max(float(value_j.max()), 1e-300)
    inverse_j = np.where(kept_j, 1 / np.sqrt(np.where(kept_j, value_j, 1.0)), 0.0)
    factor_jj: np.ndarray = vector_jj * inverse_j
    return factor_jj
