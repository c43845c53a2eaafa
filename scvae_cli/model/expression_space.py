"""Expression space: coordinates in which Euclidean distances between cells measure differences in expression.

A step of length 1 in latent space changes the expression little at some positions, and strongly at others. Neighbors,
clusters and UMAPs are therefore better computed in expression space. The expression of a cell in gene g is

    e_g = y_g(z) + w · r_g.

- **y** is the decoded state of the cell: the expected count, transformed so that a count has a standard deviation of 1
  (the isometric coordinate of `scvae_cli.model.geometry`). The expected count is decoded from the posterior mean, at
  the reference library size and with the average batch effect. The Euclidean distance between the decoded states y of
  two cells is the Fisher–Rao distance between their decoded distributions.
- **r** is the Pearson residual of the cell: the observed count minus the expected count, in standard deviations of a
  count. The expected count in a residual is computed with the library size and the batch of the cell. A residual
  contains sampling noise, and also differences between cells that the latent space does not describe. The sum y + r is
  approximately the isometric coordinate of the observed count, corrected for library size and batch.
- **w** is the weight of the residuals. With w = 0, cells lie on the smooth manifold of the decoder, and Leiden
  clustering splits this manifold into too many clusters. The weight w is at most 1. Along the first axes of the
  embedding, the weighted residuals increase the variance by at most the fraction `NOISE_SHARE`.

The embedding has two kinds of axes.

- The first axes of the embedding are the principal components of y over the training cells, on which the expression e
  is projected. The components of the decoded states y are used, because most components of the expression e would
  follow the noise in the residuals of the training cells. The noise of new cells differs from the noise of the training
  cells, so new cells would lie apart.
- The last axes of the embedding are random directions, on which the residuals are projected. The projected residuals
  contain noise of equal strength in all cells. Leiden clustering finds communities in a graph of neighbors. Without
  noise, neighbors lie in order along the manifold of the decoder, and at scanpy's default resolution a cell type is
  split into several clusters. With noise, cells that cannot be distinguished by their counts become neighbors at
  random. The variance of the noise is `NOISE_SHARE` times the variance of the decoded states (`benchmarks/recipe.md`).

Principal components and random directions are stored in the model, so new cells are embedded along the same axes as the
training cells.

Letters in array shapes: n cells, g genes, k latent dimensions, j components, m random directions, b batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scvae_cli.data.minibatches import CellTable, Minibatch
from scvae_cli.device import seeded
from scvae_cli.model.vae import VAE

# Largest number of principal components. Users of scanpy usually take 30 to 50 principal components.
COMPONENTS = 30
# Largest number of random directions. The number of random directions never exceeds the number of components.
RANDOM_DIRECTIONS = 20
# Largest number of training cells from which the components are computed.
FITTED_CELLS = 5000
# Number of cells whose positions are computed at once.
BLOCK_CELLS = 512
# Variance that the residuals add, as a fraction of the variance of the decoded states (`benchmarks/recipe.md`). Along
# the components, residuals add at most this fraction, and along the random directions exactly this fraction.
NOISE_SHARE = 0.2
# Smallest singular value of a component, as a fraction of the largest singular value. Weaker components are left out,
# because the decoded states hardly vary along them.
_LEAST_SINGULAR = 1e-5
# Largest absolute residual, in standard deviations. Residuals are clipped, so that one extreme count does not move a
# cell.
_MOST = 10.0


@dataclass(frozen=True)
class ExpressionSpace:
    """The map of cells to expression space.

    The centered expression e is projected on the principal components, and the residuals r on the random directions.

    Parameters
    ----------
    center_g, component_jg
        Mean of e over the training cells; principal components of y, with orthonormal rows, in descending order of
        variance.
    residual_weight
        Weight w of the residuals, a scalar from 0 to 1.
    random_mg
        Random directions, orthogonal to the components and to each other. All random directions have the same length,
        which is the weight of the residuals along these directions. `random_mg` is None if there are no more genes than
        components, and in models of earlier versions.
    """

    center_g: Tensor
    component_jg: Tensor
    residual_weight: Tensor
    random_mg: Tensor | None = None

    @torch.no_grad()
    def position(self, vae: VAE, cells: Minibatch, mean_nk: Tensor, present_g: Tensor | None = None) -> Tensor:
        """Compute the embedding of n cells from their counts and posterior means, shape (n, j + m).

        `present_g` is False for genes that the data lack; the residuals of these genes are 0. `present_g` is None if
        the data have all genes. All tensors are on the device of the networks.
        """
        return self.position_and_state(vae, cells, mean_nk, present_g)[0]

    @torch.no_grad()
    def position_and_state(
        self, vae: VAE, cells: Minibatch, mean_nk: Tensor, present_g: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the embedding of n cells, and the positions of their decoded states y along the components.

        The arguments are those of `position`. The two results have the shapes (n, j + m) and (n, j).
        """
        state_ng, residual_ng = states_and_residuals(vae, cells, mean_nk)
        state_nj = self._projected(state_ng)
        if present_g is not None:
            residual_ng = residual_ng * present_g
        expression_ng = state_ng.add_(residual_ng * self.residual_weight.to(residual_ng))
        parts = [self._projected(expression_ng)]
        if self.random_mg is not None:
            parts.append(residual_ng @ self.random_mg.to(residual_ng).T)
        return torch.cat(parts, dim=1), state_nj

    def _projected(self, expression_ng: Tensor) -> Tensor:
        return (expression_ng - self.center_g.to(expression_ng)) @ self.component_jg.to(expression_ng).T


