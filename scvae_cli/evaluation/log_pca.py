"""Principal components of log-normalized counts, which are the usual embedding of cells in scanpy.

The counts of each cell are scaled to the median library size and log1p-transformed. Real-valued data are used without a
transformation.

Letters in array shapes: n cells, g genes, c components.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.neighbors import nearest_neighbors, shared

COMPONENTS = 30


def log_normalized(counts: Counts, *, library: float | None = None) -> sp.csr_matrix:
    """Scale counts to one library size and return their log1p, shape (n, g). Real-valued data are returned unchanged.

    `library` is the library size to which counts are scaled. If `library` is None, the median library size of the cells
    is used.
    """
    if counts.real:
        matrix: sp.csr_matrix = counts.matrix
        return matrix
    # A cell without counts has only zeros, so any library size above 0 can be used for the cell.
    library_n = np.where(counts.filled, counts.library_n, 1.0)
    target = float(np.median(library_n)) if library is None else library
    counts_ng = counts.matrix.tocsr()
    factor_n = target / library_n
    values = np.log1p(counts_ng.data * np.repeat(factor_n, np.diff(counts_ng.indptr)))
    return sp.csr_matrix((values, counts_ng.indices, counts_ng.indptr), shape=counts_ng.shape)


def principal_components(logged: sp.csr_matrix, n_components: int = COMPONENTS) -> np.ndarray:
    """Compute the positions of the cells on the first principal components, shape (n, c).

    The number of components is less than the number of cells and less than the number of genes, because the iterative
    solver cannot find more components. With a single gene, the result contains the centered values of the gene. If all
    cells have the same values, all positions are 0.
    """
    from sklearn.decomposition import PCA

    most = min(logged.shape) - 1
    if most < 1:
        values_ng = logged.toarray().astype(np.float64)
        centered_ng: np.ndarray = values_ng - values_ng.mean(0)
        return centered_ng
    if not (logged.max(axis=0) != logged.min(axis=0)).nnz:
        return np.zeros((logged.shape[0], min(n_components, most)))
    # The solver "arpack" takes sparse matrices, and does not compute the covariance of all pairs of genes.
    pca = PCA(min(n_components, most), svd_solver="arpack", random_state=0)
    found: np.ndarray = pca.fit_transform(logged.astype(np.float64))
    return found


def shared_by_bootstrap(logged: sp.csr_matrix, *, n_pcas: int = 2, seed: int = 0) -> float:
    """Compute the mean fraction of a cell's 15 nearest neighbors that two PCAs of bootstrapped genes have in common.

    Each PCA uses a bootstrap sample of the genes, that is, genes are drawn with replacement. The mean fraction of
    neighbors in common shows how many neighbors two reasonable embeddings of the cells can be expected to share.
    """
    random, n_genes = np.random.default_rng(seed), logged.shape[1]
    nearest = [
        nearest_neighbors(principal_components(logged[:, random.integers(n_genes, size=n_genes)]))
        for _ in range(n_pcas)
    ]
    return float(np.mean([shared(a_nm, b_nm) for a_nm, b_nm in combinations(nearest, 2)]))
