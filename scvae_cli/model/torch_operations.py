"""The operations between the matrix products of a training step, in plain torch, for GPUs.

No tensor shape depends on the cells, no operation makes the CPU wait for the GPU, and all random numbers come from
given seeds. A training step can therefore be compiled, or recorded once as a sequence of GPU operations (a CUDA graph)
and repeated. The results equal those of `compiled/operations.py` up to rounding errors, and the dropout masks are
identical.

Letters in array shapes: n cells, g genes, h hidden units, k latent dimensions, l layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scvae_cli.model.count_nll import dense_nll
from scvae_cli.model.gradients import Gradients, Hidden
from scvae_cli.model.hidden import NormalizedHidden
from scvae_cli.model.network import Encoder
from scvae_cli.model.posterior import MAX_LOG_VARIANCE, MIN_VARIANCE, Posterior

_LOW = 0xFFFFFFFF


class TorchOperations:
    """Implementation of `manual_backward.Operations` for dense counts on any device.

    `share_n` is the weight of each cell in means over the cells. Cells that only pad a minibatch to its full size have
    the weight 0. `seed_l` holds one dropout seed (int64) for each layer, in the order in which the step evaluates the
    layers.
    """

    def __init__(self, x_ng: Tensor, library_n: Tensor, share_n: Tensor, seed_l: Tensor) -> None:
        self._x_ng, self._library_n, self._share_n, self._seed_l = x_ng, library_n, share_n, seed_l
        self._layer = 0

    def seen(self, encoder: Encoder, reference_library: Tensor) -> Tensor:
        scale_n1 = (reference_library / self._library_n).unsqueeze(1)
        return torch.log1p(self._x_ng * scale_n1) - encoder.centre_g

    def hidden(self, a_nh: Tensor, norm: NormalizedHidden) -> Hidden:
        centered_nh = a_nh - a_nh.mean(1, keepdim=True)
        inverse_sd_n = (centered_nh.square().mean(1) + norm.norm.eps).rsqrt()
        normal_nh = centered_nh * inverse_sd_n.unsqueeze(1)
        u_nh = normal_nh * norm.norm.weight + norm.norm.bias
        sigmoid_nh = torch.sigmoid(u_nh)
        hidden_nh, slope_nh = u_nh * sigmoid_nh, sigmoid_nh * (1 + u_nh * (1 - sigmoid_nh))
        if norm.dropout:
            scale_nh = _dropout_mask(self._seed_l[self._layer], a_nh, norm.dropout) / (1 - norm.dropout)
            hidden_nh, slope_nh = hidden_nh * scale_nh, slope_nh * scale_nh
        self._layer += 1
        return Hidden(hidden_nh, slope_nh, normal_nh, inverse_sd_n)

    def hidden_gradients(self, d_hidden_nh: Tensor, made: Hidden, weight_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        d_u_nh = d_hidden_nh * made.slope_nh
        d_normal_nh = d_u_nh * weight_h
        along_n1 = (d_normal_nh * made.normal_nh).mean(1, keepdim=True)
        d_centered_nh = d_normal_nh - d_normal_nh.mean(1, keepdim=True) - made.normal_nh * along_n1
        return d_centered_nh * made.inverse_sd_n.unsqueeze(1), (d_u_nh * made.normal_nh).sum(0), d_u_nh.sum(0)

    def draw(self, statistics_n2k: Tensor, noise_nk: Tensor) -> tuple[Tensor, Tensor]:
        posterior = Posterior.from_network(*statistics_n2k.chunk(2, dim=1))
        return posterior.sample(noise_nk), (posterior.kl_nk().sum(1) * self._share_n).sum()

    def draw_gradients(self, statistics_n2k: Tensor, noise_nk: Tensor, d_z_nk: Tensor, d_kl: Tensor | float) -> Tensor:
        mean_nk, log_var_nk = statistics_n2k.chunk(2, dim=1)
        # The derivative of the variance with respect to the log variance is the variance minus its lower bound.
        varying_nk = log_var_nk.clamp(max=MAX_LOG_VARIANCE).exp()
        var_nk = varying_nk + MIN_VARIANCE
        price_n1 = (d_kl * self._share_n).unsqueeze(1)
        d_var_nk = 0.5 * (d_z_nk * noise_nk * var_nk.rsqrt() + price_n1 * (1 - 1 / var_nk))
        d_log_var_nk = (d_var_nk * varying_nk).masked_fill(log_var_nk > MAX_LOG_VARIANCE, 0.0)
        return torch.cat([d_z_nk + price_n1 * mean_nk, d_log_var_nk], dim=1)

    def without_padding(self, indicator_nb: Tensor) -> Tensor:
        return indicator_nb * (self._share_n > 0).unsqueeze(1)

    def nll(
        self, raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, *, narrow: bool
    ) -> tuple[Tensor, Gradients]:
        inputs = (raw_ng, bias_g, log_theta_g, self._library_n, self._x_ng)
        nll_n, gradients = dense_nll(*inputs, with_gradient=True, share_n=self._share_n)
        assert gradients is not None, "with_gradient is True"
        d_raw_ng, d_bias_g, d_log_theta_g = gradients
        dtype = torch.bfloat16 if narrow else torch.float32
        return (nll_n * self._share_n).sum(), (d_raw_ng.to(dtype), d_bias_g, d_log_theta_g)


def _dropout_mask(seed: Tensor, like_nh: Tensor, dropout: float) -> Tensor:
    """Return the mask of dropout, shape (n, h): 0 for dropped hidden units and 1 for all other units.

    The random numbers are computed by the same hash function as in `compiled/hidden.py`.
    """
    x_nh = (seed + torch.arange(like_nh.numel(), device=like_nh.device)) & _LOW
    # Subtracting 2³² from the factors does not change the low 32 bits of the products and keeps the products within 64
    # bits.
    x_nh = ((x_nh ^ (x_nh >> 16)) * (0x85EBCA6B - 2**32)) & _LOW
    x_nh = ((x_nh ^ (x_nh >> 13)) * (0xC2B2AE35 - 2**32)) & _LOW
    return ((x_nh ^ (x_nh >> 16)) >= int(dropout * 2**32)).to(like_nh.dtype).view_as(like_nh)
