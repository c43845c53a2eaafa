"""A baseline that denoises counts by principal component analysis.

Counts are scaled to a common library size, log1p-transformed, projected on the first principal components, and
transformed back to expected counts at the library size of each cell. Values that are transformed back may be zero or
negative. However, with an expected count of zero, an observed molecule would have the probability zero. Expected counts
are therefore raised to at least a tenth of the gene's average. Among the fractions that were tried, a tenth gave the
best predictions.

Letters in array shapes: n cells, g genes, c components.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.log_pca import log_normalized
from scvae_cli.latent.posteriors import BLOCK_CELLS

COMPONENTS = (5, 10, 20, 30, 50)
_LEAST_SHARE = 0.1
# Smallest and largest inverse dispersion that is estimated from moments.
_THETA_RANGE = (1e-2, 1e4)


class PcaModel:
    """A principal component analysis of log-normalized counts, from which expected counts are computed."""

    def __init__(self, counts: Counts) -> None:
        from sklearn.decomposition import PCA

        self._counts = counts
        library_n = counts.library_n
        self._depth = float(np.median(library_n))
        logged = log_normalized(counts)
        n_most = min(max(COMPONENTS), counts.n_genes - 1, counts.n_cells - 1)
        self._pca = PCA(n_most, svd_solver="covariance_eigh").fit(logged)
        self._scores_nc = self._pca.transform(logged)
        total_g = np.asarray(counts.matrix.sum(0), dtype=np.float64).ravel()
        self._least_g = _LEAST_SHARE * self._depth * total_g / total_g.sum()

    @property
    def components(self) -> tuple[int, ...]:
        """Numbers of principal components with which expected counts can be computed."""
        return tuple(c for c in COMPONENTS if c <= self._scores_nc.shape[1]) or (self._scores_nc.shape[1],)

    def expected(self, n_components: int) -> Iterator[np.ndarray]:
        """Compute expected counts of all cells at their own library sizes, in blocks of cells."""
        library_n = self._counts.library_n
        for start in range(0, len(library_n), BLOCK_CELLS):
            rows = slice(start, start + BLOCK_CELLS)
            logged_ng = self._scores_nc[rows, :n_components] @ self._pca.components_[:n_components] + self._pca.mean_
            mean_ng = np.maximum(np.expm1(logged_ng), self._least_g)
            yield mean_ng * (library_n[rows] / mean_ng.sum(1))[:, None]

    def expected_of_cells(self, n_components: int) -> Iterator[np.ndarray]:
        """Compute expected counts that also depend on the observed counts of each cell, in blocks of cells.

        The dispersion of each gene is estimated from the differences between the counts and the results of `expected`.
        """
        over_g, squared_g = np.zeros((2, self._counts.n_genes))
        for x_ng, mean_ng in self._with_counts(n_components):
            over_g += ((x_ng - mean_ng) ** 2 - mean_ng).sum(0)
            squared_g += (mean_ng**2).sum(0)
        theta_g = squared_g / np.maximum(over_g, squared_g / _THETA_RANGE[1])
        theta_g = np.maximum(theta_g, _THETA_RANGE[0])
        for x_ng, mean_ng in self._with_counts(n_components):
            yield mean_ng * (x_ng + theta_g) / (mean_ng + theta_g)

    def _with_counts(self, n_components: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = 0
        for mean_ng in self.expected(n_components):
            yield self._counts.matrix[start : start + len(mean_ng)].toarray(), mean_ng
            start += len(mean_ng)
