"""Projected gradient ascent in latent space, within a region that contains cells.

The score is maximized over the region of all latent positions z with −log p(z) ≤ c, where p is the density of cells. A
step follows the gradient of the score. A step that would leave the region follows the boundary instead, and Newton's
method then moves the end of the step back onto the boundary. If a step increases the score by much less than the
gradient predicts, the step is halved. The score therefore increases from each point of the path to the next. Unless the
path is stopped early, the gradient at its end is zero or points straight out of the region (the Karush–Kuhn–Tucker
conditions). A path that is not stopped early ends at a local maximum of the score, but not always at the global maximum
in the region.

Letters in array shapes: n latent positions, k latent dimensions, t points of the path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A differentiable function of latent positions, (n, k) → (n,).
Score = Callable[[Tensor], Tensor]
MAXIMUM, MAX_LENGTH, MAX_STEPS = "maximum", "max_length", "max_steps"
# Largest and smallest latent length of a step, in standard deviations of the prior. Gradient ascent tries the largest
# length first.
_LONGEST, _SHORTEST = 0.1, 1e-4
# A step must increase the score by at least this fraction of the increase that the gradient predicts (the Armijo
# condition).
_EXPECTED = 0.1
# A point on the boundary is a maximum if at most this fraction of the gradient points along the boundary.
_STATIONARY = 3e-3
_MAX_ITERATIONS = 3000
# Gradient ascent ends if the last `_RECENT_STEPS` steps contributed less than the fraction `_LEAST_INCREASE` of the
# total increase of the score.
_RECENT_STEPS, _LEAST_INCREASE = 100, 1e-3
_NEWTON_STEPS = 8
# A position counts as inside a region if −log density exceeds the limit by at most this value, in nats.
_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """A path along which a score increases.

    Parameters
    ----------
    z_tk, score_t
        Points of the path in order from the start, at short and unequal distances, and the score at each point.
    stopped
        Why the path ends: it reached a local maximum ("maximum"), the largest length ("max_length") or the largest
        number of steps ("max_steps").
    """

    z_tk: np.ndarray
    score_t: np.ndarray
    stopped: str


@dataclass(frozen=True, kw_only=True)
class Region:
    """Latent positions z where −log p(z) ≤ limit, in nats.

    Outside the region, a path never moves to a lower density.
    """

    log_prob: Score
    limit: float


def ascend(
    score: Score,
    start_k: Tensor,
    *,
    region: Region | None,
    length: Callable[[Tensor, Tensor], float],
    max_length: float,
) -> Ascent:
    """Increase a score from a starting position within `region`, or anywhere if `region` is None.

    `length` computes the length of a step between two positions. The path ends when the length of the path reaches
    `max_length`.
    """
    z_k = start_k.detach().clone()
    value, slope_k = _with_slope(score, z_k)
    points, values = [z_k], [value]
    total, step, stopped, limit = 0.0, _LONGEST, MAX_STEPS, math.inf
    for _ in range(_MAX_ITERATIONS):
        nll, normal_k = 0.0, None
        if region is not None:
            log_prob, inward_k = _with_slope(region.log_prob, z_k)
            nll, normal_k = -log_prob, -inward_k
            # A path that starts outside the region enters it and never leaves it again.
            limit = min(limit, max(region.limit, nll))
        moved = None
        while step >= _SHORTEST:
            move_k = _move(slope_k, normal_k, margin=limit - nll, step=step)
            if move_k is None:
                break
            next_k = z_k + move_k if region is None else _inside(region, z_k + move_k, limit)
            expected = float(slope_k @ (next_k - z_k))
            next_value, next_slope_k = _with_slope(score, next_k)
            # Scores are float32, so an increase within the rounding error does not count.
            if math.isfinite(next_value) and next_value - value > max(_EXPECTED * expected, 1e-7 * abs(value)):
                moved = next_k
                break
            step /= 2
        if moved is None:
            stopped = MAXIMUM
            break
        added = length(z_k, moved)
        if total + added >= max_length:
            # The last step is shortened to the maximum length. The score increases along the shortened step if the
            # score is nearly linear there.
            z_k = z_k + (max_length - total) / added * (moved - z_k)
            points.append(z_k)
            values.append(_with_slope(score, z_k)[0])
            stopped = MAX_LENGTH
            break
        total += added
        z_k, value, slope_k = moved, next_value, next_slope_k
        points.append(z_k)
        values.append(value)
        step = min(2 * step, _LONGEST)
        if len(values) > _RECENT_STEPS and value - values[-_RECENT_STEPS] < _LEAST_INCREASE * (value - values[0]):
            stopped = MAXIMUM
            break
    return Ascent(z_tk=torch.stack(points).cpu().numpy(), score_t=np.asarray(values), stopped=stopped)


def kept_inside(region: Region, z_tk: Tensor) -> Tensor:
    """Move positions of shape (t, k) back into a region.

    Positions that were interpolated between two points on the boundary may lie just outside the region.
    """
    with torch.no_grad():
        limit = max(region.limit, float(-region.log_prob(z_tk[:1])))
    return torch.stack([_inside(region, z_k, limit) for z_k in z_tk])


def _move(slope_k: Tensor, normal_k: Tensor | None, *, margin: float, step: float) -> Tensor | None:
    """Compute a step along the gradient; if this step would leave the region, compute a step along the boundary.

    A step along the boundary starts at the nearest point of the boundary. `margin` is the amount by which −log density
    may increase before the limit of the region is reached. Returns None if no step increases the score.
    """
    if not float(slope_k.norm()) > 0:
        return None
    unit_k: Tensor = slope_k / slope_k.norm()
    if normal_k is None or step * float(unit_k @ normal_k) <= margin:
        return step * unit_k
    out_k = normal_k / normal_k.norm()
    along_k = unit_k - (unit_k @ out_k) * out_k
    gap = max(margin, 0.0) / float(normal_k.norm())
    stationary = float(along_k.norm()) <= _STATIONARY
    if stationary and gap <= _SHORTEST:
        return None
    move_k: Tensor = gap * out_k if stationary else gap * out_k + step * along_k / along_k.norm()
    return move_k


def _inside(region: Region, z_k: Tensor, limit: float) -> Tensor:
    """Return a position unchanged if it lies in the region; otherwise, return a nearby position on the boundary."""
    for _ in range(_NEWTON_STEPS):
        log_prob, inward_k = _with_slope(region.log_prob, z_k)
        outside = -log_prob - limit
        if outside <= _TOLERANCE:
            break
        z_k = z_k + outside * inward_k / inward_k.square().sum()
    return z_k


def _with_slope(function: Score, z_k: Tensor) -> tuple[float, Tensor]:
    value_1, slope_1k = with_slopes(function, z_k[None])
    return float(value_1), slope_1k[0]


@torch.enable_grad()
def with_slopes(function: Score, z_nk: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the values and the gradients of a function at latent positions."""
    z_nk = z_nk.detach().clone().requires_grad_(True)
    value_n = function(z_nk)
    (slope_nk,) = torch.autograd.grad(value_n.sum(), z_nk)
    return value_n.detach(), slope_nk
