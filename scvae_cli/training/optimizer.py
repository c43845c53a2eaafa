"""AdamW with a running average of the weights.

The held-out cells are evaluated with the average of the weights over about the last hundred steps, and this average is
saved. The averaged weights are about as good as the weights of a training in which the learning rate falls to zero, and
are available at any step. Training therefore needs no planned step at which the learning rate is lowered.

On a CPU, a compiled loop visits each parameter once, and updates the moments, the parameter and its running average.
Plain torch would need a dozen loops over the parameters. On a GPU, the optimizer uses plain torch, so that an optimizer
step can be recorded once and then repeated (a CUDA graph). The numbers that change from step to step (`Factors`) are
tensors on the GPU.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numpy import float32, int64, uint32
from torch import Tensor, nn

from scvae_cli.model.compiled.vector_math import compiled
from scvae_cli.parallel import by_address, use_threads

BETA_1, BETA_2, EPSILON = 0.9, 0.99, 1e-8
AVERAGED_STEPS = 100
# An average over the weights of every fifth step is as good as an average over all steps, and takes almost no time.
AVERAGE_EVERY = 5
MAX_GRADIENT_NORM = 1000.0
# Parameters with fewer than SMALL numbers are updated by one thread, because starting more threads would take longer.
SMALL = 20_000


class Factors(NamedTuple):
    """Numbers that an optimizer step needs in addition to the gradients.

    The numbers are Python numbers, or scalar tensors on the device.

    Parameters
    ----------
    rate, corrected, scale
        Learning rate; learning rate multiplied by the bias correction of the first moment; bias correction of the
        second moment. The bias corrections are needed because the moments start at zero.
    weight
        Weight of the current parameters in the running average; 0 in steps that do not update the average.
    """

    rate: Any
    corrected: Any
    scale: Any
    weight: Any

    @classmethod
    def of_step(cls, rate: float, n_before: int) -> Factors:
        """Compute the factors of the optimizer step that follows `n_before` earlier steps."""
        weight = 0.0
        if n_before % AVERAGE_EVERY == 0:
            # Early in a training, the running average covers fewer steps, so that it soon forgets the random initial
            # weights.
            weight = 1 - min(1 - 1 / AVERAGED_STEPS, (1 + n_before) / (10 + n_before)) ** AVERAGE_EVERY
        return cls(rate, rate / (1 - BETA_1 ** (n_before + 1)), 1 / (1 - BETA_2 ** (n_before + 1)), weight)


class AveragedAdamW:
    """AdamW (Loshchilov & Hutter 2019) with averaged weights; gradients with a very large norm are scaled down.

    `AveragedAdamW` is not a `torch.optim.Optimizer`. Creating a `torch.optim.Optimizer` imports torch's compiler, which
    takes longer than many trainings. Weight decay applies to the weight matrices of the model, but not to
    biases, normalizations, dispersions or batch effects. In each step, a weight shrinks by a fraction: the product of
    learning rate and weight decay.
    """

    def __init__(self, model: nn.Module, weight_decay: float) -> None:
        self._decay: dict[Tensor, float] = {
            p: weight_decay if p.ndim == 2 and not name.startswith("decoder.batch") else 0.0
            for name, p in model.named_parameters()
        }
        self.state: dict[Tensor, dict[str, Tensor]] = {
            p: {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "average": p.detach().clone()}
            for p in self._decay
        }
        self._views: dict[Tensor, tuple[Any, ...]] = {}
        self._compiled = all(p.device.type == "cpu" for p in self._decay)

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """Return Adam's moments and the running average of each parameter.

        The keys of the returned dictionary are the indices of the parameters in the model.
        """
        return dict(enumerate(self.state.values()))

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[int, dict[str, Tensor]]) -> None:
        """Restore moments and averages that `state_dict` returned."""
        for index, state in enumerate(self.state.values()):
            for name, tensor in state.items():
                tensor.copy_(state_dict[index][name])

    @torch.no_grad()
    def advance(self, gradients: dict[Tensor, Tensor], rate: float, n_before: int) -> None:
        """Take the optimizer step that follows `n_before` earlier steps; gradients are in float32 or bfloat16."""
        factors = Factors.of_step(rate, n_before)
        if self._compiled:
            self._advance_compiled(gradients, factors)
        else:
            self.advance_torch(gradients, factors)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager in which the parameters are replaced by their running averages."""
        present = {p: p.detach().clone() for p in self.state}
        with torch.no_grad():
            for p, state in self.state.items():
                p.copy_(state["average"])
        try:
            yield
        finally:
            with torch.no_grad():
                for p, before in present.items():
                    p.copy_(before)

    def advance_torch(self, gradients: dict[Tensor, Tensor], factors: Factors) -> None:
        """Take an optimizer step in plain torch; the CPU does not wait for the device."""
        norm = torch.stack([torch.linalg.vector_norm(gradients[p].float()) for p in self._decay]).norm()
        clip = (MAX_GRADIENT_NORM / norm).clamp(max=1.0)
        for p, decay in self._decay.items():
            state, g = self.state[p], gradients[p].float() * clip
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.mul_(BETA_1).add_((1 - BETA_1) * g)
            square.mul_(BETA_2).add_((1 - BETA_2) * g * g)
            p.mul_(1 - factors.rate * decay).sub_(
                factors.corrected * mean * (square * factors.scale + EPSILON**2).rsqrt()
            )
            average = state["average"]
            average.add_(factors.weight * (p - average))

    def _advance_compiled(self, gradients: dict[Tensor, Tensor], factors: Factors) -> None:
        n_parts = use_threads()
        arrays = {p: _as_array(gradients[p]) for p in self._decay}
        squares, parts, no_factors = 0.0, np.zeros(n_parts), (float32(0),) * 5
        for p, gradient in arrays.items():
            if len(gradient) < SMALL:
                squares += _squares(gradient)
            else:
                arguments: tuple[Any, ...] = (gradient, *self._arrays(p), False, *no_factors, parts)
                _update_in_parts(_update_at(gradient.itemsize == 2), n_parts, *arguments)
        norm = math.sqrt(squares + parts.sum())
        clip = min(1.0, MAX_GRADIENT_NORM / norm) if norm > 0 else 1.0
        for p, decay in self._decay.items():
            gradient = arrays[p]
            numbers = (clip, 1 - factors.rate * decay, factors.corrected, factors.scale, factors.weight)
            arguments = (gradient, *self._arrays(p), True, *(float32(number) for number in numbers), parts)
            if len(gradient) < SMALL:
                _update(0, 1, *arguments)
            else:
                _update_in_parts(_update_at(gradient.itemsize == 2), n_parts, *arguments)

    def _arrays(self, p: Tensor) -> tuple[Any, ...]:
        """Return a parameter, its moments and its average as flat numpy arrays that share memory with the tensors."""
        if p not in self._views:
            state = self.state[p]
            held = (p.detach(), state["exp_avg"], state["exp_avg_sq"], state["average"])
            self._views[p] = tuple(tensor.view(-1).numpy() for tensor in held)
        return self._views[p]


