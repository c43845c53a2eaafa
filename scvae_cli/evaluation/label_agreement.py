"""Scores of how well an embedding separates known labels of cells: vote of neighbors, Leiden clusters, silhouette.

Letters in array shapes: n cells, k coordinates.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Any, NamedTuple

import numpy as np

from scvae_cli.evaluation.neighbors import NEIGHBORS

FOLDS, RESOLUTION = 5, 1.0
# Settings of Leiden clustering that scanpy recommends and plans to use by default.
LEIDEN: dict[str, Any] = {"flavor": "igraph", "n_iterations": 2, "directed": False}


class ClusterAgreement(NamedTuple):
    """Agreement of clusters with labels.

    The adjusted Rand index (`ari`) is 0 for random clusters, and the normalized mutual information (`nmi`) is at least
    0. If the clusters equal the labels, the adjusted Rand index and the normalized mutual information are 1.
    """

    ari: float
    nmi: float


def has_leiden() -> bool:
    """Return whether the package igraph, which Leiden clustering needs, is installed."""
    return importlib.util.find_spec("igraph") is not None


def vote(x_nk: np.ndarray, label_n: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Predict the label of each cell by a vote of its 15 nearest cells.

    The result is True for each cell whose label is predicted correctly, shape (n,). The cells are divided at random
    into five parts. The labels of the cells of one part are predicted from the cells of the other four parts.

    Parameters
    ----------
    label_n
        Labels as strings, shape (n,), for at least 10 cells.
    """
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    n_voters = min(NEIGHBORS, len(x_nk) - -(-len(x_nk) // FOLDS))
    predicted_n = cross_val_predict(KNeighborsClassifier(n_voters), x_nk, label_n, cv=folds)
    right_n: np.ndarray = predicted_n == label_n
    return right_n


def cluster_agreement(x_nk: np.ndarray, label_n: np.ndarray, *, seed: int = 0) -> ClusterAgreement:
    """Compare labels with Leiden clusters at resolution 1.

    The neighbor graph of the Leiden clustering has 15 neighbors per cell and Gaussian weights.

    Raises
    ------
    ImportError
        If igraph is not installed (see `has_leiden`).
    """
    import anndata
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    adata = anndata.AnnData(x_nk.astype(np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        near: dict[str, Any] = {"n_neighbors": min(NEIGHBORS, len(x_nk) - 1), "transformer": "sklearn"}
        # scanpy's default weights need umap, whose compilation takes longer than all other steps of this function.
        sc.pp.neighbors(adata, use_rep="X", method="gauss", random_state=seed, **near)
        sc.tl.leiden(adata, RESOLUTION, random_state=seed, **LEIDEN)
    clusters = np.asarray(adata.obs["leiden"])
    return ClusterAgreement(
        ari=float(adjusted_rand_score(label_n, clusters)), nmi=float(normalized_mutual_info_score(label_n, clusters))
    )


def silhouette(x_nk: np.ndarray, label_n: np.ndarray) -> float:
    """Compute the mean silhouette of the labels, from −1 to 1, with Euclidean distances."""
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(x_nk, label_n))
