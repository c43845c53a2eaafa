"""The Fisher–Rao geometry of the decoder, which measures how much decoded expression differs between latent points.

If the inverse dispersion θ_g of a negative binomial gene is fixed, the distribution of the gene's count depends only on
the mean μ_g. The isometric coordinate y_g is the function of μ_g whose Fisher information is 1 everywhere:

    y_g = 2√θ_g · asinh(√(μ_g / θ_g)).

The derivative of y_g is given by (dy/dμ)² = θ/(μ(μ+θ)), which is the Fisher information of μ. The Fisher information of
μ is one over the variance of the count. One unit of y_g is therefore the standard deviation of a single count around
its expected value. The isometric coordinate is 2√μ for a Poisson distribution and μ/σ for a normal distribution with
the standard deviation σ. The last layer of the decoder (`CountHead` or `NormalHead`) computes the isometric coordinate
for its likelihood.

The vector y(z) contains the isometric coordinates of all genes at the latent point z. The Euclidean distance between
y(z₁) and y(z₂) is the Fisher–Rao distance between the distributions that are decoded at z₁ and z₂. The Fisher–Rao
distance is the length of the shortest path in the space of all distributions. The path may pass through distributions
that the decoder cannot produce. Lengths of paths in latent space follow from the metric M(z) = J_yᵀJ_y, where J_y is
the Jacobian of y(z). The means μ are computed at one library size and averaged over batches. Zero inflation is ignored,
because zero inflation is a technical effect.

The derivatives J_y·v of y along latent directions v are computed by explicit formulas for each layer. Forward-mode
differentiation in torch is not used, because it would import torch's compiler, which takes a second.

Letters in array shapes: n points, m directions at each point, k latent dimensions, h hidden units, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scvae_cli.model.vae import VAE

# Number of latent points for which the metric is computed at once.
_METRIC_POINTS = 64


@dataclass(frozen=True)
class Geometry:
    """Fisher–Rao geometry of a decoder. No dropout is applied, even if the network is in training mode.

    Expression is compared at the library size `library`, in counts per cell. If `library` is None, the median library
    size of the training cells is used.
    """

    vae: VAE
    library: float | None = None

    def coordinates(self, z_nk: Tensor) -> Tensor:
        """Compute the isometric coordinates y at latent points, shape (n, g). The result is differentiable."""
        return self.push(z_nk, z_nk.new_empty(0, *z_nk.shape))[0]

    def push(self, z_nk: Tensor, v_mnk: Tensor) -> tuple[Tensor, Tensor]:
        """Compute isometric coordinates y at latent points, and their derivatives J_y·v along directions v.

        The coordinates have shape (n, g), and the derivatives have shape (m, n, g). The results are differentiable.
        """
        vae, head = self.vae, self.vae.decoder.head
        library = vae.reference_library if self.library is None else self.library
        mean_ng, tangent_mng = z_nk.new_zeros(()), z_nk.new_zeros(())
        shares = vae.trained_share_b.tolist() if vae.batches else [1.0]
        for b, share in enumerate(shares):
            # One index stands for all points, so that the effects of the batch are computed only once.
            batch_1 = torch.tensor([b], device=z_nk.device) if vae.batches else None
            outputs = vae.decoder.push_logits(z_nk, v_mnk, batch_1)
            part_ng, d_part_mng = head.push_mean(*outputs, share=share, library=library)
            mean_ng = mean_ng + part_ng
            tangent_mng = tangent_mng + d_part_mng
        y_ng = head.isometric(mean_ng)
        # The slope of the isometric coordinate is needed only if there are directions.
        return y_ng, tangent_mng * head.isometric_slope(mean_ng) if len(v_mnk) else tangent_mng

    @torch.no_grad()
    def metric(self, z_nk: Tensor) -> Tensor:
        """Compute the metric M(z) = J_yᵀJ_y at latent points, shape (n, k, k).

        The unit of the metric is (unit of y / latent unit)².
        """
        k = z_nk.shape[1]
        parts = []
        for block_nk in torch.split(z_nk, _METRIC_POINTS):
            axes_knk = torch.eye(k, dtype=z_nk.dtype, device=z_nk.device)[:, None, :].expand(k, len(block_nk), k)
            _, tangent_kng = self.push(block_nk, axes_knk)
            columns_nkg = tangent_kng.transpose(0, 1)
            parts.append(columns_nkg @ columns_nkg.transpose(1, 2))
        return torch.cat(parts)