def _as_array(gradient: Tensor) -> Any:
    """Return a gradient as a flat numpy array. Numpy has no bfloat16, so bfloat16 numbers are returned as bits."""
    return (gradient.view(torch.uint16) if gradient.dtype == torch.bfloat16 else gradient).numpy().reshape(-1)


@compiled(inline=True)
def _number(x: Any, is_bits: bool) -> Any:
    """Return a number as float32; if `is_bits` is True, the number is given as the bits of a bfloat16."""
    return uint32(uint32(x) << uint32(16)).view(float32) if is_bits else float32(x)


@compiled(any_order=True)
def _squares(gradient: Any) -> Any:
    is_bits = gradient.itemsize == 2
    result = float32(0)
    for i in range(len(gradient)):
        g = _number(gradient[i], is_bits)
        result += g * g
    return result


@compiled(inline=True)
def _inverse_root(x: Any) -> Any:
    """Compute 1/√x of a positive number to 5 parts in a million, three times as fast as a root and a division."""
    # Halving and negating the exponent of x gives a first approximation of 1/√x, which two Newton steps improve (Lomont
    # 2003).
    y = uint32(uint32(0x5F375A86) - uint32(float32(x).view(uint32) >> uint32(1))).view(float32)
    half = float32(0.5) * x
    y = y * (float32(1.5) - half * y * y)
    return y * (float32(1.5) - half * y * y)


@compiled()
def _update(
    part: int, n_parts: int, gradient: Any, p: Any, mean: Any, square: Any, average: Any, moves: bool,
    clip: Any, decay: Any, rate: Any, scale: Any, weight: Any, squares: Any,
) -> None:  # fmt: skip
    """If `moves` is True, update a part of a parameter; otherwise sum the squares of the gradient of this part.

    One function for updates and sums compiles faster than two functions.
    """
    beta_1, beta_2, one, tiny = float32(BETA_1), float32(BETA_2), float32(1), float32(EPSILON**2)
    n, is_bits = len(p), gradient.itemsize == 2
    here = slice(part * n // n_parts, (part + 1) * n // n_parts)
    gradient, p, mean, square, average = gradient[here], p[here], mean[here], square[here], average[here]
    if not moves:
        squares[part] += _squares(gradient)
        return
    for i in range(len(p)):
        g = _number(gradient[i], is_bits) * clip
        mean[i] = beta_1 * mean[i] + (one - beta_1) * g
        square[i] = beta_2 * square[i] + (one - beta_2) * g * g
        p[i] = p[i] * decay - rate * mean[i] * _inverse_root(square[i] * scale + tiny)
    if weight > 0:
        for i in range(len(p)):
            average[i] += weight * (p[i] - average[i])


_OTHERS = (*(numba.float32[::1],) * 4, numba.boolean, *(numba.float32,) * 5, numba.float64[::1])
_update_at, _call_update = by_address(
    _update, *((numba.int64, numba.int64, gradient[::1], *_OTHERS) for gradient in (numba.float32, numba.uint16))
)


@compiled(parallel=True)
def _update_in_parts(
    update_at: int, n_parts: int, gradient: Any, p: Any, mean: Any, square: Any, average: Any, moves: bool,
    clip: Any, decay: Any, rate: Any, scale: Any, weight: Any, squares: Any,
) -> None:  # fmt: skip
    for part in numba.prange(n_parts):
        _call_update(
            update_at, int64(part), n_parts, gradient, p, mean, square, average, moves, clip, decay, rate, scale,
            weight, squares,
        )  # fmt: skip
