"""Hidden layers: a linear map, normalization within each cell, SiLU (the activation function) and dropout.

Letters in array shapes: n cells, h hidden units, m directions per cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class HiddenLayers(nn.Sequential):
    """A sequence of hidden layers, each of which is linear → LayerNorm → SiLU → dropout.

    Layers are normalized within each cell, not across the minibatch. The embedding of a cell therefore does not depend
    on the other cells in its minibatch, and a minibatch may consist of a single cell.
    """

    def __init__(self, n_in: int, n_hidden: int, n_layers: int, dropout: float) -> None:
        layers: list[nn.Module] = []
        for i in range(n_layers):
            layers += [nn.Linear(n_in if i == 0 else n_hidden, n_hidden), NormalizedHidden(n_hidden, dropout)]
        super().__init__(*layers)

    def after_first(self, a_nh: Tensor) -> Tensor:
        """Compute the units of the last hidden layer from the output of the first linear map."""
        for module in list(self)[1:]:
            a_nh = module(a_nh)
        return a_nh

    def pairs(self) -> Iterator[tuple[nn.Linear, NormalizedHidden]]:
        """Iterate over the hidden layers. A pair holds the linear part of a layer, and the rest of the layer."""
        layers: list[Any] = list(self)
        return zip(layers[::2], layers[1::2], strict=True)


class NormalizedHidden(nn.Module):
    """The part of a hidden layer after its linear map: LayerNorm → SiLU → dropout."""

    def __init__(self, n_hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_hidden)
        self.dropout = dropout

    def forward(self, a_nh: Tensor) -> Tensor:
        """Compute hidden units from the output of the linear map of a layer."""
        if a_nh.device.type == "cpu" and a_nh.dtype == torch.float32 and self.training:
            # Compiled code takes half a second to start, so compiled code is used only for training and not for a
            # single pass.
            from scvae_cli.model.compiled.hidden import normalized_hidden

            return normalized_hidden(a_nh, self.norm.weight, self.norm.bias, self.dropout)
        return nn.functional.dropout(nn.functional.silu(self.norm(a_nh)), self.dropout, self.training)

    def push(self, a_nh: Tensor, d_mnh: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the hidden units without dropout, and their derivatives along directions d of the input.

        The results are differentiable.
        """
        centered_nh = a_nh - a_nh.mean(1, keepdim=True)
        scale_n = (centered_nh.square().mean(1, keepdim=True) + self.norm.eps).rsqrt()
        unit_nh = centered_nh * scale_n
        u_nh = unit_nh * self.norm.weight + self.norm.bias
        sigmoid_nh = torch.sigmoid(u_nh)
        h_nh = u_nh * sigmoid_nh
        slope_nh = (sigmoid_nh + h_nh * (1 - sigmoid_nh)) * scale_n * self.norm.weight
        along_mn = (unit_nh * d_mnh).mean(2, keepdim=True)
        return h_nh, (d_mnh - d_mnh.mean(2, keepdim=True) - unit_nh * along_mn) * slope_nh
