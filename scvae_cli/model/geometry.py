"""The decoder's Fisher–Rao geometry: how far apart two latent points are, in terms of what they predict.

For a fixed inverse dispersion θ a negative binomial gene is a one-dimensional family with an isometric coordinate,

    y_g = 2√θ_g · asinh(√(μ_g / θ_g)),    (dy/dμ)² = θ/(μ(μ+θ)), its Fisher information

(2√μ for a Poisson, μ/σ for a normal: a likelihood head knows its own). Euclidean distance between the y of two latent
points is their Fisher–Rao distance in the space of all counts; the decoder J_y pulls it back to the latent space as the
metric M(z) = J_yᵀJ_y. Expression is compared at one depth and in the average batch; zero inflation, which is technical,
is left out.

Tangents are pushed through the decoder by hand: torch's forward mode would import its compiler, for a second.

Shapes: n points, m tangents at each, k latent dimensions, h hidden units, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scvae_cli.model.isometric import isometric
from scvae_cli.model.vae import VAE

__all__ = ["Geometry", "isometric"]

# Points whose metric is computed at once.
_METRIC_POINTS = 64


@dataclass(frozen=True)
class Geometry:
    """Fisher–Rao geometry of a decoder.

    Parameters
    ----------
    vae
        Its decoder is used without dropout, whatever mode it is in.
    library
        Depth at which expression is compared, counts a cell; None takes the training cells' median.
    """

    vae: VAE
    library: float | None = None

    def coordinates(self, z_nk: Tensor) -> Tensor:
        """The isometric coordinate y of some points, shape (n, g), standard deviations of a count; differentiable."""
        return self.push(z_nk, z_nk.new_empty(0, *z_nk.shape))[0]

    def push(self, z_nk: Tensor, v_mnk: Tensor) -> tuple[Tensor, Tensor]:
        """y of some points and J_y·v of tangents there, shapes (n, g) and (m, n, g); differentiable."""
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
        # Without tangents the slope would be computed for nothing.
        return y_ng, tangent_mng * head.isometric_slope(mean_ng) if len(v_mnk) else tangent_mng

    @torch.no_grad()
    def metric(self, z_nk: Tensor) -> Tensor:
        """M(z) = J_yᵀJ_y, shape (n, k, k): squared standard deviations of a count per squared latent unit."""
        k = z_nk.shape[1]
        parts = []
        for block_nk in torch.split(z_nk, _METRIC_POINTS):
            axes_knk = torch.eye(k, dtype=z_nk.dtype, device=z_nk.device)[:, None, :].expand(k, len(block_nk), k)
            _, tangent_kng = self.push(block_nk, axes_knk)
            columns_nkg = tangent_kng.transpose(0, 1)
            parts.append(columns_nkg @ columns_nkg.transpose(1, 2))
        return torch.cat(parts)
