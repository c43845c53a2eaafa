"""A trajectory that increases the score of a gene program, in regions where cells are.

Gradient ascent from the start increases the score up to a local maximum. Gradient ascent from the cell with the highest
score may end at a higher maximum. In this case, a path from the start to the higher maximum is constructed across a
saddle point of the latent density. Along such a path, the score need not increase everywhere.

Shapes: n cells, k latent dimensions, t steps, s starting positions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scvae_cli.errors import DataError
from scvae_cli.latent.neighbor_graph import CellGraph, cell_graph, coordinates
from scvae_cli.latent.populations import Population
from scvae_cli.latent.posteriors import BLOCK_CELLS
from scvae_cli.model.bundle import Model
from scvae_cli.model.geometry import Geometry
from scvae_cli.session import Session
from scvae_cli.tools.optimize.gene_program import scorer
from scvae_cli.tools.optimize.gradient_ascent import Ascent, Region, Score, ascend, kept_inside
from scvae_cli.tools.optimize.options import OptimizeOptions
from scvae_cli.tools.optimize.result import Optimization
from scvae_cli.tools.optimize.saddle_points import across_saddle_point
from scvae_cli.tools.trajectory.curves import at_constant_speed, step_lengths
from scvae_cli.tools.trajectory.interpolation import described
from scvae_cli.tools.trajectory.result import ASCENT
from scvae_cli.tools.trajectory.waypoints import positions

# Default of the largest length, in units of the distance from the start to the farthest cell.
_FARTHEST_CELLS = 5.0
# Without a constraint, all starting positions but the first still lie where at most this fraction of the held-out cells
# lies at a higher density.
_USUAL = 0.9
# Two ends of paths count as equally high if the scores there differ by at most this many standard deviations of the
# scores of the cells.
_EQUAL = 0.1
# Tolerance of the boundary at a maximum, in nats, because of rounding.
_ROUNDING = 1e-3


def optimize(
    session: Session,
    start: Population,
    options: OptimizeOptions,
    *,
    name: str,
    target: str,
    groups_n: np.ndarray | None,
) -> Optimization:
    """Increase the score of a gene program from a population or a cell, and decode every step.

    Gradient ascent starts at the densest position of the population. If the score at the end of the path is lower than
    the score of the best cell (the cell with the highest score), gradient ascent is repeated from other positions of
    the population that are far from each other, `options.n_starts` positions in all. A path across a saddle point to
    the maximum near the best cell is tried last. The final scores of all paths are compared. The result is the first
    path whose final score is about as high as the highest one.

    Parameters
    ----------
    session
        The n cells and the model.
    start
        A population, or one cell.
    options
        Gene program (with the gene names of the model), constraint, number of starts and steps, and library size and
        batch for decoding.
    name, target
        Name of the result, and label of the end of the trajectory.
    groups_n
        Group of each cell, None for a cell without a group. The groups are used to describe the steps.

    Raises
    ------
    DataError
        If the batch in `options` is unknown to the model, or if the score cannot increase from the start.
    ConfigError
        If the function in `options` returns no valid score.
    """
    model, mean_nk = session.model, session.cells.mean_nk
    geometry = Geometry(model.vae)
    score, cell_score_n = scorer(model, options, mean_nk)

    @functools.cache
    def graph() -> CellGraph:
        with session.progress("Building the neighbor graph", None):
            return cell_graph(geometry, mean_nk, always=start.candidates(), seed=options.seed)

    starts_sk = _starts(model, graph, mean_nk, start, options)
    density = model.density.to(model.device)
    region = None
    if not options.unconstrained:
        region = Region(log_prob=density.log_prob, limit=density.nll_at(options.within))

    def length(a_k: Tensor, b_k: Tensor) -> float:
        with torch.no_grad():
            y_2g = geometry.coordinates(torch.stack([a_k, b_k]))
        return float((y_2g[1] - y_2g[0]).norm())

    max_length = options.max_length or _FARTHEST_CELLS * _farthest(geometry, starts_sk[0], mean_nk)
    first, *others = (each.to(model.device) for each in starts_sk)
    with session.progress("Optimizing", len(starts_sk)) as advance:
        ascents = [ascend(score, first, region=region, length=length, max_length=max_length)]
        advance()
        if ascents[0].score_t[-1] < cell_score_n.max():
            for each in others:
                ascents.append(ascend(score, each, region=region, length=length, max_length=max_length))
                advance()
    equal = _EQUAL * cell_score_n.std()
    if region is not None and options.n_starts > 1:
        highest = max(each.score_t[-1] for each in ascents)
        path = _to_best_maximum(session, graph, score, cell_score_n, first, region, above=highest + equal)
        if path is not None and step_lengths(geometry, path.z_tk).sum() <= max_length:
            ascents.append(path)
    enough = max(each.score_t[-1] for each in ascents) - equal
    chosen = next(each for each in ascents if each.score_t[-1] >= enough)
    if len(chosen.z_tk) < 2:
        raise DataError(
            f"from {start.label!r}, the score cannot increase in regions with cells",
            "start elsewhere, or allow a larger region (--within 0.95 or --unconstrained)",
        )
    z_tk = at_constant_speed(geometry, chosen.z_tk.astype(np.float64), options.n_steps)
    points_tk = torch.as_tensor(z_tk, dtype=torch.float32, device=model.device)
    if region is not None:
        points_tk = kept_inside(region, points_tk)
    with torch.no_grad():
        score_t = score(points_tk).double().cpu().numpy()
    points_tk = points_tk.cpu()
    trajectory = described(
        session,
        points_tk.numpy(),
        groups_n=groups_n,
        ends=(start, None),
        seed=options.seed,
        name=name,
        kind=ASCENT,
        library=options.library,
        batch_as=options.batch_as,
        labels=(start.label, target),
    )
    best = int(cell_score_n.argmax())
    return Optimization(
        trajectory=trajectory,
        toward=options.increased,
        away=options.away,
        score_t=score_t,
        best_score=float(cell_score_n[best]),
        best_cell=str(session.counts.cell_names[best]),
        share_below=float((cell_score_n < score_t[-1]).mean()),
        stopped=chosen.stopped,
    )


def _starts(
    model: Model, graph: Callable[[], CellGraph], mean_nk: Tensor, start: Population, options: OptimizeOptions
) -> Tensor:
    """Choose starting positions, shape (s, k).

    If the start is a single cell, the position of this cell is the only starting position. Otherwise, the first
    position is the densest position of the population. Each next position is that of the cell farthest from all
    positions chosen before.
    """
    if len(start.cells) == 1:
        return mean_nk[torch.as_tensor(start.cells)]
    density = model.density.to(torch.device("cpu"))
    starts = [torch.as_tensor(positions(graph(), density, mean_nk, [start], "density").z_pwk[0, 0])]
    usual_mk = mean_nk[torch.as_tensor(start.cells)]
    within = _USUAL if options.unconstrained else options.within
    usual_mk = usual_mk[-density.log_prob(usual_mk) <= density.nll_at(within)]
    distance_m = (usual_mk - starts[0]).norm(dim=1)
    while len(starts) < options.n_starts and (distance_m > 0).any():
        starts.append(usual_mk[distance_m.argmax()])
        distance_m = torch.minimum(distance_m, (usual_mk - starts[-1]).norm(dim=1))
    return torch.stack(starts)


def _to_best_maximum(
    session: Session,
    graph: Callable[[], CellGraph],
    score: Score,
    cell_score_n: np.ndarray,
    start_k: Tensor,
    region: Region,
    *,
    above: float,
) -> Ascent | None:
    """Find a path to the maximum reached by gradient ascent from the best cell in the region.

    Returns None if the score of this maximum is not higher than `above`, or if no path was found.
    """
    mean_nk = session.cells.mean_nk
    with torch.no_grad():
        blocks = torch.split(mean_nk, BLOCK_CELLS)
        nll_n = torch.cat([-region.log_prob(block_nk.to(start_k)).cpu() for block_nk in blocks])
        limit = max(region.limit, float(-region.log_prob(start_k[None])))
    inside = np.flatnonzero(nll_n.numpy() <= region.limit)
    if not len(inside):
        return None
    best_k = mean_nk[int(inside[cell_score_n[inside].argmax()])].to(start_k)
    top = ascend(score, best_k, region=region, length=lambda *_: 0.0, max_length=math.inf)
    if top.score_t[-1] <= above:
        return None
    end_k = torch.as_tensor(top.z_tk[-1]).to(start_k)
    built = graph()
    with session.progress("Crossing a saddle point", None):
        z_tk = across_saddle_point(built, region.log_prob, start_k, end_k, limit=limit + _ROUNDING)
    if z_tk is None:
        return None
    with torch.no_grad():
        score_t = score(z_tk).double().cpu().numpy()
    return Ascent(z_tk=z_tk.cpu().numpy(), score_t=score_t, stopped=top.stopped)


def _farthest(geometry: Geometry, start_k: Tensor, mean_nk: Tensor) -> float:
    """Compute the Fisher–Rao distance from a position to the farthest cell."""
    y_1g = coordinates(geometry, start_k[None])
    blocks = torch.split(mean_nk, BLOCK_CELLS)
    return max(float((coordinates(geometry, block_nk) - y_1g).norm(dim=1).max()) for block_nk in blocks)
