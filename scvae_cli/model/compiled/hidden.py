"""LayerNorm → SiLU (the activation function) → dropout on a CPU, in one pass over the hidden units of each cell.

Letters in array shapes: n cells, h hidden units. In plain torch, LayerNorm, SiLU and dropout are a dozen operations on
small matrices, and the overhead of the operations takes longer than their arithmetic. The random numbers of dropout are
computed from a counter and a seed by a hash function, the last step of MurmurHash3. The hash function takes a few
processor instructions per hidden unit, while a random number from torch takes about a hundred instructions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy import float32, uint32
from torch import Tensor

from scvae_cli.model.compiled.vector_math import compiled, dot, exp, total
from scvae_cli.model.gradients import Hidden

_ZERO, _ONE = float32(0), float32(1)
_EPSILON = float32(1e-5)  # the default of torch's LayerNorm


def normalized_hidden(a_nh: Tensor, weight_h: Tensor, bias_h: Tensor, dropout: float) -> Tensor:
    """Compute dropout(SiLU(LayerNorm(a))) in float32 on the CPU.

    The result is differentiable. The seed of the dropout is drawn with torch's random number generator.
    """
    hidden: Tensor = _NormalizedHidden.apply(a_nh, weight_h, bias_h, dropout)  # type: ignore[no-untyped-call]  # torch's
    return hidden


def hidden_units(a_nh: Tensor, weight_h: Tensor, bias_h: Tensor, dropout: float) -> Hidden:
    """Compute dropout(SiLU(LayerNorm(a))) and the intermediate results that `hidden_gradients` needs."""
    seed = int(torch.randint(2**31, ())) if dropout else 0
    a_nh = a_nh.contiguous()
    made = Hidden(torch.empty_like(a_nh), torch.empty_like(a_nh), torch.empty_like(a_nh), torch.empty(len(a_nh)))
    weights = (weight_h.detach().numpy(), bias_h.detach().numpy())
    _forward(a_nh.numpy(), *weights, dropout, uint32(seed), *(t.numpy() for t in made))
    return made


def hidden_gradients(d_hidden_nh: Tensor, made: Hidden, weight_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute gradients with respect to the arguments a (n, h), weight (h,) and bias (h,) of `hidden_units`.

    `d_hidden_nh` is the gradient of the loss with respect to the hidden units.
    """
    gradients = (torch.empty_like(made.hidden_nh), torch.zeros(len(weight_h)), torch.zeros(len(weight_h)))
    slope, normal, inverse_sd = (t.numpy() for t in made[1:])
    upstream, weight = d_hidden_nh.contiguous().numpy(), weight_h.detach().numpy()
    _backward(upstream, slope, normal, inverse_sd, weight, *(t.numpy() for t in gradients))
    return gradients


class _NormalizedHidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a_nh: Tensor, weight_h: Tensor, bias_h: Tensor, dropout: float) -> Tensor:
        made = hidden_units(a_nh, weight_h, bias_h, dropout)
        ctx.save_for_backward(*made, weight_h)
        return made.hidden_nh

    @staticmethod
    def backward(ctx: Any, grad_nh: Tensor) -> tuple[Tensor | None, ...]:
        *made, weight_h = ctx.saved_tensors
        return (*hidden_gradients(grad_nh, Hidden(*made), weight_h), None)


@compiled()
def _forward(
    a_nh: Any, weight_h: Any, bias_h: Any, dropout: float, seed: Any, hidden_nh: Any, slope_nh: Any, normal_nh: Any,
    inverse_sd_n: Any,
) -> None:  # fmt: skip
    n_cells, n_hidden = a_nh.shape
    scale, threshold = float32(1 / (1 - dropout)), uint32(dropout * 2**32)
    for i in range(n_cells):
        a, normal, hidden, slope = a_nh[i], normal_nh[i], hidden_nh[i], slope_nh[i]
        mean = float32(total(a) / n_hidden)
        for j in range(n_hidden):
            normal[j] = a[j] - mean
        inverse_sd = _ONE / np.sqrt(float32(dot(normal, normal) / n_hidden) + _EPSILON)
        inverse_sd_n[i] = inverse_sd
        for j in range(n_hidden):
            normal[j] *= inverse_sd
            u = normal[j] * weight_h[j] + bias_h[j]
            sigmoid = _ONE / (_ONE + exp(-u))
            hidden[j] = u * sigmoid * scale
            slope[j] = sigmoid * (_ONE + u * (_ONE - sigmoid)) * scale
        if dropout > 0:
            first = uint32(seed + i * n_hidden)
            for j in range(n_hidden):
                mask = _ONE if _hash(uint32(first + uint32(j))) >= threshold else _ZERO
                hidden[j] *= mask
                slope[j] *= mask


@compiled()
def _backward(
    grad_nh: Any, slope_nh: Any, normal_nh: Any, inverse_sd_n: Any, weight_h: Any, d_a_nh: Any, d_weight_h: Any,
    d_bias_h: Any,
) -> None:  # fmt: skip
    n_cells, n_hidden = slope_nh.shape
    d_normal = np.empty(n_hidden, float32)
    for i in range(n_cells):
        grad, slope, normal, d_a = grad_nh[i], slope_nh[i], normal_nh[i], d_a_nh[i]
        for j in range(n_hidden):
            d_normal[j] = grad[j] * slope[j]
            d_weight_h[j] += d_normal[j] * normal[j]
            d_bias_h[j] += d_normal[j]
        for j in range(n_hidden):
            d_normal[j] *= weight_h[j]
        mean, along = float32(total(d_normal) / n_hidden), float32(dot(d_normal, normal) / n_hidden)
        for j in range(n_hidden):
            d_a[j] = inverse_sd_n[i] * (d_normal[j] - mean - normal[j] * along)


@compiled(inline=True)
def _hash(x: Any) -> Any:
    # Every result is cast back to 32 bits, because numba widens integers to 64 bits, and a vector register holds only
    # half as many 64-bit integers.
    x = uint32(uint32(x ^ uint32(x >> uint32(16))) * uint32(0x85EBCA6B))
    x = uint32(uint32(x ^ uint32(x >> uint32(13))) * uint32(0xC2B2AE35))
    return uint32(x ^ uint32(x >> uint32(16)))
