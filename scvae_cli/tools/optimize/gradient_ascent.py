"""Uphill in latent space, no farther than cells go.

Maximises a score over the places z that a density calls usual, −log p(z) ≤ c: projected gradient ascent. A step goes up
the score's gradient; where that would lead out of the region it goes along the region's border instead, and is brought
back onto it by Newton's method. A step that does not raise the score as its slope promised is halved, so the score
rises from point to point, and where the walk ends the gradient is zero or points straight out of the region (the
Karush–Kuhn–Tucker conditions): a maximum of its surroundings, not always of the whole region.

Shapes: n places, k latent dimensions, t points of the walk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Score = Callable[[Tensor], Tensor]
TOP, LENGTH, STEPS = STOPPED = ("top", "length", "steps")
# Latent length of a step, in units of the prior's standard deviation: at first and at most, and where no shorter one
# is worth taking.
_LONGEST, _SHORTEST = 0.1, 1e-4
# A step must raise the score by this share of what its slope promised (Armijo).
_PROMISED = 0.1
# On the border the walk is at its top when no more than this share of the gradient leads along it.
_LEVEL = 3e-3
_MAX_STEPS = 3000
# Nor is it worth going on when so many steps brought less than this share of the rise so far.
_LATELY, _LITTLE = 100, 1e-3
_NEWTON_STEPS = 8
# How exactly the border is kept, nats.
_ON_BORDER = 1e-4


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """A way up.

    Parameters
    ----------
    z_tk
        Its points, the start first, in short steps of different lengths.
    score_t
        Their scores, rising.
    stopped
        Why it ends: "top" of what can be reached by rising, "length" that it was allowed, or number of "steps".
    """

    z_tk: np.ndarray
    score_t: np.ndarray
    stopped: str


@dataclass(frozen=True, kw_only=True)
class Region:
    """Places that a density calls usual, −log p(z) ≤ limit; a walk that starts outside need not go farther out.

    Parameters
    ----------
    log_prob
        Log density of some places, differentiable, shape (n,).
    limit
        c, nats.
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
    """Climb from a place.

    Parameters
    ----------
    score
        Score of some places, differentiable, shape (n,).
    start_k
        Where the walk starts.
    region
        Where it stays; None for anywhere.
    length
        Of a step between two places.
    max_length
        Length after which the walk ends.
    """
    z_k = start_k.detach().clone()
    value, slope_k = _with_slope(score, z_k)
    points, values = [z_k], [value]
    travelled, step, stopped, limit = 0.0, _LONGEST, STEPS, math.inf
    for _ in range(_MAX_STEPS):
        nll, normal_k = _border(region, z_k)
        if region is not None:
            # A walk that starts outside comes in, and never goes back out.
            limit = min(limit, max(region.limit, nll))
        moved = None
        while step >= _SHORTEST:
            move_k = _move(slope_k, normal_k, room=limit - nll, step=step)
            if move_k is None:
                break
            there_k = z_k + move_k if region is None else _inside(region, z_k + move_k, limit)
            promised = float(slope_k @ (there_k - z_k))
            there_value, there_slope_k = _with_slope(score, there_k)
            # Both numbers are float32: what is lost in their rounding is no rise.
            if math.isfinite(there_value) and there_value - value > max(_PROMISED * promised, 1e-7 * abs(value)):
                moved = there_k
                break
            step /= 2
        if moved is None:
            stopped = TOP
            break
        further = length(z_k, moved)
        if travelled + further >= max_length:
            # The last step is cut to what is left; the score rises along it, as far as it is straight.
            z_k = z_k + (max_length - travelled) / further * (moved - z_k)
            points.append(z_k)
            values.append(_with_slope(score, z_k)[0])
            stopped = LENGTH
            break
        travelled += further
        z_k, value, slope_k = moved, there_value, there_slope_k
        points.append(z_k)
        values.append(value)
        step = min(2 * step, _LONGEST)
        if len(values) > _LATELY and value - values[-_LATELY] < _LITTLE * (value - values[0]):
            stopped = TOP
            break
    return Ascent(z_tk=torch.stack(points).cpu().numpy(), score_t=np.asarray(values), stopped=stopped)


def kept_inside(region: Region, z_tk: Tensor) -> Tensor:
    """Places brought back into a region: those between two points on its border may lie just outside, shape (t, k)."""
    with torch.no_grad():
        limit = max(region.limit, float(-region.log_prob(z_tk[:1])))
    return torch.stack([_inside(region, z_k, limit) for z_k in z_tk])


def _border(region: Region | None, z_k: Tensor) -> tuple[float, Tensor | None]:
    """How far out a place is, −log density, and which way leads farther out."""
    if region is None:
        return 0.0, None
    log_prob, inward_k = _with_slope(region.log_prob, z_k)
    return -log_prob, -inward_k


def _move(slope_k: Tensor, normal_k: Tensor | None, *, room: float, step: float) -> Tensor | None:
    """A step up the gradient, or where that leads out of the region as far out as there is room, and along its border.

    None where neither leads anywhere.
    """
    if not float(slope_k.norm()) > 0:
        return None
    up_k: Tensor = slope_k / slope_k.norm()
    if normal_k is None or step * float(up_k @ normal_k) <= room:
        return step * up_k
    out_k = normal_k / normal_k.norm()
    along_k = up_k - (up_k @ out_k) * out_k
    gap = max(room, 0.0) / float(normal_k.norm())
    level = float(along_k.norm()) <= _LEVEL
    if level and gap <= _SHORTEST:
        return None
    move_k: Tensor = gap * out_k if level else gap * out_k + step * along_k / along_k.norm()
    return move_k


def _inside(region: Region, z_k: Tensor, limit: float) -> Tensor:
    """The place itself, or one nearby on the border where it lies outside."""
    for _ in range(_NEWTON_STEPS):
        log_prob, inward_k = _with_slope(region.log_prob, z_k)
        outside = -log_prob - limit
        if outside <= _ON_BORDER:
            break
        z_k = z_k + outside * inward_k / inward_k.square().sum()
    return z_k


@torch.enable_grad()
def _with_slope(function: Score, z_k: Tensor) -> tuple[float, Tensor]:
    """A function's value at a place, and its gradient there."""
    z_1k = z_k.detach()[None].clone().requires_grad_(True)
    value_1 = function(z_1k)
    (slope_1k,) = torch.autograd.grad(value_1.sum(), z_1k)
    return float(value_1.detach()), slope_1k[0]
