"""A trajectory along which the score of a gene program increases, through regions of latent space that contain cells.

Gradient ascent from the chosen cell or population increases the score up to a local maximum. Gradient ascent from
other cells of the group, or from the cell with the highest score, may end at a higher maximum. If another maximum is
higher, a path from the chosen cell or population to this maximum is constructed through regions with cells, across a
saddle point of the latent density. Along a path across a saddle point, the score may also decrease.

Letters in array shapes: n cells, k latent dimensions, t steps, s starting positions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace

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
from scvae_cli.tools.optimize.gradient_ascent import MAXIMUM, Ascent, Region, Score, ascend, kept_inside
from scvae_cli.tools.optimize.options import OptimizeOptions
from scvae_cli.tools.optimize.result import Optimization, Start
from scvae_cli.tools.optimize.saddle_points import across_saddle_point
from scvae_cli.tools.optimize.starts import spread_out, typical
from scvae_cli.tools.trajectory.curves import at_constant_speed, step_lengths
from scvae_cli.tools.trajectory.interpolation import described
from scvae_cli.tools.trajectory.result import ASCENT
from scvae_cli.tools.trajectory.steps import refuse_too_many

# Default of the maximum length of a trajectory, in units of the distance from the start to the farthest cell.
_FARTHEST_CELLS = 5.0
# Even for an unconstrained trajectory, starting cells are chosen only where at most this fraction of the held-out cells
# has a higher density.
_USUAL = 0.9
# The scores at the ends of two paths count as equal if they differ by at most this multiple of the standard deviation
# of the scores of the cells.
_EQUAL = 0.1
# Because of rounding errors, −log density at a maximum may exceed the limit of the region by this value, in nats.
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
    """Find and decode a trajectory from a population or a cell along which the score of a gene program increases.

    Gradient ascent starts at a typical cell of the population. If any cell has a higher score than the maximum found
    from the typical cell, gradient ascent also starts at other cells of the population, which are far from each other.
    In all, gradient ascent starts at `options.n_starts` cells of the population. If the trajectory must stay in a
    region, gradient ascent also starts at the cell with the highest score in the region. If gradient ascent from
    another cell ends at a higher maximum, the result is a path from the typical cell to this maximum, across a saddle
    point. If there are several higher maxima, the path leads to the highest maximum within the maximum length of a
    path. The trajectory always starts at the typical cell.

    Parameters
    ----------
    session
        The n cells and the model.
    start
        The population, or the single cell, at which the trajectory starts.
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
        If the function in `options` returns no valid score, or if the steps do not fit into memory.
    """
    refuse_too_many(options.n_steps, len(session.model.genes))
    model, mean_nk = session.model, session.cells.mean_nk
    geometry = Geometry(model.vae)
    score, cell_score_n = scorer(model, options, mean_nk)

    @functools.cache
    def graph() -> CellGraph:
        with session.progress("Building the neighbor graph", None):
            return cell_graph(geometry, mean_nk, always=start.candidates(), seed=options.seed)

    starts = _starts(model, mean_nk, start, options)
    density = model.density.to(model.device)
    region = None
    if not options.unconstrained:
        region = Region(log_prob=density.log_prob, limit=density.nll_at(options.within))

    def length(a_k: Tensor, b_k: Tensor) -> float:
        with torch.no_grad():
            y_2g = geometry.coordinates(torch.stack([a_k, b_k]))
        return float((y_2g[1] - y_2g[0]).norm())

    max_length = options.max_length or _FARTHEST_CELLS * _farthest(geometry, mean_nk[starts[0]], mean_nk)
    first_k, *others_sk = (mean_nk[cell].to(model.device) for cell in starts)
    with session.progress("Optimizing", len(starts)) as advance:
        ascents = [ascend(score, first_k, region=region, length=length, max_length=max_length)]
        advance()
        if ascents[0].score_t[-1] < cell_score_n.max():
            for each_k in others_sk:
                ascents.append(ascend(score, each_k, region=region, length=length, max_length=max_length))
                advance()
    chosen, equal = ascents[0], _EQUAL * cell_score_n.std()
    if options.n_starts > 1:
        # Gradient ascent from other cells only shows how high the score can be; the trajectory begins at the first
        # start.
        ends = [each for each in ascents[1:] if each.stopped == MAXIMUM]
        if region is not None and (top := _from_best_cell(mean_nk, score, cell_score_n, first_k, region)) is not None:
            ends.append(top)
        for end in sorted(ends, key=lambda each: -each.score_t[-1]):
            if end.score_t[-1] <= chosen.score_t[-1] + equal:
                break
            path = _through_cells(session, graph, score, first_k, end, region)
            if step_lengths(geometry, path.z_tk).sum() <= max_length:
                chosen = path
                break
    if len(chosen.z_tk) < 2:
        raise DataError(
            f"from {start.label!r}, the score cannot increase in regions with cells",
            "start elsewhere, or allow a larger region (--within 0.95 or --unconstrained)",
        )
    z_tk = at_constant_speed(geometry, chosen.z_tk.astype(np.float64), options.n_steps)
    points_tk = torch.as_tensor(z_tk, dtype=torch.float32, device=model.device)
    if region is not None:
        points_tk = kept_inside(_reaching(region, points_tk, chosen), points_tk)
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
    column = {gene: i for i, gene in enumerate(model.genes)}
    asked = () if callable(options.toward) else (*options.increased, *options.away)
    trajectory = replace(trajectory, leading=tuple(column[gene] for gene in asked))
    names = session.counts.cell_names
    best = int(cell_score_n.argmax())
    return Optimization(
        trajectory=trajectory,
        toward=options.increased,
        away=options.away,
        score_t=score_t,
        best_score=float(cell_score_n[best]),
        best_cell=str(names[best]),
        share_below=float((cell_score_n < score_t[-1]).mean()),
        stopped=chosen.stopped,
        through_cells=chosen is not ascents[0],
        starts=tuple(
            Start(cell=str(names[cell]), score=float(each.score_t[0]), end=float(each.score_t[-1]))
            for cell, each in zip(starts, ascents, strict=False)
        ),
    )


def _starts(model: Model, mean_nk: Tensor, start: Population, options: OptimizeOptions) -> list[int]:
    """Choose starting cells: the typical cell of the group, and cells of the group that are far from each other.

    Cells where the latent density is unusually low are left out, unless the group has no other cells.
    """
    if len(start.cells) == 1:
        return [int(start.cells[0])]
    density = model.density.to(torch.device("cpu"))
    within = _USUAL if options.unconstrained else options.within
    usual_m = -density.log_prob(mean_nk[torch.as_tensor(start.cells)]) <= density.nll_at(within)
    cells = start.cells[usual_m.numpy()] if bool(usual_m.any()) else start.cells
    first = typical(mean_nk, replace(start, cells=cells))
    return spread_out(mean_nk, first, cells, options.n_starts)


def _from_best_cell(
    mean_nk: Tensor, score: Score, cell_score_n: np.ndarray, start_k: Tensor, region: Region
) -> Ascent | None:
    """Increase the score from the highest-scoring cell in the region; return None if the region contains no cell."""
    with torch.no_grad():
        blocks = torch.split(mean_nk, BLOCK_CELLS)
        nll_n = torch.cat([-region.log_prob(block_nk.to(start_k)).cpu() for block_nk in blocks])
    inside = np.flatnonzero(nll_n.numpy() <= region.limit)
    if not len(inside):
        return None
    best_k = mean_nk[int(inside[cell_score_n[inside].argmax()])].to(start_k)
    return ascend(score, best_k, region=region, length=lambda *_: 0.0, max_length=math.inf)


def _through_cells(
    session: Session,
    graph: Callable[[], CellGraph],
    score: Score,
    start_k: Tensor,
    end: Ascent,
    region: Region | None,
) -> Ascent:
    """Connect the start with the end of another path, across a saddle point of the density.

    If no path stays in the region, the result is the path that was found with the highest minimum density.
    """
    density = session.model.density.to(session.model.device)
    end_k = torch.as_tensor(end.z_tk[-1]).to(start_k)
    limit = -math.inf
    if region is not None:
        limit = max(region.limit, float(-region.log_prob(start_k[None]))) + _ROUNDING
    built = graph()
    with session.progress("Crossing a saddle point", None):
        z_tk = across_saddle_point(built, density.log_prob, start_k, end_k, limit=limit)
    with torch.no_grad():
        score_t = score(z_tk).double().cpu().numpy()
    return Ascent(z_tk=z_tk.cpu().numpy(), score_t=score_t, stopped=end.stopped)


def _reaching(region: Region, points_tk: Tensor, path: Ascent) -> Region:
    """Enlarge a region just enough that it contains a path."""
    with torch.no_grad():
        path_tk = torch.as_tensor(path.z_tk).to(points_tk)
        furthest = max(float(-region.log_prob(block_tk).min()) for block_tk in torch.split(path_tk, BLOCK_CELLS))
    return replace(region, limit=max(region.limit, furthest))


def _farthest(geometry: Geometry, start_k: Tensor, mean_nk: Tensor) -> float:
    """Compute the Fisher–Rao distance from a position to the farthest cell."""
    y_1g = coordinates(geometry, start_k[None])
    blocks = torch.split(mean_nk, BLOCK_CELLS)
    return max(float((coordinates(geometry, block_nk) - y_1g).norm(dim=1).max()) for block_nk in blocks)
