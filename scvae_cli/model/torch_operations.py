"""What a training step does between its matrix products, in plain torch, for GPUs.

No shape depends on the cells, nothing waits for the device, and nothing is drawn that was not given as a seed: a step
made of it can be compiled, and recorded and played again. It does what `by_hand_compiled.py` does, dropout to the bit.

Shapes: n cells, g genes, h hidden units, k latent dimensions, l layers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scvae_cli.model.count_nll import dense_nll
from scvae_cli.model.gradients import Gradients, Hidden
from scvae_cli.model.hidden import NormalisedHidden
from scvae_cli.model.network import Encoder
from scvae_cli.model.posterior import MAX_LOG_VARIANCE, MIN_VARIANCE


class TorchOperations:
    """`by_hand.Operations` on dense cells on any device.

    Parameters
    ----------
    x_ng, library_n
        Counts, and counts per cell.
    share_n
        What each cell weighs in means over the cells; those that only fill up a minibatch weigh nothing.
    seed_l
        Of the dropout of each layer, in the order of the step, int64.
    """

    def __init__(self, x_ng: Tensor, library_n: Tensor, share_n: Tensor, seed_l: Tensor) -> None:
        self._x_ng, self._library_n, self._share_n, self._seed_l = x_ng, library_n, share_n, seed_l
        self._layer = 0

    def seen(self, encoder: Encoder, reference_library: Tensor) -> Tensor:
        """As `Operations` has it."""
        scale_n1 = (reference_library / self._library_n).unsqueeze(1)
        return torch.log1p(self._x_ng * scale_n1) - encoder.centre_g

    def hidden(self, a_nh: Tensor, norm: NormalisedHidden) -> Hidden:
        """As `Operations` has it."""
        centred_nh = a_nh - a_nh.mean(1, keepdim=True)
        inverse_sd_n = (centred_nh.square().mean(1) + norm.norm.eps).rsqrt()
        normal_nh = centred_nh * inverse_sd_n.unsqueeze(1)
        u_nh = normal_nh * norm.norm.weight + norm.norm.bias
        sigmoid_nh = torch.sigmoid(u_nh)
        hidden_nh, slope_nh = u_nh * sigmoid_nh, sigmoid_nh * (1 + u_nh * (1 - sigmoid_nh))
        if norm.dropout:
            scale_nh = kept(self._seed_l[self._layer], a_nh, norm.dropout) / (1 - norm.dropout)
            hidden_nh, slope_nh = hidden_nh * scale_nh, slope_nh * scale_nh
        self._layer += 1
        return Hidden(hidden_nh, slope_nh, normal_nh, inverse_sd_n)

    def hidden_gradients(self, d_hidden_nh: Tensor, made: Hidden, weight_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Operations` has it."""
        d_u_nh = d_hidden_nh * made.slope_nh
        d_normal_nh = d_u_nh * weight_h
        along_n1 = (d_normal_nh * made.normal_nh).mean(1, keepdim=True)
        d_centred_nh = d_normal_nh - d_normal_nh.mean(1, keepdim=True) - made.normal_nh * along_n1
        return d_centred_nh * made.inverse_sd_n.unsqueeze(1), (d_u_nh * made.normal_nh).sum(0), d_u_nh.sum(0)

    def draw(self, statistics_n2k: Tensor, noise_nk: Tensor) -> tuple[Tensor, Tensor]:
        """As `Operations` has it."""
        mean_nk, log_var_nk = statistics_n2k.chunk(2, dim=1)
        var_nk = log_var_nk.clamp(max=MAX_LOG_VARIANCE).exp() + MIN_VARIANCE
        kl_n = 0.5 * (mean_nk.square() + var_nk - 1 - var_nk.log()).sum(1)
        return mean_nk + var_nk.sqrt() * noise_nk, (kl_n * self._share_n).sum()

    def draw_gradients(
        self, statistics_n2k: Tensor, noise_nk: Tensor, d_z_nk: Tensor, kl_weight: Tensor | float
    ) -> Tensor:
        """As `Operations` has it."""
        mean_nk, log_var_nk = statistics_n2k.chunk(2, dim=1)
        # v less its floor is e^(log v), its own derivative.
        varying_nk = log_var_nk.clamp(max=MAX_LOG_VARIANCE).exp()
        var_nk = varying_nk + MIN_VARIANCE
        price_n1 = (kl_weight * self._share_n).unsqueeze(1)
        d_var_nk = 0.5 * (d_z_nk * noise_nk * var_nk.rsqrt() + price_n1 * (1 - 1 / var_nk))
        d_log_var_nk = (d_var_nk * varying_nk).masked_fill(log_var_nk > MAX_LOG_VARIANCE, 0.0)
        return torch.cat([d_z_nk + price_n1 * mean_nk, d_log_var_nk], dim=1)

    def nll(
        self, raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, *, narrow: bool
    ) -> tuple[Tensor, Gradients]:
        """As `Operations` has it."""
        of = (raw_ng, bias_g, log_theta_g, self._library_n, self._x_ng)
        nll_n, gradients = dense_nll(*of, with_gradient=True, share_n=self._share_n)
        assert gradients is not None, "asked for"
        d_raw_ng, d_bias_g, d_log_theta_g = gradients
        dtype = torch.bfloat16 if narrow else torch.float32
        return (nll_n * self._share_n).sum(), (d_raw_ng.to(dtype), d_bias_g, d_log_theta_g)


def kept(seed: Tensor, like_nh: Tensor, dropout: float) -> Tensor:
    """1 where a unit is kept and 0 where it is dropped, shape (n, h): `fused_hidden.py`'s hash of a counter."""
    x_nh = (seed + torch.arange(like_nh.numel(), device=like_nh.device)) & _LOW
    # The factors less 2³²: the same below bit 32, and products stay within 64.
    x_nh = ((x_nh ^ (x_nh >> 16)) * (0x85EBCA6B - 2**32)) & _LOW
    x_nh = ((x_nh ^ (x_nh >> 13)) * (0xC2B2AE35 - 2**32)) & _LOW
    return ((x_nh ^ (x_nh >> 16)) >= int(dropout * 2**32)).to(like_nh.dtype).view_as(like_nh)


_LOW = 0xFFFFFFFF
