"""Three signs that cells of a mapped batch have no counterpart among the training cells.

- **Position after mapping**: the squared Mahalanobis distance of the posterior mean to the nearest component of the
  density. Unlike the density, the distance does not depend on how common a type is.
- **Position before mapping**: the same distance without the batch's shifts of the encoder. Mapping may move cells of a
  new type to training cells of another type.
- **Counts**: the squared difference between counts and expected counts, in units of the variance, averaged over genes.
  Marker genes of a new type differ in all its cells, so counts are added up over neighbors first.

Each sign is averaged over a cell and its nearest neighbors by log-normalized counts, because a single cell is noisy,
but the cells of a new type differ from the training cells in the same way.

Letters in array shapes: n cells, g genes, k latent dimensions, m neighbors.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import CellTable
from scvae_cli.evaluation.log_pca import COMPONENTS, log_normalized
from scvae_cli.evaluation.neighbors import NEIGHBORS
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import CountOutput

# At most one in this many cells of a batch are neighbors of a cell, so that a small batch is not averaged as a whole.
_CELLS_PER_NEIGHBOR = 5
# Largest contribution of a gene to the sign of the counts, so that single genes do not decide.
_MOST_SQUARE = 50.0
# Smallest variance of a count. Otherwise one count of a gene that is expected to be silent would decide.
_LEAST_VARIANCE = 1e-3
_BLOCK_CELLS = 512


@torch.inference_mode()
def lacking_signs(model: Model, counts: Counts, batch: int) -> np.ndarray:
    """Compute the three signs of cells of one batch, shape (3, n); larger values are stronger signs.

    Parameters
    ----------
    counts
        Cells with the model's genes.
    batch
        Index of the batch of the cells in the model.
    """
    average_nn, residual_ng, variance_ng = _averages(counts), [], []
    distances: list[list[np.ndarray]] = [[], []]
    for index in (batch, -1):  # no batch has the index −1, so the encoder is not shifted
        table = CellTable(counts.matrix, np.full(counts.n_cells, index), model.device)
        for _, cells in table.in_order(_BLOCK_CELLS):
            mean_nk = model.vae.encode(cells).mean_nk
            square_n = model.density.squared_distance(mean_nk.to(model.density.mean_ck))
            distances[index == -1].append(square_n.double().cpu().numpy())
            if index == batch:
                output = model.vae.decode(mean_nk, cells.batch_n)
                assert isinstance(output, CountOutput), "only models of counts are mapped onto"
                expected_ng, block_ng = _moments(output, cells.library_n)
                residual_ng.append((cells.x_ng - expected_ng).cpu().numpy())
                variance_ng.append(block_ng.cpu().numpy() + _LEAST_VARIANCE)
    n_averaged_n = np.diff(average_nn.indptr)
    # The mean of m residuals has 1/m of their mean variance.
    square_ng = (average_nn @ np.concatenate(residual_ng)) ** 2 / (average_nn @ np.concatenate(variance_ng))
    counts_n = np.minimum(square_ng * n_averaged_n[:, None], _MOST_SQUARE).mean(1)
    return np.stack([*(average_nn @ np.concatenate(parts) for parts in distances), counts_n])


def _averages(counts: Counts) -> sp.csr_matrix:
    """Return the matrix that averages a value over each cell and its nearest neighbors, shape (n, n)."""
    n = counts.n_cells
    n_neighbors = min(NEIGHBORS, n // _CELLS_PER_NEIGHBOR)
    member_nm = np.arange(n)[:, None]
    if n_neighbors:
        member_nm = np.concatenate([member_nm, _nearest(log_normalized(counts), n_neighbors)], axis=1)
    m = member_nm.shape[1]
    starts = np.arange(0, n * m + 1, m)
    return sp.csr_matrix((np.full(n * m, 1 / m), member_nm.ravel(), starts), shape=(n, n))


def _nearest(logged: sp.csr_matrix, n_neighbors: int) -> np.ndarray:
    """Return the nearest other cells of each cell by the first principal components, shape (n, m).

    The positions of the cells come from the scalar products of all pairs of cells (Gower 1966, doi:10.2307/2333639), so
    the number of cells must be small. The positions are the same as those of `principal_components`, apart from signs.
    `principal_components` and `nearest_neighbors` import scikit-learn, which takes longer than this computation.
    """
    product_nn = torch.from_numpy((logged.astype(np.float64) @ logged.T.astype(np.float64)).toarray())
    product_nn = product_nn - product_nn.mean(0) - product_nn.mean(1, keepdim=True) + product_nn.mean()
    square_n, direction_nn = torch.linalg.eigh(product_nn)
    n_components = max(1, min(COMPONENTS, min(logged.shape) - 1))
    position_nc = direction_nn[:, -n_components:] * square_n[-n_components:].clamp(min=0).sqrt()
    distance_nn = torch.cdist(position_nc, position_nc).fill_diagonal_(torch.inf)
    nearest_nm: np.ndarray = distance_nn.topk(n_neighbors, largest=False).indices.numpy()
    return nearest_nm


def _moments(output: CountOutput, library_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute mean and variance of the counts with zero inflation, each of shape (n, g).

    A count with the mean μ and the variance μ + μ²/θ that is zero with the probability π has the mean (1 − π)μ and the
    variance (1 − π)(μ + μ²/θ + πμ²). The means of a cell sum to its library size.
    """
    present_n = output.mean_ng(torch.ones_like(library_n), with_zero_inflation=True).sum(1)
    mu_ng = output.mean_ng(library_n / present_n)
    logit_ng, log_theta_g = output.zero_logit_ng, output.log_theta_g
    zero_ng = torch.zeros_like(mu_ng) if logit_ng is None else torch.sigmoid(logit_ng)
    overdispersion_g = torch.zeros(output.n_genes).to(mu_ng) if log_theta_g is None else (-log_theta_g).exp()
    return (1 - zero_ng) * mu_ng, (1 - zero_ng) * (mu_ng + mu_ng.square() * (overdispersion_g + zero_ng))
