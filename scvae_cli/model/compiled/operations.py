"""The operations between the matrix products of a training step, compiled for the CPU."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scvae_cli.data.minibatches import Minibatch
from scvae_cli.model.compiled.count_nll import fused_nll
from scvae_cli.model.compiled.hidden import hidden_gradients, hidden_units
from scvae_cli.model.compiled.posterior import draw, draw_gradients
from scvae_cli.model.gradients import Gradients, Hidden
from scvae_cli.model.hidden import NormalizedHidden
from scvae_cli.model.network import Encoder


@dataclass(frozen=True)
class CompiledOperations:
    """Implementation of `manual_backward.Operations` on the CPU.

    The seeds of dropout are drawn with torch's random number generator.
    """

    cells: Minibatch

    hidden_gradients = staticmethod(hidden_gradients)
    draw = staticmethod(draw)
    draw_gradients = staticmethod(draw_gradients)

    def seen(self, encoder: Encoder, reference_library: Tensor) -> Tensor:
        return encoder.seen(self.cells, reference_library)

    def hidden(self, a_nh: Tensor, norm: NormalizedHidden) -> Hidden:
        return hidden_units(a_nh, norm.norm.weight, norm.norm.bias, norm.dropout)

    def without_padding(self, indicator_nb: Tensor) -> Tensor:
        return indicator_nb

    def nll(
        self, raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, *, narrow: bool
    ) -> tuple[Tensor, Gradients]:
        inputs = (raw_ng, bias_g, log_theta_g, self.cells.library_n, self.cells.nonzeros)
        nll_n, gradients = fused_nll(*inputs, with_gradient=True, narrow=narrow)
        assert gradients is not None, "with_gradient is True"
        return nll_n.mean(), gradients
