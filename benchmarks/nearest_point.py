"""Distances of given states from a path through expression space, and straight lines for comparison."""

from __future__ import annotations

import anndata
import numpy as np
import scipy.sparse as sp


def log_normalized(mean_tg: np.ndarray) -> np.ndarray:
    """Compute log(1 + counts per 10,000)."""
    mean_tg = np.asarray(mean_tg, dtype=np.float64)
    return np.log1p(mean_tg / mean_tg.sum(1, keepdims=True) * 1e4)


def to_polyline(states_ng: np.ndarray, path_tg: np.ndarray) -> np.ndarray:
    """Compute the Euclidean distance of each state to the nearest point of a polyline, shape (n,)."""
    return nearest_on(states_ng, path_tg)[1]


def nearest_on(states_ng: np.ndarray, path_tg: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest point of a polyline to each state, shape (n, g), and its distance, shape (n,)."""
    start_sg, step_sg = path_tg[:-1], np.diff(path_tg, axis=0)
    squared_s = np.maximum((step_sg**2).sum(1), 1e-30)
    points, distances = [], []
    for state_g in states_ng:
        share_s = np.clip(((state_g - start_sg) * step_sg).sum(1) / squared_s, 0, 1)
        point_sg = start_sg + share_s[:, None] * step_sg
        distance_s = np.linalg.norm(point_sg - state_g, axis=1)
        points.append(point_sg[distance_s.argmin()])
        distances.append(distance_s.min())
    return np.stack(points), np.asarray(distances)


def pca_line(
    adata: anndata.AnnData, start: np.ndarray, end: np.ndarray, *, components: int = 50, steps: int = 50
) -> np.ndarray:
    """Compute the straight line between two populations' centroids in the PCA of log-normalized counts, (t, g)."""
    import scanpy as sc

    cells = anndata.AnnData(adata.X.copy(), obs=adata.obs[[]], var=adata.var[[]])
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=min(components, min(cells.shape) - 1))
    centre_g = np.asarray(cells.X.mean(0)).ravel()
    a, b = (cells.obsm["X_pca"][mask].mean(0) for mask in (start, end))
    return centre_g + (a + np.linspace(0, 1, steps)[:, None] * (b - a)) @ cells.varm["PCs"].T


def means_line(adata: anndata.AnnData, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Compute the straight line between the mean proportions of two populations, and log-normalize its points."""
    proportion = sp.diags(1 / np.asarray(adata.X.sum(1)).ravel()) @ adata.X
    a, b = (np.asarray(proportion[mask].mean(0)).ravel() for mask in (start, end))
    return log_normalized(a + np.linspace(0, 1, 50)[:, None] * (b - a))
