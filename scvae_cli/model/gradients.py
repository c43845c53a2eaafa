"""Results of the layers and losses with explicit gradients, both compiled and in plain torch.

Shapes: n cells, g genes, h hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Gradients of the mean NLL with respect to the raw outputs (n, g or 2g), their bias (g or 2g) and log θ (g,).
Gradients = tuple[Tensor, Tensor, Tensor | None]


class Hidden(NamedTuple):
    """Hidden units, and the intermediate results that their gradients need.

    Parameters
    ----------
    hidden_nh
        Hidden units, shape (n, h).
    slope_nh
        Derivative of the hidden units with respect to the input of the activation; zero for dropped units.
    normal_nh
        Normalized linear part, shape (n, h).
    inverse_sd_n
        Factor of that normalization, shape (n,).
    """

    hidden_nh: Tensor
    slope_nh: Tensor
    normal_nh: Tensor
    inverse_sd_n: Tensor
