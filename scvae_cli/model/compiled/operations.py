"""The operations of a training step between its matrix products, compiled for the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scvae_cli.data.minibatches import Minibatch
from scvae_cli.model.compiled.count_nll import fused_nll_and_gradients
from scvae_cli.model.compiled.hidden import hidden_gradients, hidden_units
from scvae_cli.model.compiled.posterior import draw, draw_gradients
from scvae_cli.model.gradients import Gradients, Hidden
from scvae_cli.model.hidden import NormalizedHidden
from scvae_cli.model.network import Encoder


@dataclass(frozen=True)
class CompiledOperations:
    """Implementation of `manual_backward.Operations` on the CPU; dropout uses torch's generator, as under autograd."""

    cells: Minibatch

    def seen(self, encoder: Encoder, reference_library: Tensor) -> Tensor:
        """See `Operations`."""
        return encoder.seen(self.cells, reference_library)

    def hidden(self, a_nh: Tensor, norm: NormalizedHidden) -> Hidden:
        """See `Operations`."""
        return hidden_units(a_nh, norm.norm.weight, norm.norm.bias, norm.dropout)

    def hidden_gradients(self, d_hidden_nh: Tensor, made: Hidden, weight_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Operations`."""
        return hidden_gradients(d_hidden_nh, made, weight_h)

    def draw(self, statistics_n2k: Tensor, noise_nk: Tensor) -> tuple[Tensor, Tensor]:
        """See `Operations`."""
        z_nk, kl = draw(statistics_n2k, noise_nk)
        return z_nk, torch.tensor(kl)

    def draw_gradients(
        self, statistics_n2k: Tensor, noise_nk: Tensor, d_z_nk: Tensor, kl_weight: Tensor | float
    ) -> Tensor:
        """See `Operations`."""
        return draw_gradients(statistics_n2k, noise_nk, d_z_nk, float(kl_weight))

    def nll(
        self, raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, *, narrow: bool
    ) -> tuple[Tensor, Gradients]:
        """See `Operations`."""
        inputs = (raw_ng, bias_g, log_theta_g, self.cells.library_n, self.cells.nonzeros)
        nll_n, gradients = fused_nll_and_gradients(*inputs, narrow=narrow)
        return nll_n.mean(), gradients
