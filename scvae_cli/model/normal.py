"""The likelihood of real numbers: every feature is normal around a mean that the decoder computes.

    p(x_g|z) = N(μ_g(z), σ_g²).

The standard deviation σ_g is either learned for each feature or fixed to one value for all features. The network
computes a standardized value u, and the mean is μ = m + s · u, where m and s are the mean and the standard deviation of
a feature over the training cells. Because u is standardized, one learning rate works for features of any scale. The
Fisher information of μ is 1/σ². The Fisher information of y = μ/σ is therefore 1, so y is the isometric coordinate that
`geometry.py` defines.

Real numbers have neither a library size nor zero inflation. Methods for real numbers have arguments for library size
and zero inflation only because the methods for counts have the same signatures. For real numbers, the arguments for
library size and zero inflation have no effect.

Letters in array shapes: n cells, m directions, g features, h hidden units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scvae_cli.data.minibatches import Minibatch

_HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
# Bounds on σ, in standard deviations of a feature. Without a lower bound, a feature that is an exact function of other
# features would reach an infinite density.
_LEAST, _MOST = 1e-3, 10.0


class NormalHead(nn.Module):
    """Likelihood head of real numbers: the last decoder layer, which gives the distribution of a cell's features.

    `variance` is the fixed σ² of all features. If `variance` is None, one σ is learned for each feature.
    """

    centre_g: Tensor
    scale_g: Tensor

    def __init__(self, n_inputs: int, n_genes: int, variance: float | None = None) -> None:
        super().__init__()
        self.outputs = nn.Linear(n_inputs, n_genes)
        self.variance = variance
        self.raw_log_sd_g = nn.Parameter(torch.zeros(n_genes)) if variance is None else None
        self.register_buffer("centre_g", torch.zeros(n_genes))
        self.register_buffer("scale_g", torch.ones(n_genes))

    @torch.no_grad()
    def start(self, mean_g: Tensor, sd_g: Tensor) -> None:
        """Initialize μ and a learned σ at the mean and the standard deviation of each feature, each of shape (g,)."""
        self.centre_g.copy_(mean_g)
        self.scale_g.copy_(sd_g)
        self.outputs.bias.zero_()

    @property
    def log_sd_g(self) -> Tensor:
        """Logarithm of the standard deviation σ of each feature, shape (g,)."""
        if self.raw_log_sd_g is None:
            assert self.variance is not None, "fixed or learned"
            return torch.full_like(self.scale_g, 0.5 * math.log(self.variance))
        return self.scale_g.log() + self.raw_log_sd_g.clamp(math.log(_LEAST), math.log(_MOST))

    def forward(self, h_nh: Tensor) -> NormalOutput:
        """Compute the decoder output, before the batch effect is applied."""
        # This matrix product is always in full precision, because σ may be small compared with the range of the mean.
        with torch.autocast(h_nh.device.type, enabled=False):
            unit_ng = self.outputs(h_nh.to(self.outputs.weight.dtype))
        return NormalOutput(unit_ng, self.centre_g, self.scale_g, self.log_sd_g)

    def push(self, h_nh: Tensor, d_mnh: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the output u, shape (n, g), and the derivatives of u along directions d, shape (m, n, g)."""
        unit_ng: Tensor = self.outputs(h_nh)
        return unit_ng, d_mnh @ self.outputs.weight.T

    def push_mean(
        self,
        unit_ng: Tensor,
        d_unit_mng: Tensor,
        *,
        share: float,
        library: Tensor | float,  # noqa: ARG002  # all heads have this argument
    ) -> tuple[Tensor, Tensor]:
        """Compute the contribution of one batch to the means, and its derivatives along directions.

        Means are averaged over batches. `share` is the weight of the batch, by which the means of the batch are
        multiplied. The contribution has shape (n, g), and the changes along m directions have shape (m, n, g).
        """
        return share * (self.centre_g + self.scale_g * unit_ng), share * self.scale_g * d_unit_mng

    def isometric(self, mean_ng: Tensor) -> Tensor:
        """Compute the isometric coordinate μ/σ, shape (n, g)."""
        return mean_ng * self.isometric_slope(mean_ng)

    def isometric_slope(self, mean_ng: Tensor) -> Tensor:
        """Compute the derivative 1/σ of the isometric coordinate, shape (g,), without a gradient for σ."""
        return (-self.log_sd_g.detach().to(mean_ng)).exp()

    def typical_loss(self, nll: Tensor) -> Tensor:
        """Return a typical size of the reconstruction loss −log p(x|z): the loss expected for standard normal features.

        The flatness penalty (`training/flatness.py`) is weighted by the typical size of the loss. The loss itself would
        not be a suitable weight, because the loss depends on the units of the features and may be negative.
        """
        return torch.full_like(nll, self.outputs.out_features * (0.5 + _HALF_LOG_2_PI))


class NormalOutput(NamedTuple):
    """The distribution of the features of n cells: a normal distribution with the mean μ and the standard deviation σ.

    The last layer of the decoder computes u (`unit_ng`), and μ = center + scale · u.
    """

    unit_ng: Tensor
    centre_g: Tensor
    scale_g: Tensor
    log_sd_g: Tensor

    def shifted(self, gene_shift_ng: Tensor) -> NormalOutput:
        """Return a copy of the output in which `gene_shift_ng` times the scale of a feature is added to each mean."""
        return self._replace(unit_ng=self.unit_ng + gene_shift_ng)

    def mean_nll(self, cells: Minibatch) -> Tensor:
        """Compute the negative log density of the features, averaged over cells: a differentiable scalar, nats."""
        return normal_nll(cells.x_ng, self._mean_ng, self.log_sd_g).sum(1).mean()

    @torch.no_grad()
    def nll_n(self, cells: Minibatch) -> Tensor:
        """Compute the negative log density of each cell's features, shape (n,), float64, nats."""
        mean_ng = self.centre_g.double() + self.scale_g.double() * self.unit_ng.double()
        return normal_nll(cells.x_ng.double(), mean_ng, self.log_sd_g.double()).sum(1)

    @property
    def _mean_ng(self) -> Tensor:
        return self.centre_g + self.scale_g * self.unit_ng

    def mean_ng(self, library_n: Tensor, *, with_zero_inflation: bool = False) -> Tensor:  # noqa: ARG002  # all heads have this argument
        """Return the means μ, shape (n, g)."""
        return self._mean_ng

    def draw(self, library_n: Tensor, random: np.random.Generator) -> np.ndarray:  # noqa: ARG002  # all heads have this argument
        """Draw every feature once, shape (n, g), float32."""
        mean_ng, sd_g = self._mean_ng.double().cpu().numpy(), self.log_sd_g.double().exp().cpu().numpy()
        drawn_ng: np.ndarray = (mean_ng + sd_g * random.standard_normal(mean_ng.shape)).astype(np.float32)
        return drawn_ng


def normal_nll(x_ng: Tensor, mean_ng: Tensor, log_sd_g: Tensor) -> Tensor:
    """Compute the negative log density of numbers under a normal distribution, shape (n, g), nats.

    >>> normal_nll(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1))
    tensor([[0.9189]])
    """
    return 0.5 * ((x_ng - mean_ng) * torch.exp(-log_sd_g)).square() + log_sd_g + _HALF_LOG_2_PI
