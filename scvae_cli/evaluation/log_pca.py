"""Principal components of log-normalized counts: the usual embedding without a model, as scanpy computes it.

The counts of each cell are scaled to the median library size and log1p-transformed. Real numbers, which have no
library size, are used as they are.

Shapes: n cells, g genes, c components.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.neighbors import nearest_neighbors, shared

COMPONENTS = 30


def log_normalized(counts: Counts, *, library: float | None = None) -> sp.csr_matrix:
    """Return log1p of the counts at one library size, shape (n, g); real numbers are returned as they are.

    `library` is the library size to which counts are scaled; None stands for the median of the cells.
    """
    if counts.real:
        matrix: sp.csr_matrix = counts.matrix
        return matrix
    # A cell without counts in these genes has only zeros.
    library_n = np.where(counts.filled, counts.library_n, 1.0)
    target = float(np.median(library_n)) if library is None else library
    logged = (sp.diags(target / library_n) @ counts.matrix).tocsr()
    logged.data = np.log1p(logged.data)
    return logged


def principal_components(logged: sp.csr_matrix, n_components: int = COMPONENTS) -> np.ndarray:
    """Compute the positions of the cells on the first principal components, shape (n, c).

    There are at most as many components as an iterative solver can find: one fewer than cells, and one fewer than
    genes. With a single gene, the result is the centered gene.
    """
    from sklearn.decomposition import PCA

    most = min(logged.shape) - 1
    if most < 1:
        values_ng = logged.toarray().astype(np.float64)
        centered_ng: np.ndarray = values_ng - values_ng.mean(0)
        return centered_ng
    # This solver takes sparse matrices, and does not compute the covariance of all pairs of genes.
    pca = PCA(min(n_components, most), svd_solver="arpack", random_state=0)
    found: np.ndarray = pca.fit_transform(logged.astype(np.float64))
    return found


def shared_by_bootstrap(logged: sp.csr_matrix, *, n_pcas: int = 2, seed: int = 0) -> float:
    """Compute the mean fraction of a cell's 15 nearest neighbors that two PCAs of bootstrapped genes have in common.

    Each PCA takes as many genes as there are, drawn with replacement. The fraction shows how many neighbors can be
    expected to be the same in two reasonable embeddings of the cells.
    """
    random, n_genes = np.random.default_rng(seed), logged.shape[1]
    nearest = [
        nearest_neighbors(principal_components(logged[:, random.integers(n_genes, size=n_genes)]))
        for _ in range(n_pcas)
    ]
    return float(np.mean([shared(a_nm, b_nm) for a_nm, b_nm in combinations(nearest, 2)]))
