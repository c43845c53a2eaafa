"""The Fisher–Rao geometry of the decoder: distances between latent points are distances between decoded states.

For a fixed inverse dispersion θ, the distributions of a negative binomial gene form a one-dimensional family. Its
isometric coordinate, in which the Fisher information is 1 everywhere, is

    y_g = 2√θ_g · asinh(√(μ_g / θ_g)),    (dy/dμ)² = θ/(μ(μ+θ)) = Fisher information of μ

The coordinate is 2√μ for a Poisson and μ/σ for a normal; each likelihood head implements the coordinate of its
likelihood. The Euclidean distance between the y of two latent points is their Fisher–Rao distance in the space of all
counts. The Jacobian J_y of the decoder pulls this distance back to the latent space as the metric M(z) = J_yᵀJ_y.
Expression is compared at one library size and averaged over batches. Zero inflation is ignored, because it is
technical.

The products J_y·v with tangent vectors v are computed by explicit formulas for each layer. Forward-mode differentiation
in torch would import torch's compiler, and that import takes a second.

Shapes: n points, m tangents at each point, k latent dimensions, h hidden units, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scvae_cli.model.vae import VAE

# Number of points for which the metric is computed at once.
_METRIC_POINTS = 64


@dataclass(frozen=True)
class Geometry:
    """Fisher–Rao geometry of a decoder. Dropout is never applied, not even in training mode.

    Expression is compared at the library size `library`, in counts per cell; None is the median of the training cells.
    """

    vae: VAE
    library: float | None = None

    def coordinates(self, z_nk: Tensor) -> Tensor:
        """Compute y of some points, shape (n, g), in standard deviations of a count; differentiable."""
        return self.push(z_nk, z_nk.new_empty(0, *z_nk.shape))[0]

    def push(self, z_nk: Tensor, v_mnk: Tensor) -> tuple[Tensor, Tensor]:
        """Compute y of points, shape (n, g), and J_y·v of tangents v there, shape (m, n, g); differentiable."""
        vae, head = self.vae, self.vae.decoder.head
        library = vae.reference_library if self.library is None else self.library
        mean_ng, tangent_mng = z_nk.new_zeros(()), z_nk.new_zeros(())
        shares = vae.batch_share_b.tolist() if vae.batches else [1.0]
        for b, share in enumerate(shares):
            batch_n = torch.full((len(z_nk),), b, device=z_nk.device) if vae.batches else None
            outputs = vae.decoder.push_logits(z_nk, v_mnk, batch_n)
            part_ng, d_part_mng = head.push_mean(*outputs, share=share, library=library)
            mean_ng = mean_ng + part_ng
            tangent_mng = tangent_mng + d_part_mng
        y_ng = head.isometric(mean_ng)
        # The slope is needed only if there are tangents.
        return y_ng, tangent_mng * head.isometric_slope(mean_ng) if len(v_mnk) else tangent_mng

    @torch.no_grad()
    def metric(self, z_nk: Tensor) -> Tensor:
        """Compute M(z) = J_yᵀJ_y, shape (n, k, k): squared standard deviations of a count per squared latent unit."""
        k = z_nk.shape[1]
        parts = []
        for block_nk in torch.split(z_nk, _METRIC_POINTS):
            axes_knk = torch.eye(k, dtype=z_nk.dtype, device=z_nk.device)[:, None, :].expand(k, len(block_nk), k)
            _, tangent_kng = self.push(block_nk, axes_knk)
            columns_nkg = tangent_kng.transpose(0, 1)
            parts.append(columns_nkg @ columns_nkg.transpose(1, 2))
        return torch.cat(parts)