@torch.no_grad()
def states_and_residuals(vae: VAE, cells: Minibatch, mean_nk: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the decoded states y and the Pearson residuals r of n cells, each of shape (n, g).

    A cell of an unknown batch has the index −1 in `cells.batch_n`. The residuals of a cell of an unknown batch are
    computed from the expected counts in an average batch. If `cells.batch_n` is None, all cells are treated as cells of
    an unknown batch. For a model with a design matrix, `cells.batch_n` already contains average effects for cells of
    unknown batches.
    """
    head, depth = vae.decoder.head, vae.reference_library
    average_ng = own_ng = _reference_mean(vae, mean_nk, _average_batch(vae, mean_nk))
    if cells.batch_n is not None:
        own_ng = _reference_mean(vae, mean_nk, cells.batch_n)
        if cells.batch_n.dim() == 1:
            own_ng = torch.where((cells.batch_n >= 0)[:, None], own_ng, average_ng)
    state_ng = head.isometric(average_ng)
    # For real numbers, the library size of every cell and the reference library size are 1.
    expected_ng = own_ng * (cells.library_n / depth)[:, None]
    residual_ng = (cells.x_ng - expected_ng) * head.isometric_slope(expected_ng)
    return state_ng, residual_ng.clamp_(-_MOST, _MOST)


def _average_batch(vae: VAE, mean_nk: Tensor) -> Tensor | None:
    """Return the weights of the average batch for each cell, shape (n, b), or None for a model without batches."""
    average_b = vae.average_weights
    return None if average_b is None else average_b.expand(len(mean_nk), -1)


def _reference_mean(vae: VAE, mean_nk: Tensor, batch: Tensor | None) -> Tensor:
    """Compute the expected counts at the reference library size, shape (n, g).

    `batch` is the index of each cell's batch, shape (n,), or the weights with which each cell's batches are averaged,
    shape (n, b). For a model without batches, `batch` is None.
    """
    logits_ng, none_mng = vae.decoder.push_logits(mean_nk, mean_nk.new_empty(0, *mean_nk.shape), batch)
    return vae.decoder.head.push_mean(logits_ng, none_mng, share=1.0, library=vae.reference_library)[0]


@torch.no_grad()
def fit_expression_space(vae: VAE, training: CellTable) -> ExpressionSpace:
    """Fit expression space to training cells: the components, the random directions, and the weight of the residuals.

    The sign of each component is chosen such that the positions of the training cells have a positive skewness along
    the component.
    """
    n, g = training.n_cells, training.n_genes
    state_ng, residual_ng = torch.empty(n, g), torch.empty(n, g)
    for rows, cells in training.in_order(BLOCK_CELLS):
        block = slice(int(rows[0]), int(rows[-1]) + 1)
        state_ng[block], residual_ng[block] = states_and_residuals(vae, cells, vae.encode(cells).mean_nk)
    center_g, residual_mean_g = state_ng.mean(0), residual_ng.mean(0)
    state_ng -= center_g
    residual_ng -= residual_mean_g
    j = max(1, min(COMPONENTS, g, n - 1))
    component_jg, singular_q = _principal_components(state_ng, j)
    # Components along which the decoded states do not vary are left out.
    component_jg = component_jg[: max(1, int((singular_q[:j] > _LEAST_SINGULAR * singular_q[0]).sum()))]
    noise = NOISE_SHARE * float(state_ng.square().sum())
    added = float((residual_ng @ component_jg.T).square().sum())
    weight = min(1.0, math.sqrt(noise / added)) if added > 0 else 0.0
    random_mg = _random_directions(component_jg)
    added = float((residual_ng @ random_mg.T).square().sum())
    random_mg *= math.sqrt(noise / added) if added > 0 else 0.0
    expression_ng = state_ng.add_(residual_ng, alpha=weight)
    skew_j = (expression_ng @ component_jg.T).pow(3).mean(0)
    component_jg = component_jg * torch.where(skew_j < 0, -1.0, 1.0)[:, None]
    center_g += weight * residual_mean_g
    return ExpressionSpace(
        center_g, component_jg.contiguous(), torch.tensor(weight), random_mg if len(random_mg) else None
    )


def _random_directions(component_jg: Tensor) -> Tensor:
    """Draw orthonormal directions that are orthogonal to the components, shape (m, g)."""
    j, g = component_jg.shape
    with seeded(0):
        random_gm = torch.randn(g, min(RANDOM_DIRECTIONS, j, g - j))
    random_gm -= component_jg.T @ (component_jg @ random_gm)
    orthonormal_gm: Tensor = torch.linalg.qr(random_gm)[0]
    return orthonormal_gm.T.contiguous()


def _principal_components(centered_ng: Tensor, j: int) -> tuple[Tensor, Tensor]:
    """Compute the first j principal components, shape (j, g), and the singular values, in descending order."""
    # The random start of `svd_lowrank` has a fixed seed, so the result depends only on the data.
    with seeded(0):
        _, singular_q, component_gq = torch.svd_lowrank(centered_ng, q=min(j + 10, *centered_ng.shape), niter=6)
    return component_gq.T[:j], singular_q[:j]
