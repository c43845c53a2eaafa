"""Canonical latent axes: a rotation of latent space after which the axes of two trainings on the same data agree.

The prior is the same in all directions, so the latent axes of each training are rotated nearly at random. The decoded
expression of the cells is nearly the same in each training. The canonical axes are therefore the axes along which the
latent position of the cells explains most of the variance of the decoded expression. Decoded expression is measured by
the coordinate y of `geometry.py`. One unit of the coordinate y is the standard deviation of a single count around its
expected value or, for real numbers, the standard deviation of the noise.

Let z be the latent positions of the cells, and let C = Cov(z, z) be their covariance. The canonical axes are the left
singular vectors of the matrix C^(−½) Cov(z, y). The matrix C^(−½) Cov(z, y) equals C^(½) B, where B = C⁻¹ Cov(z, y) are
the slopes of a linear regression of y on z. The canonical axes are sorted by explained variance in descending order.
Along each axis, the distribution of the cells usually has a longer and a shorter tail. The sign of each canonical axis
is chosen so that the longer tail of the cells is on the positive side.

The eigenvectors of the mean metric J_yᵀJ_y (`geometry.py`) are not used as axes, because these eigenvectors differ more
between trainings than the canonical axes do.

The rotation to the canonical axes is applied only to results that users see. ELBOs, densities and distances do not
depend on the rotation.

Letters in array shapes: n cells, k latent dimensions, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scvae_cli.model.geometry import Geometry

# Largest number of cells from which the axes are computed. More cells do not make the axes more reproducible.
_CELLS = 5000
# Number of values that are decoded at once, which take 8 MB in float32.
_BLOCK_VALUES = 2_000_000
# Smallest ratio between the strengths of a weaker and a stronger axis at which the two axes are regarded as equally
# strong.
NEAR_TIE = 0.95


@dataclass(frozen=True)
class CanonicalAxes:
    """A rotation of latent space to the canonical axes.

    Row i of `rotation_kk` is the ith canonical axis in the latent coordinates that encoder and decoder use. The
    strength of an axis is the variance of decoded expression that this axis alone explains, summed over genes.
    Strengths are in descending order.
    """

    rotation_kk: Tensor
    strength_k: Tensor

    def position(self, z_nk: Tensor) -> Tensor:
        """Transform points from the coordinates of encoder and decoder to the canonical axes, shape (n, k)."""
        return z_nk @ self.rotation_kk.T.to(z_nk)

    def in_training_frame(self, z_nk: Tensor) -> Tensor:
        """Transform points from the canonical axes to the coordinates of encoder and decoder, shape (n, k)."""
        return z_nk @ self.rotation_kk.to(z_nk)

    def variance(self, var_nk: Tensor) -> Tensor:
        """Compute variances along the canonical axes from variances along the axes of encoder and decoder.

        The result has shape (n, k). For variances σ² along the axes of encoder and decoder, the result is the diagonal
        of R diag(σ²) Rᵀ, where R is the rotation.
        """
        return var_nk @ self.rotation_kk.square().T.to(var_nk)

    def near_ties(self) -> list[int]:
        """Return the indices of axes that are about as strong as the next axis.

        Two axes of similar strength may swap or mix between trainings. Axes with at most a thousandth of the strength
        of the strongest axis are ignored.

        >>> CanonicalAxes(torch.eye(3), torch.tensor([4.0, 3.9, 1.0])).near_ties()
        [0]
        """
        strength_k = self.strength_k
        matters = strength_k[1:] > 1e-3 * strength_k[0]
        return torch.nonzero((strength_k[1:] > NEAR_TIE * strength_k[:-1]) & matters).flatten().tolist()


@torch.no_grad()
def canonical_axes(geometry: Geometry, mean_nk: Tensor) -> CanonicalAxes:
    """Compute the canonical axes of a decoder from the posterior means of cells.

    At most 5,000 cells are used, chosen at regular intervals.
    """
    mean_nk = mean_nk[:: -(-len(mean_nk) // _CELLS)]
    centered_nk = (mean_nk - mean_nk.mean(0)).double().cpu()
    n, k = centered_nk.shape
    cross_kg = torch.zeros(k, geometry.vae.n_genes, dtype=torch.float64)
    size = max(1, _BLOCK_VALUES // geometry.vae.n_genes)
    for block_nk, some_nk in zip(torch.split(mean_nk, size), torch.split(centered_nk, size), strict=True):
        cross_kg += some_nk.T @ geometry.coordinates(block_nk).double().cpu() / n
    variance_k, columns_kk = torch.linalg.eigh(centered_nk.T @ centered_nk / n)
    # Directions along which the cells do not vary explain no variance. The weight of such directions is set to 0,
    # because it would otherwise be 0/0.
    inverse_root_k = torch.where(variance_k > 1e-9 * variance_k.max(), variance_k.clamp_min(1e-30).rsqrt(), 0.0)
    whitened_kg = (columns_kk * inverse_root_k) @ columns_kk.T @ cross_kg
    strength_k, axes_kk = torch.linalg.eigh(whitened_kg @ whitened_kg.T)
    rotation_kk = axes_kk.flip(1).T
    skew_k = (centered_nk @ rotation_kk.T).pow(3).mean(0)
    rotation_kk = rotation_kk * torch.where(skew_k < 0, -1.0, 1.0)[:, None]
    return CanonicalAxes(rotation_kk.float().contiguous(), strength_k.flip(0).clamp_min(0).float())
