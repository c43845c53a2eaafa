"""The isometric coordinate of a negative binomial gene: the function of the mean whose Fisher information is 1.

Letters in array shapes: n points, g genes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def isometric(mean_ng: Tensor, theta_g: Tensor | None) -> Tensor:
    """Compute the isometric coordinates y of expected counts, shape (n, g).

    The inverse dispersion θ receives no gradient. For a Poisson distribution, `theta_g` is None.

    >>> isometric(torch.tensor([[4.0]]), None)
    tensor([[4.]])
    """
    theta_g = None if theta_g is None else theta_g.detach()
    y_ng: Tensor = _Isometric.apply(mean_ng, theta_g)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return y_ng


class _Isometric(torch.autograd.Function):
    """Autograd function of the isometric coordinate, computed in place and with an explicit derivative.

    With plain torch operations, the computation of the isometric coordinate would take three times as long.
    """

    @staticmethod
    def forward(ctx: Any, mean_ng: Tensor, theta_g: Tensor | None) -> Tensor:
        ctx.save_for_backward(mean_ng, theta_g)
        if theta_g is None:
            return mean_ng.sqrt().mul_(2)
        # The code uses asinh(√r) = log1p(√r + r / (1 + √(1 + r))), because torch's asinh takes ten times as long as its
        # log1p.
        ratio_ng = mean_ng.div(theta_g)
        root_ng = ratio_ng.sqrt()
        ratio_ng = ratio_ng.div_(ratio_ng.add(1).sqrt_().add_(1))
        return ratio_ng.add_(root_ng).log1p_().mul_(2 * theta_g.sqrt())

    @staticmethod
    def backward(ctx: Any, grad_ng: Tensor) -> tuple[Tensor, None]:
        return slope(*ctx.saved_tensors).mul(grad_ng), None


def slope(mean_ng: Tensor, theta_g: Tensor | None) -> Tensor:
    """Compute the derivative of the isometric coordinate: dy/dμ = √(θ/(μ(μ+θ))), shape (n, g)."""
    # The lower bound keeps the slope finite for genes with nearly no expression, which contribute almost nothing to
    # distances.
    floored_ng = mean_ng.clamp_min(1e-12)
    if theta_g is None:
        return floored_ng.rsqrt()
    return (floored_ng * (1 + floored_ng / theta_g)).rsqrt()
