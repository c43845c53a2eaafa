"""Ways through latent space: straight, along cells, or geodesic.

A path goes from way-point to way-point; each stretch between two of them is a leg. All legs of all paths are solved
together.

Shapes: n places, p paths, w way-points, l legs, t points along a path or leg, c control points, k latent dimensions,
g genes, m nodes of the cells' graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.latent.neighbor_graph import CellGraph, coordinates
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.geometry import Geometry

# A leg is a clamped cubic B-spline with so many control points, solved at so many points.
_CONTROLS, _SOLVED = 12, 24
# It is solved twice, in so many steps; a control point's begin with these latent lengths and shrink to nothing.
_ITERATIONS, _FIRST_STEPS = 40, (0.1, 0.05)
# How much slower a walk is where 95% of the held-out cells lie in denser places, than where half of them do.
_SLOWDOWN = 10.0
# Values handled at once (points × genes). On a CPU 2 MB in float32: larger blocks leave the cache, and a bundle takes
# nearly twice as long. Elsewhere 160 MB: small ones would not keep a device busy.
_CPU_VALUES, _DEVICE_VALUES = 500_000, 40_000_000


def straight(corners_wk: np.ndarray, n_steps: int) -> np.ndarray:
    """Straight lines from corner to corner, walked at constant latent speed, shape (t, k).

    >>> straight(np.array([[0.0], [3.0], [4.0]]), 5).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    return _walk(corners_wk, np.linalg.norm(np.diff(corners_wk, axis=0), axis=1), n_steps)


def at_constant_speed(geometry: Geometry, points_tk: np.ndarray, n_steps: int) -> np.ndarray:
    """The same way in steps of equal Fisher–Rao length, shape (n_steps, k)."""
    return _walk(points_tk, step_lengths(geometry, points_tk), n_steps)


def step_lengths(geometry: Geometry, points_tk: np.ndarray) -> np.ndarray:
    """Fisher–Rao length of every step, shape (t - 1,), standard deviations of a count."""
    y_tg = coordinates(geometry, torch.as_tensor(points_tk, dtype=torch.float32))
    return np.asarray((y_tg[1:] - y_tg[:-1]).norm(dim=1), dtype=np.float64)


def along_cells(graph: CellGraph, ends_pwk: np.ndarray, nodes_pw: np.ndarray) -> list[list[np.ndarray]]:
    """The legs of paths that go from cell to cell, each of shape (t, k).

    Parameters
    ----------
    graph
        Of the cells.
    ends_pwk
        Way-points.
    nodes_pw
        The node at, or nearest to, each way-point.
    """
    pairs = [(int(a), int(b)) for path in nodes_pw for a, b in pairwise(path)]
    nodes = graph.shortest_paths(pairs)
    n_legs = ends_pwk.shape[1] - 1
    legs = []
    for p, ends_wk in enumerate(ends_pwk):
        mine = nodes[p * n_legs : (p + 1) * n_legs]
        inner = [graph.mean_mk[torch.as_tensor(leg[1:-1], dtype=torch.int64)].numpy() for leg in mine]
        legs.append([np.concatenate([ends_wk[i : i + 1], leg, ends_wk[i + 1 : i + 2]]) for i, leg in enumerate(inner)])
    return legs


def slowness(density: LatentDensity, z_nk: Tensor) -> Tensor:
    """How much slower a walk is at some places, shape (n,).

    1 where at least half of the held-out cells lie in thinner places, and from there growing linearly with −log
    density, to 1 + 10 where 95% of them lie in denser places.
    """
    usual = density.nll_at(0.5)
    scale = max(density.nll_at(OFF_MANIFOLD) - usual, 1e-6)
    return 1 + _SLOWDOWN * torch.relu((-density.log_prob(z_nk) - usual) / scale)


def with_squared_lengths(graph: CellGraph) -> CellGraph:
    """The graph with edges as long as the energy of walking each in unit time.

    One long step then costs more than many short ones, so shortest paths keep to where cells are many (the Fermat
    distance of Groisman, Jonckheere & Sapienza, arXiv:1810.09398).
    """
    return replace(graph, lengths=graph.lengths.power(2))


