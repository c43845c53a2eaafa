"""What layers whose gradients are written by hand hand back, compiled or not.

Shapes: n cells, g genes, h hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Of the mean NLL, in raw outputs (n, g or 2g), their bias (g or 2g) and log θ (g,).
Gradients = tuple[Tensor, Tensor, Tensor | None]


class Hidden(NamedTuple):
    """Hidden units (n, h), and what their gradients need.

    That is their slope in what the activation saw, zero where they were dropped, and the normalised linear part, both
    (n, h), and its scale (n,).
    """

    hidden_nh: Tensor
    slope_nh: Tensor
    normal_nh: Tensor
    inverse_sd_n: Tensor
