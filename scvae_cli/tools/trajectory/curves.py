"""Paths through latent space: straight, along cells, or geodesic.

A waypoint is a latent position that a path must pass. The part of a path between two consecutive waypoints is a
segment. The Fisher–Rao length of a path measures the change of decoded expression along the path. One unit of
Fisher–Rao length is the standard deviation of a single count around its expected value. In a model of real-valued data,
the unit is the standard deviation of the noise.

Letters in array shapes: n points, p paths, w waypoints, l segments, t points along a path or segment, c control points,
k latent dimensions, g genes, m nodes of the neighbor graph.
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
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.trajectory.avoided import AvoidedCells, with_long_edges

# A segment is a clamped cubic B-spline with this number of control points, evaluated at this number of points.
_CONTROLS, _SOLVED = 12, 24
# Each segment is optimized twice, each time with this number of iterations. In each optimization, the step size of a
# control point starts at a latent length in `_FIRST_STEPS` and decreases linearly to zero.
_ITERATIONS, _FIRST_STEPS = 40, (0.1, 0.05)
# `_COST_INCREASE` is the initial rate at which the factor `cost` increases with −log density. The unit of −log density
# is its increase from the density that half of the held-out cells exceed to the density that 95% of them exceed.
# `_MOST_INCREASE` is the largest increase, because all directions are equally good where no cells were observed.
# A step among cells that are avoided costs as much as a step where no cells were observed.
_COST_INCREASE, _MOST_INCREASE = 10.0, 5.0
# The straight line becomes a second initial guess if its weighted length is at most this multiple of the weighted
# length of the segment found from the first guess.
_WORTH_SOLVING = 2.0
# Number of values processed at once (points × genes). On a CPU, a block has 2 MB in float32: larger blocks exceed the
# cache, and a bundle then takes nearly twice as long. On other devices, a block has 160 MB, because small blocks would
# not keep the device busy.
CPU_VALUES, _DEVICE_VALUES = 500_000, 40_000_000


def straight(waypoints_wk: np.ndarray, n_steps: int) -> np.ndarray:
    """Connect waypoints by straight lines, with points at equal latent distances, shape (t, k).

    >>> straight(np.array([[0.0], [3.0], [4.0]]), 5).ravel().tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0]
    """
    return _resampled(waypoints_wk, np.linalg.norm(np.diff(waypoints_wk, axis=0), axis=1), n_steps)


def at_constant_speed(geometry: Geometry, points_tk: np.ndarray, n_steps: int) -> np.ndarray:
    """Resample a path in steps of equal Fisher–Rao length, shape (n_steps, k)."""
    return _resampled(points_tk, step_lengths(geometry, points_tk), n_steps)


def step_lengths(geometry: Geometry, points_tk: np.ndarray) -> np.ndarray:
    """Compute the Fisher–Rao length of every step, shape (t - 1,)."""
    y_tg = coordinates(geometry, torch.as_tensor(points_tk, dtype=torch.float32))
    return np.asarray((y_tg[1:] - y_tg[:-1]).norm(dim=1), dtype=np.float64)


def along_cells(graph: CellGraph, waypoints_pwk: np.ndarray, nodes_pw: np.ndarray) -> list[list[np.ndarray]]:
    """Compute the segments of the shortest paths through the neighbor graph of the cells.

    `nodes_pw` is the graph node nearest to each waypoint. Returns the segments of each path in order. Each segment runs
    from one waypoint to the next through posterior means of cells. Each segment has shape (t, k).
    """
    pairs = [(int(a), int(b)) for path in nodes_pw for a, b in pairwise(path)]
    nodes = iter(graph.shortest_paths(pairs))
    paths = []
    for waypoints_wk in waypoints_pwk:
        segments = []
        for start_k, end_k in pairwise(waypoints_wk):
            inner = torch.as_tensor(next(nodes)[1:-1], dtype=torch.int64)
            segments.append(np.concatenate([start_k[None], graph.mean_mk[inner].numpy(), end_k[None]]))
        paths.append(segments)
    return paths


def cost(density: LatentDensity, z_nk: Tensor, avoided: AvoidedCells | None = None) -> Tensor:
    """Compute the factor by which `geodesics` multiplies lengths at latent points, shape (n,).

    The factor is large where there are few cells, and where most cells are avoided. Wherever the density is at least
    the median density of the held-out cells, and no cells are avoided, the factor is 1. Below the median, the factor
    increases with −log density to an upper limit of 6. A path through a region without cells is therefore taken if all
    other paths are more than six times as long. Among avoided cells, the factor is larger by 5.
    """
    usual = density.nll_at(0.5)
    scale = max(density.nll_at(OFF_MANIFOLD) - usual, 1e-6)
    excess_n = torch.relu((-density.log_prob(z_nk) - usual) / scale)
    factor_n = 1 - _MOST_INCREASE * torch.expm1(-_COST_INCREASE / _MOST_INCREASE * excess_n)
    return factor_n if avoided is None else factor_n + _MOST_INCREASE * avoided.share(z_nk)


def around_avoided(graph: CellGraph, avoided_m: np.ndarray) -> CellGraph:
    """Lengthen the edges of avoided nodes by the largest factor of `cost`. `avoided_m` is the mask of these nodes."""
    return with_long_edges(graph, avoided_m, 1 + _MOST_INCREASE)


def with_squared_lengths(graph: CellGraph) -> CellGraph:
    """Square the lengths of the edges of a graph.

    With squared lengths, a long edge costs more than many short edges with the same total length, so that shortest
    paths stay where there are many cells. The length of a shortest path with squared edge lengths is called a Fermat
    distance (Groisman, Jonckheere & Sapienza, arXiv:1810.09398).
    """
    return replace(graph, lengths=graph.lengths.power(2))


def geodesics(
    geometry: Geometry,
    density: LatentDensity,
    guesses: Sequence[np.ndarray],
    *,
    avoided: AvoidedCells | None = None,
    progress: Progress = silent,
) -> list[np.ndarray]:
    """Compute segments of least energy, in a metric in which segments through regions with few cells are long.

    Segments among the cells in `avoided` are long, too. `guesses` contains one initial guess for each segment. Each
    guess has shape (t, k), with any t ≥ 2. Returns one segment for each guess, in the order of the guesses. The number
    of points of a returned segment does not depend on the guess.

    Each segment is a cubic spline with the same ends as its initial guess. The energy of a segment is Σ
    (w(z)·‖y(z_{t+1}) − y(z_t)‖)² / Δt. In the energy, w is the factor that `cost` computes, y are the Fisher–Rao
    coordinates of the decoded expression, and Δt is the constant step in the parameter of the spline. After the first
    optimization, the segment is resampled at constant speed and optimized again. The straight line between the ends is
    a second initial guess, unless it is much longer than the segment. If a segment was optimized from two guesses, the
    shorter result is returned.
    If cells are avoided, there is only one guess, because a straight line would cross the gap between two branches
    instead of following cells.
    """
    solved = _solved(geometry, density, guesses, avoided, progress=progress)
    if avoided is not None:
        return solved
    straight_lines = [straight(segment_tk[[0, -1]], _SOLVED) for segment_tk in solved]
    length_l = weighted_lengths(geometry, density, solved)
    worth = np.flatnonzero(weighted_lengths(geometry, density, straight_lines) <= _WORTH_SOLVING * length_l)
    others = _solved(geometry, density, [straight_lines[i] for i in worth], None, progress=progress)
    for i, other, length in zip(worth, others, weighted_lengths(geometry, density, others), strict=True):
        if length < length_l[i]:
            solved[i] = other
    return solved


def weighted_lengths(geometry: Geometry, density: LatentDensity, segments: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the Fisher–Rao length of each segment, weighted by `cost`, shape (l,)."""
    density, lengths = density.to(torch.device("cpu")), []
    for points_tk in segments:
        middle_tk = torch.as_tensor((points_tk[1:] + points_tk[:-1]) / 2, dtype=torch.float32)
        lengths.append(cost(density, middle_tk).double().numpy() @ step_lengths(geometry, points_tk))
    return np.asarray(lengths)


