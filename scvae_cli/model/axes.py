"""Canonical latent axes: a frame that two trainings of the same data agree on.

The prior looks the same from every side, so training leaves the latent axes rotated nearly at random. What the cells
express does not depend on the training: the canonical axes are those along which the position of the cells explains
most of the variance of their decoded expression, in the Fisher–Rao coordinate y whose unit is the standard deviation of
a count. They are the left singular vectors of C^(−½) Cov(z, y), with C = Cov(z, z) over the cells: of the decoder's
mean linear response, weighted by how far the cells spread. The strongest comes first, and each points to where the
cells have their longer tail. (Eigenvectors of the mean metric E[J_yᵀJ_y] agree less between trainings than plain axes
do: the metric counts directions in which no cell moves, and every wiggle of the decoder.)

The rotation is applied to what users see and nowhere else; bounds, densities and distances do not depend on it.

Shapes: n cells, k latent dimensions, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scvae_cli.model.geometry import Geometry

# Cells that are decoded: more make the axes no surer.
_CELLS = 5000
# Values decoded at once, 8 MB in float32.
_BLOCK_VALUES = 2_000_000
# Two axes nearly tie when the weaker has at least this share of the stronger's strength.
NEAR_TIE = 0.95


@dataclass(frozen=True)
class CanonicalAxes:
    """A rotation of latent space.

    Parameters
    ----------
    rotation_kk
        Row i is the ith canonical axis in the frame of the training.
    strength_k
        Variance of expression, summed over genes, that each axis explains by itself, descending: squared standard
        deviations of a count.
    """

    rotation_kk: Tensor
    strength_k: Tensor

    def position(self, z_nk: Tensor) -> Tensor:
        """Points in the canonical frame, shape (n, k)."""
        return z_nk @ self.rotation_kk.T.to(z_nk)

    def in_training_frame(self, z_nk: Tensor) -> Tensor:
        """Points of the canonical frame where the networks see them, shape (n, k)."""
        return z_nk @ self.rotation_kk.to(z_nk)

    def variance(self, var_nk: Tensor) -> Tensor:
        """Diagonal of the rotated covariance R diag(σ²) Rᵀ, shape (n, k)."""
        return var_nk @ self.rotation_kk.square().T.to(var_nk)

    def near_ties(self) -> list[int]:
        """Indices of the axes whose strength is nearly that of the next: these two may swap, or mix, between runs.

        Axes that explain hardly anything (below a thousandth of the strongest) are not told apart at all.

        >>> CanonicalAxes(torch.eye(3), torch.tensor([4.0, 3.9, 1.0])).near_ties()
        [0]
        """
        strength_k = self.strength_k
        told = strength_k[1:] > 1e-3 * strength_k[0]
        return torch.nonzero((strength_k[1:] > NEAR_TIE * strength_k[:-1]) & told).flatten().tolist()


@torch.no_grad()
def canonical_axes(geometry: Geometry, mean_nk: Tensor) -> CanonicalAxes:
    """Axes of a decoder over some cells.

    Parameters
    ----------
    geometry
        Of the decoder.
    mean_nk
        The cells' posterior means; an even selection of at most 5,000 is used.
    """
    mean_nk = mean_nk[:: -(-len(mean_nk) // _CELLS)]
    centred_nk = (mean_nk - mean_nk.mean(0)).double().cpu()
    n, k = centred_nk.shape
    cross_kg = torch.zeros(k, geometry.vae.n_genes, dtype=torch.float64)
    size = max(1, _BLOCK_VALUES // geometry.vae.n_genes)
    for block_nk, some_nk in zip(torch.split(mean_nk, size), torch.split(centred_nk, size), strict=True):
        cross_kg += some_nk.T @ geometry.coordinates(block_nk).double().cpu() / n
    variance_k, columns_kk = torch.linalg.eigh(centred_nk.T @ centred_nk / n)
    # Directions in which no cell moves explain nothing, rather than 0/0.
    inverse_root_k = torch.where(variance_k > 1e-9 * variance_k.max(), variance_k.clamp_min(1e-30).rsqrt(), 0.0)
    whitened_kg = (columns_kk * inverse_root_k) @ columns_kk.T @ cross_kg
    strength_k, axes_kk = torch.linalg.eigh(whitened_kg @ whitened_kg.T)
    rotation_kk = axes_kk.flip(1).T
    skew_k = (centred_nk @ rotation_kk.T).pow(3).mean(0)
    rotation_kk = rotation_kk * torch.where(skew_k < 0, -1.0, 1.0)[:, None]
    return CanonicalAxes(rotation_kk.float().contiguous(), strength_k.flip(0).clamp_min(0).float())
