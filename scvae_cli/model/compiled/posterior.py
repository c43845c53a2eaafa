"""Samples of the posterior q(z|x), the KL to the prior, and the gradients of samples and KL, computed on a CPU.

Letters in array shapes: n cells, k latent dimensions. For a posterior with the mean m and the variance v, a sample is
z = m + √v·ε with standard normal noise ε, and the KL to the prior is ½(m² + v − 1 − log v). The operations on
posteriors are compiled, because autograd in plain torch would need thirty operations on only a few thousand numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy import float32
from torch import Tensor

from scvae_cli.model.compiled.vector_math import compiled, exp, log, total
from scvae_cli.model.posterior import MAX_LOG_VARIANCE, MIN_VARIANCE

_FLOOR, _CEILING = float32(MIN_VARIANCE), float32(MAX_LOG_VARIANCE)
_ZERO, _HALF, _ONE = float32(0), float32(0.5), float32(1)


def draw(statistics_n2k: Tensor, noise_nk: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a sample of each cell's posterior, shape (n, k), and compute the mean KL to N(0, I) over cells, nats."""
    z_nk = torch.empty_like(noise_nk)
    kl = _draw(statistics_n2k.numpy(), noise_nk.numpy(), z_nk.numpy())
    return z_nk, torch.tensor(kl / len(noise_nk))


def draw_gradients(statistics_n2k: Tensor, noise_nk: Tensor, d_z_nk: Tensor, d_kl: Tensor | float) -> Tensor:
    """Compute the gradients of a loss with respect to the posterior means and log variances, shape (n, 2k).

    `d_z_nk` are the gradients of the loss with respect to the samples. `d_kl` is the derivative of the loss with
    respect to the mean KL.
    """
    d_statistics_n2k = torch.empty_like(statistics_n2k)
    share = float32(float(d_kl) / len(noise_nk))
    _draw_gradients(statistics_n2k.numpy(), noise_nk.numpy(), d_z_nk.numpy(), share, d_statistics_n2k.numpy())
    return d_statistics_n2k


@compiled()
def _draw(statistics_n2k: Any, noise_nk: Any, z_nk: Any) -> float:
    n_cells, n_latent = noise_nk.shape
    sum_of_kls, kl = 0.0, np.empty(n_latent, float32)
    for i in range(n_cells):
        mean, log_var, noise, z = statistics_n2k[i, :n_latent], statistics_n2k[i, n_latent:], noise_nk[i], z_nk[i]
        for k in range(n_latent):
            var = exp(min(log_var[k], _CEILING)) + _FLOOR
            z[k] = mean[k] + np.sqrt(var) * noise[k]
            kl[k] = _HALF * (mean[k] * mean[k] + var - _ONE - log(var))
        sum_of_kls += total(kl)
    return sum_of_kls


@compiled()
def _draw_gradients(statistics_n2k: Any, noise_nk: Any, d_z_nk: Any, share: Any, d_statistics_n2k: Any) -> None:
    n_cells, n_latent = noise_nk.shape
    for i in range(n_cells):
        mean, log_var, noise, d_z = statistics_n2k[i, :n_latent], statistics_n2k[i, n_latent:], noise_nk[i], d_z_nk[i]
        d_mean, d_log_var = d_statistics_n2k[i, :n_latent], d_statistics_n2k[i, n_latent:]
        for k in range(n_latent):
            # The derivative of the variance with respect to the log variance is the variance minus its lower bound.
            varying = exp(min(log_var[k], _CEILING))
            var = varying + _FLOOR
            d_var = _HALF * (d_z[k] * noise[k] / np.sqrt(var) + share * (_ONE - _ONE / var))
            d_mean[k] = d_z[k] + share * mean[k]
            d_log_var[k] = d_var * varying if log_var[k] <= _CEILING else _ZERO