def _solved(
    geometry: Geometry,
    density: LatentDensity,
    guesses: Sequence[np.ndarray],
    avoided: AvoidedCells | None,
    *,
    progress: Progress,
) -> list[np.ndarray]:
    """Compute segments of least energy, each from one initial guess."""
    device = geometry.vae.reference_library.device
    density, avoided = density.to(device), None if avoided is None else avoided.to(device)
    values = CPU_VALUES if device.type == "cpu" else _DEVICE_VALUES
    at_once = max(1, values // (_SOLVED * geometry.vae.n_genes))
    solved: list[np.ndarray] = []
    with progress("Solving", len(guesses)) as advance:
        for first in range(0, len(guesses), at_once):
            batch = list(guesses[first : first + at_once])
            for first_step in _FIRST_STEPS:
                even = np.stack([at_constant_speed(geometry, segment, _SOLVED) for segment in batch])
                guess_ltk = torch.as_tensor(even, dtype=torch.float32, device=device)
                batch = list(_least_energy(geometry, density, guess_ltk, avoided, first_step).cpu().numpy())
                advance(len(batch) / len(_FIRST_STEPS))
            solved += batch
    return solved


@torch.enable_grad()
def _least_energy(
    geometry: Geometry, density: LatentDensity, guess_ltk: Tensor, avoided: AvoidedCells | None, first_step: float
) -> Tensor:
    basis_tc = spline_basis(_SOLVED).to(guess_ltk)
    first_l1k, last_l1k = guess_ltk[:, :1], guess_ltk[:, -1:]
    inner_lck = _fitted(basis_tc, guess_ltk).requires_grad_(True)
    # The optimizer is Adam (Kingma & Ba 2015) with one step size for all axes of a point, so that rotations do not
    # change the result. The optimizers of torch are not used, because importing them also imports the compiler of torch
    # and takes most of a second.
    mean_lck, square_lc1 = torch.zeros_like(inner_lck), torch.zeros_like(inner_lck[..., :1])
    n_segments, k = guess_ltk.shape[0], guess_ltk.shape[2]
    for iteration in range(_ITERATIONS):
        points_ltk = basis_tc @ torch.cat([first_l1k, inner_lck, last_l1k], dim=1)
        y_ltg = geometry.coordinates(points_ltk.reshape(-1, k)).reshape(n_segments, _SOLVED, -1)
        middle_ltk = (points_ltk[:, 1:] + points_ltk[:, :-1]) / 2
        cost_lt = cost(density, middle_ltk.reshape(-1, k), avoided).reshape(n_segments, -1)
        squared_lt = (y_ltg[:, 1:] - y_ltg[:, :-1]).square().sum(2)
        energy = (cost_lt.square() * squared_lt).sum()
        (gradient_lck,) = torch.autograd.grad(energy, inner_lck)
        mean_lck.lerp_(gradient_lck, 0.1)
        square_lc1.lerp_(gradient_lck.square().mean(-1, keepdim=True), 0.001)
        direction_lck = mean_lck / (1 - 0.9 ** (iteration + 1))
        scale_lc1 = (square_lc1 / (1 - 0.999 ** (iteration + 1))).sqrt() + 1e-12
        with torch.no_grad():
            inner_lck -= first_step * (1 - iteration / _ITERATIONS) * direction_lck / scale_lc1
    dense_tc = spline_basis(4 * _SOLVED).to(guess_ltk)
    result: Tensor = dense_tc @ torch.cat([first_l1k, inner_lck.detach(), last_l1k], dim=1)
    return result


def spline_basis(n_points: int) -> Tensor:
    """Evaluate the basis functions of a clamped cubic B-spline at equally spaced positions, shape (t, c).

    In a clamped spline, the first and last control points are the ends of the curve. The basis functions are computed
    by the recursion of Cox and de Boor. The splines of scipy are not used, because importing them also imports the
    optimizers of scipy and takes a fifth of a second.
    """
    inner = np.linspace(0, 1, _CONTROLS - 2)
    knots = np.concatenate([[0.0] * 3, inner, [1.0] * 3])
    at_t1 = np.linspace(0, 1, n_points)[:, None]
    # `interval_t` is the knot interval of each position; the last position belongs to the last interval.
    interval_t = np.minimum(np.searchsorted(inner, at_t1[:, 0], side="right"), len(inner) - 1) + 2
    basis = np.asarray(interval_t[:, None] == np.arange(len(knots) - 1), dtype=np.float64)
    for degree in (1, 2, 3):
        span = np.maximum(knots[degree:] - knots[:-degree], 1e-12)
        up = (at_t1 - knots[: -degree - 1]) / span[:-1] * basis[:, :-1]
        down = (knots[degree + 1 :] - at_t1) / span[1:] * basis[:, 1:]
        basis = up + down
    return torch.as_tensor(basis, dtype=torch.float32)


def _fitted(basis_tc: Tensor, points_ltk: Tensor) -> Tensor:
    """Fit splines with fixed ends to points by least squares. Returns the inner control points, shape (l, c - 2, k)."""
    ends_lck = points_ltk[:, [0, -1]]
    inverse_ct: Tensor = torch.linalg.pinv(basis_tc[:, 1:-1])
    return inverse_ct @ (points_ltk - basis_tc[:, [0, -1]] @ ends_lck)


def _resampled(points_tk: np.ndarray, length_s: np.ndarray, n_steps: int) -> np.ndarray:
    """Interpolate a path linearly, with `n_steps` points at equal distances. `length_s` is the length of each step."""
    distance_t = np.concatenate([[0.0], np.cumsum(length_s)])
    at_t = np.linspace(0, distance_t[-1], n_steps)
    even_tk = np.stack([np.interp(at_t, distance_t, points_tk[:, d]) for d in range(points_tk.shape[1])], axis=1)
    # Rounding must not change the ends.
    even_tk[0], even_tk[-1] = points_tk[0], points_tk[-1]
    return even_tk
