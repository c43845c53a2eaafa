"""How well does an embedding separate the known labels of its cells?

- `knn_accuracy`: share of cells whose label is correctly predicted by the 15 nearest other cells (5-fold
  cross-validation).
- `nmi`, `ari`: agreement of Leiden clusters with the labels, for the resolution from 0.1 to 2.0 with the best NMI.
- `silhouette`: mean silhouette width of the labels, rescaled from −1…1 to 0…1.
- `bio`: mean of NMI, ARI and silhouette, as in scIB's score of bio conservation (Luecken et al. 2022).

All distances are Euclidean distances in the latent space. Cells without a label are left out. This script needs igraph
(the extra `demo`) in addition to the dependencies of scvae-cli.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

# Names of columns with labels. The first of them that exists in obs is used.
LABEL_COLUMNS = ("cell_type", "cell_line", "bulk_labels")
NEIGHBORS, FOLDS = 15, 5
RESOLUTIONS = [round(0.1 * step, 1) for step in range(1, 21)]


def labels_of(data: Path, cells: list[str]) -> np.ndarray | None:
    """Return the known labels of the named cells (None for a cell without a label); None for data without labels."""
    import anndata

    obs = anndata.read_h5ad(data, backed="r").obs
    column = next((name for name in LABEL_COLUMNS if name in obs), None)
    if column is None:
        return None
    labels = obs[column].loc[cells]
    return np.asarray([None if none else str(label) for label, none in zip(labels, labels.isna(), strict=True)])


def embedding_quality(latent: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the scores that the docstring of the module describes.

    Parameters
    ----------
    latent
        Positions, cells × dimensions.
    labels
        Label of each cell, None if unknown.
    """
    from sklearn.metrics import silhouette_score
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    known = np.asarray([label is not None for label in labels])
    latent, labels = latent[known], labels[known].astype(str)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    knn_accuracy = cross_val_score(KNeighborsClassifier(NEIGHBORS), latent, labels, cv=folds).mean()
    nmi, ari = _clustering(latent, labels)
    silhouette = (silhouette_score(latent, labels) + 1) / 2
    scores = {"knn_accuracy": knn_accuracy, "nmi": nmi, "ari": ari, "silhouette": silhouette}
    scores["bio"] = (nmi + ari + silhouette) / 3
    return {name: round(float(score), 4) for name, score in scores.items()}


def _clustering(latent: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Compute NMI and ARI of the Leiden clusters with the best NMI."""
    import anndata
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    adata = anndata.AnnData(latent)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(adata, n_neighbors=NEIGHBORS, use_rep="X", random_state=0)
        for resolution in RESOLUTIONS:
            sc.tl.leiden(adata, resolution, flavor="igraph", n_iterations=2, directed=False, random_state=0)
            clusters = adata.obs["leiden"]
            found.append((normalized_mutual_info_score(labels, clusters), adjusted_rand_score(labels, clusters)))
    return max(found)