def geodesics(geometry: Geometry, density: LatentDensity, legs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Ways of least energy between the ends of legs, in a metric that makes walking off the manifold slow.

    Minimises Σ (w(z)·‖y(z_{t+1}) − y(z_t)‖)² / Δt over cubic splines with the legs' ends, started from the legs; w is
    the slowness. The solution is spread out at constant speed, which shows what lay between its points, and solved once
    more.

    Parameters
    ----------
    geometry, density
        Of the model.
    legs
        First guesses, each of shape (t, k), any t ≥ 2.

    Returns
    -------
    The solved legs, each of shape (t', k), in order.
    """
    device = geometry.vae.reference_library.device
    density = density.to(device)
    values = _CPU_VALUES if device.type == "cpu" else _DEVICE_VALUES
    at_once = max(1, values // (_SOLVED * geometry.vae.n_genes))
    solved: list[np.ndarray] = []
    for first in range(0, len(legs), at_once):
        some = list(legs[first : first + at_once])
        for first_step in _FIRST_STEPS:
            spread = np.stack([at_constant_speed(geometry, leg, _SOLVED) for leg in some])
            guess_ltk = torch.as_tensor(spread, dtype=torch.float32, device=device)
            some = list(_least_energy(geometry, density, guess_ltk, first_step).cpu().numpy())
        solved += some
    return solved


@torch.enable_grad()
def _least_energy(geometry: Geometry, density: LatentDensity, guess_ltk: Tensor, first_step: float) -> Tensor:
    basis_tc = _basis(_SOLVED).to(guess_ltk)
    first_l1k, last_l1k = guess_ltk[:, :1], guess_ltk[:, -1:]
    inner_lck = _fitted(basis_tc, guess_ltk).requires_grad_(True)
    optimizer = _Adam(inner_lck)
    n_legs, k = guess_ltk.shape[0], guess_ltk.shape[2]
    for iteration in range(_ITERATIONS):
        points_ltk = basis_tc @ torch.cat([first_l1k, inner_lck, last_l1k], dim=1)
        y_ltg = geometry.coordinates(points_ltk.reshape(-1, k)).reshape(n_legs, _SOLVED, -1)
        middle_ltk = (points_ltk[:, 1:] + points_ltk[:, :-1]) / 2
        slowness_lt = slowness(density, middle_ltk.reshape(-1, k)).reshape(n_legs, -1)
        squared_lt = (y_ltg[:, 1:] - y_ltg[:, :-1]).square().sum(2)
        energy = (slowness_lt.square() * squared_lt).sum()
        (gradient_lck,) = torch.autograd.grad(energy, inner_lck)
        optimizer.step(gradient_lck, first_step * (1 - iteration / _ITERATIONS))
    dense_tc = _basis(4 * _SOLVED).to(guess_ltk)
    result: Tensor = dense_tc @ torch.cat([first_l1k, inner_lck.detach(), last_l1k], dim=1)
    return result


class _Adam:
    """Adam (Kingma & Ba 2015) with one step size for all directions of a point, so that no rotation changes a way.

    torch's would import its compiler, for most of a second.
    """

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.mean, self.square = torch.zeros_like(parameter), torch.zeros_like(parameter[..., :1])
        self.steps = 0

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        """Take one step."""
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square().mean(-1, keepdim=True), 0.001)
        mean = self.mean / (1 - 0.9**self.steps)
        scale = (self.square / (1 - 0.999**self.steps)).sqrt()
        self.parameter -= rate * mean / (scale + 1e-12)


def _basis(n_points: int) -> Tensor:
    """Clamped cubic B-splines at equally spaced places, shape (t, c); the first and last point are control points.

    By the recursion of Cox and de Boor; scipy's splines would import its optimisers, for a fifth of a second.
    """
    inner = np.linspace(0, 1, _CONTROLS - 2)
    knots = np.concatenate([[0.0] * 3, inner, [1.0] * 3])
    at_t1 = np.linspace(0, 1, n_points)[:, None]
    # The interval each place lies in; the last place lies in the last interval, not beyond it.
    interval_t = np.minimum(np.searchsorted(inner, at_t1[:, 0], side="right"), len(inner) - 1) + 2
    basis = np.asarray(interval_t[:, None] == np.arange(len(knots) - 1), dtype=np.float64)
    for degree in (1, 2, 3):
        span = np.maximum(knots[degree:] - knots[:-degree], 1e-12)
        up = (at_t1 - knots[: -degree - 1]) / span[:-1] * basis[:, :-1]
        down = (knots[degree + 1 :] - at_t1) / span[1:] * basis[:, 1:]
        basis = up + down
    return torch.as_tensor(basis, dtype=torch.float32)


def _fitted(basis_tc: Tensor, points_ltk: Tensor) -> Tensor:
    """Inner control points of the splines nearest to some points, with the same ends, shape (l, c - 2, k)."""
    ends_lck = points_ltk[:, [0, -1]]
    inverse_ct: Tensor = torch.linalg.pinv(basis_tc[:, 1:-1])
    return inverse_ct @ (points_ltk - basis_tc[:, [0, -1]] @ ends_lck)


def _walk(points_tk: np.ndarray, length_s: np.ndarray, n_steps: int) -> np.ndarray:
    place_t = np.concatenate([[0.0], np.cumsum(length_s)])
    at_t = np.linspace(0, place_t[-1], n_steps)
    walked = np.stack([np.interp(at_t, place_t, points_tk[:, d]) for d in range(points_tk.shape[1])], axis=1)
    # The ends are exact, whatever rounding did.
    walked[0], walked[-1] = points_tk[0], points_tk[-1]
    return walked
