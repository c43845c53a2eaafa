"""The approximate posterior q(z|x), a Gaussian with diagonal covariance.

Letters in array shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

# The lower bound on the variance and the upper bound on its logarithm keep the KL finite for any network output.
MIN_VARIANCE, MAX_LOG_VARIANCE = 1e-4, 10.0
# Variance of the posterior means over cells above which a latent dimension is regarded as active (Burda et al. 2016).
ACTIVE_VARIANCE = 0.01


class Posterior(NamedTuple):
    """Mean and variance of q(z|x), each of shape (n, k)."""

    mean_nk: Tensor
    var_nk: Tensor

    @classmethod
    def from_network(cls, mean_nk: Tensor, log_var_nk: Tensor) -> Posterior:
        """Return the posterior from the encoder's outputs, with a bounded variance."""
        return cls(mean_nk.float(), _variance(log_var_nk.float()))

    def sample(self, noise_nk: Tensor) -> Tensor:
        """Transform standard normal noise into a sample of the posterior, shape (n, k)."""
        return self.mean_nk + self.var_nk.sqrt() * noise_nk

    def kl_nk(self) -> Tensor:
        """Compute KL(q ‖ N(0, 1)) of each cell and latent dimension, shape (n, k), nats."""
        return 0.5 * (self.mean_nk.square() + self.var_nk - 1 - self.var_nk.log())


def sample_and_kl(mean_nk: Tensor, log_var_nk: Tensor, noise_nk: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a sample of the posterior, and compute the KL of the posterior to N(0, I), averaged over cells.

    The sample has shape (n, k), and the KL is in nats. The methods `sample` and `kl_nk` of `Posterior` give the same
    results. Formulas with a few operations give the gradients, because autograd would need thirty operations.
    """
    z_nk, kl = _SampleAndKL.apply(mean_nk, log_var_nk, noise_nk)  # type: ignore[no-untyped-call]  # torch's
    return z_nk, kl


def _variance(log_var_nk: Tensor) -> Tensor:
    return log_var_nk.clamp(max=MAX_LOG_VARIANCE).exp() + MIN_VARIANCE


class _SampleAndKL(torch.autograd.Function):
    """Autograd function of a sample z = m + √v·ε and of KL = ½(m² + v − 1 − log v).

    In the formulas for z and KL, m is the mean, v the variance and ε the noise. The network computes m and a log
    variance s. The variance is v = eˢ + f with the smallest variance f = `MIN_VARIANCE`, so the derivative dv/ds is v −
    f.
    """

    @staticmethod
    def forward(ctx: Any, mean_nk: Tensor, log_var_nk: Tensor, noise_nk: Tensor) -> tuple[Tensor, Tensor]:
        posterior = Posterior.from_network(mean_nk, log_var_nk)
        sd_nk = posterior.var_nk.sqrt()
        ctx.save_for_backward(mean_nk, log_var_nk, noise_nk, posterior.var_nk, sd_nk)
        kl = posterior.kl_nk().sum() / len(mean_nk)
        return torch.addcmul(posterior.mean_nk, sd_nk, noise_nk), kl

    @staticmethod
    def backward(ctx: Any, grad_z_nk: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        mean_nk, log_var_nk, noise_nk, var_nk, sd_nk = ctx.saved_tensors
        share = grad_kl / len(mean_nk)
        d_var_nk = 0.5 * (grad_z_nk * noise_nk / sd_nk + share * (1 - 1 / var_nk))
        inside_nk = (log_var_nk <= MAX_LOG_VARIANCE).to(var_nk.dtype)
        return grad_z_nk + share * mean_nk, d_var_nk * (var_nk - MIN_VARIANCE) * inside_nk, None
