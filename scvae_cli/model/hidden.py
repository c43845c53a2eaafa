"""Hidden layers: linear, normalised within each cell, SiLU, dropout.

Shapes: n cells, h hidden units, m tangents at each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class HiddenLayers(nn.Sequential):
    """Linear → LayerNorm → SiLU → dropout, repeated.

    Layers are normalised within each cell, not across the minibatch: a cell's embedding then does not depend on
    which cells it was trained or read with, and a minibatch of one cell is no special case.
    """

    def __init__(self, n_in: int, n_hidden: int, n_layers: int, dropout: float) -> None:
        layers: list[nn.Module] = []
        for i in range(n_layers):
            layers += [nn.Linear(n_in if i == 0 else n_hidden, n_hidden), NormalisedHidden(n_hidden, dropout)]
        super().__init__(*layers)

    def pairs(self) -> Iterator[tuple[nn.Linear, NormalisedHidden]]:
        """Each layer's linear part and what follows it."""
        layers: list[Any] = list(self)
        return zip(layers[::2], layers[1::2], strict=True)


class NormalisedHidden(nn.Module):
    """LayerNorm → SiLU → dropout."""

    def __init__(self, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_hidden)
        self.dropout = dropout

    def forward(self, a_nh: Tensor) -> Tensor:
        """Hidden units from their linear part."""
        if a_nh.device.type == "cpu" and a_nh.dtype == torch.float32 and self.training:
            # Compiled code takes half a second to start, which is nothing to a training and much to one question.
            from scvae_cli.model.compiled.hidden import normalised_hidden

            return normalised_hidden(a_nh, self.norm.weight, self.norm.bias, self.dropout)
        return nn.functional.dropout(nn.functional.silu(self.norm(a_nh)), self.dropout, self.training)

    def push(self, a_nh: Tensor, d_mnh: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden units without dropout, and tangents d at the linear part pushed through; differentiable."""
        centred_nh = a_nh - a_nh.mean(1, keepdim=True)
        scale_n = (centred_nh.square().mean(1, keepdim=True) + self.norm.eps).rsqrt()
        unit_nh = centred_nh * scale_n
        u_nh = unit_nh * self.norm.weight + self.norm.bias
        sigmoid_nh = torch.sigmoid(u_nh)
        h_nh = u_nh * sigmoid_nh
        slope_nh = (sigmoid_nh + h_nh * (1 - sigmoid_nh)) * scale_n * self.norm.weight
        along_mn = (unit_nh * d_mnh).mean(2, keepdim=True)
        return h_nh, (d_mnh - d_mnh.mean(2, keepdim=True) - unit_nh * along_mn) * slope_nh
