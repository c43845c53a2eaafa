"""Types of results that are needed to compute gradients by formulas instead of autograd.

Letters in array shapes: n cells, g genes, h hidden units.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

# Gradients of the mean negative log-probability with respect to the raw outputs (n, g or 2g), their bias (g or 2g) and
# log θ (g,).
Gradients = tuple[Tensor, Tensor, Tensor | None]


class Hidden(NamedTuple):
    """Hidden units, and the intermediate results that their gradients need."""

    hidden_nh: Tensor
    slope_nh: Tensor  # derivative of the units with respect to the input of the activation; 0 for dropped units
    normal_nh: Tensor  # the output of the linear map after its normalization
    inverse_sd_n: Tensor  # the inverse standard deviation by which the output of the linear map was multiplied
