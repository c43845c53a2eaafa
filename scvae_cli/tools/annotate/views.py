"""Views of a cell: three matrices of coordinates, from which classifiers predict the label of the cell.

- **state** is the position of the decoded state in expression space. The view `state` holds only what the model has
  learned from all cells, so few labeled cells are enough to train a classifier on this view.
- **expression** has the principal components of the embedding (`scvae_cli.model.expression_space`). The view
  `expression` also contains part of the residuals, that is, of the difference between observed and expected counts.
- **genes** has principal components of the log-normalized counts of the modeled genes, each gene scaled to unit
  variance. The genes contain information that the model lacks. A logistic regression on the view `genes` alone is
  also the baseline with which the quality of the predicted labels is compared.

The scales of all views and the principal components of the genes are computed from the labeled cells.

Letters in array shapes: n cells, m labeled cells, g genes, j coordinates, d coordinates by which cells are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from scvae_cli.evaluation.log_pca import log_normalized
from scvae_cli.latent.expression import positions_and_states
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.session import Session
from scvae_cli.tools.annotate.classifier import Regression

VIEWS = ("state", "expression", "genes")
GENES = VIEWS.index("genes")
COMPONENTS = 300
# Inverse strength of the L2 penalty of each view's logistic regression. The penalty is strongest for the genes, because
# the view `genes` has the most coordinates.
INVERSE_PENALTY = (1.0, 1.0, 0.1)
# Scaled genes are clipped at _MOST, as scanpy's `sc.pp.scale(max_value=10)` does.
_MOST = 10.0
# Number of principal components of the genes by which cells are compared (`difference`). With all components, cells
# that do not differ are distinguished worse than by chance, because a classifier learns the noise of single cells.
COMPARED_COMPONENTS = 30


@dataclass(frozen=True)
class Coordinates:
    """Coordinates of cells before scaling.

    Parameters
    ----------
    state_nj
        Positions of the decoded states in expression space.
    expression_nj
        Embedding of the cells in expression space.
    log_ng
        Log-normalized counts of the genes, as a CSR matrix of shape (n, g).
    """

    state_nj: np.ndarray
    expression_nj: np.ndarray
    log_ng: sp.csr_matrix

    def cells(self, rows: np.ndarray) -> Coordinates:
        """Return the coordinates of the cells with the indices `rows`."""
        return Coordinates(self.state_nj[rows], self.expression_nj[rows], self.log_ng[rows])


def coordinates(session: Session, *, library: float, shared_g: np.ndarray | None = None) -> Coordinates:
    """Compute the coordinates of the cells of a session.

    Parameters
    ----------
    library
        Library size to which the counts are normalized.
    shared_g
        Indices of the genes to use; None for all genes of the model.

    Raises
    ------
    ModelError
        If the model was trained by an earlier version, which did not compute the map to expression space.
    """
    position_nj, state_nj = positions_and_states(
        session.model,
        session.counts_and_batches(partly=True),
        session.cells.mean_nk,
        missing=session.missing_genes,
        progress=session.progress,
    )
    counts = session.counts if shared_g is None else session.counts.genes(shared_g)
    return Coordinates(
        state_nj=state_nj,
        expression_nj=position_nj[:, : state_nj.shape[1]],
        log_ng=log_normalized(counts, library=library),
    )


def without_mapping(session: Session, cells: Coordinates, rows: np.ndarray) -> Coordinates:
    """Replace the decoded states of some cells by those of an encoder that does not correct for the cells' batches.

    Parameters
    ----------
    session, cells
        Session of a model with mapped batches, and the coordinates of its cells.
    rows
        Indices of the cells whose states are replaced.
    """
    model, counts = session.model, session.counts_and_batches(partly=True).cells(rows)
    mean_nk = posteriors(model, counts, batch_n=np.full(len(rows), -1), progress=session.progress).mean_nk
    state_nj = cells.state_nj.copy()
    _, state_nj[rows] = positions_and_states(
        model, counts, mean_nk, missing=session.missing_genes, progress=session.progress
    )
    return replace(cells, state_nj=state_nj)


@dataclass(frozen=True)
class Scaling:
    """The map from the coordinates of a cell to its views, fitted to labeled cells.

    Parameters
    ----------
    center_j, scale, state_center_j, state_scale
        Mean of each coordinate, and root mean square over all coordinates, of the embedding and of the decoded states.
        All coordinates are divided by one number, so that the ratios of distances in expression space do not change.
    deviation_g
        Standard deviation of each gene; 1 for constant genes.
    gene_center_g, component_gj
        Mean of the scaled genes, and their principal components.
    """

    center_j: np.ndarray
    scale: float
    state_center_j: np.ndarray
    state_scale: float
    deviation_g: np.ndarray
    gene_center_g: np.ndarray
    component_gj: np.ndarray

    def states(self, cells: Coordinates) -> np.ndarray:
        """Compute the view `state` of cells, the first of the views; shape (n, j)."""
        state_nj: np.ndarray = (cells.state_nj - self.state_center_j) / self.state_scale
        return state_nj

    def views(self, cells: Coordinates) -> tuple[np.ndarray, ...]:
        """Compute the views of cells, one array of shape (n, j) for each name in VIEWS; float32."""
        state_nj, expression_nj, scaled_ng = self.views_of_genes(cells)
        return state_nj, expression_nj, scaled_ng @ self.component_gj - self.gene_center_g @ self.component_gj

    def compared(self, cells: Coordinates) -> np.ndarray:
        """Compute the coordinates by which cells are compared with labeled cells: embedding and genes; shape (n, d)."""
        _, expression_nj, scaled_ng = self.views_of_genes(cells)
        component_gj = self.component_gj[:, :COMPARED_COMPONENTS]
        genes_nj = scaled_ng @ component_gj - self.gene_center_g @ component_gj
        compared_nd: np.ndarray = np.concatenate([expression_nj, genes_nj], axis=1).astype(np.float32)
        return compared_nd

    def views_of_genes(self, cells: Coordinates) -> tuple[np.ndarray, np.ndarray, sp.csr_matrix]:
        """Compute the views of cells, with scaled genes (a CSR matrix) in place of principal components of genes."""
        state_nj = self.states(cells)
        expression_nj = (cells.expression_nj - self.center_j) / self.scale
        return state_nj, expression_nj, _scaled(cells.log_ng, self.deviation_g)

    def on_genes(self, fitted: Regression) -> Regression:
        """Convert a regression on principal components of the genes to an equivalent regression on the scaled genes."""
        coefficient_gc = self.component_gj @ fitted.coefficient_jc
        return Regression(coefficient_gc, fitted.intercept_c - self.gene_center_g @ coefficient_gc)


def fit_scaling(cells: Coordinates) -> Scaling:
    """Compute the scales of the views and the principal components of the genes from labeled cells."""
    from sklearn.decomposition import PCA

    center_j, scale = _center_and_scale(cells.expression_nj)
    state_center_j, state_scale = _center_and_scale(cells.state_nj)
    deviation_g = _deviations(cells.log_ng)
    scaled_mg = _scaled(cells.log_ng, deviation_g).toarray()
    most = max(1, min(COMPONENTS, *(size - 1 for size in scaled_mg.shape)))
    pca = PCA(most, svd_solver="randomized", random_state=0).fit(scaled_mg)
    return Scaling(
        center_j=center_j,
        scale=scale,
        state_center_j=state_center_j,
        state_scale=state_scale,
        deviation_g=deviation_g,
        gene_center_g=pca.mean_.astype(np.float32),
        component_gj=np.ascontiguousarray(pca.components_.T, dtype=np.float32),
    )


def _center_and_scale(position_mj: np.ndarray) -> tuple[np.ndarray, float]:
    center_j = position_mj.mean(axis=0)
    scale = float(np.sqrt(np.mean((position_mj - center_j) ** 2)))
    return center_j, scale if scale > 0 else 1.0


def _deviations(log_mg: sp.csr_matrix) -> np.ndarray:
    """Compute the standard deviation of each gene, shape (g,), float32; 1 for constant genes."""
    mean_g = np.asarray(log_mg.mean(axis=0, dtype=np.float64)).ravel()
    square_g = np.asarray(log_mg.multiply(log_mg).mean(axis=0, dtype=np.float64)).ravel()
    deviation_g = np.sqrt(np.maximum(square_g - mean_g**2, 0.0))
    # If the deviation is below the rounding error of the mean, the gene is constant.
    constant_g = deviation_g <= 1e-6 * np.maximum(np.abs(mean_g), 1e-12)
    deviation_g[constant_g] = 1.0
    found: np.ndarray = deviation_g.astype(np.float32)
    return found


def _scaled(log_ng: sp.csr_matrix, deviation_g: np.ndarray) -> sp.csr_matrix:
    """Divide each gene by its standard deviation, and clip the result."""
    scaled_ng = sp.csr_matrix(
        (log_ng.data / deviation_g[log_ng.indices], log_ng.indices, log_ng.indptr), shape=log_ng.shape, dtype=np.float32
    )
    np.clip(scaled_ng.data, -_MOST, _MOST, out=scaled_ng.data)
    return scaled_ng
