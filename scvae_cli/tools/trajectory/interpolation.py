"""A walk through latent space from one population of cells to another, decoded.

Everything here is computed in the frame of the training; the result is in the canonical one.

Shapes: n cells, k latent dimensions, g genes, t steps, w way-points, p paths of a bundle, s samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.errors import DataError
from scvae_cli.latent.decoding import decode, posterior_band
from scvae_cli.latent.neighbor_graph import CellGraph, cell_graph, nearest
from scvae_cli.latent.populations import Population
from scvae_cli.latent.posteriors import BLOCK_CELLS, posteriors
from scvae_cli.model.bundle import Model
from scvae_cli.model.geometry import Geometry
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.trajectory.curves import along_cells, at_constant_speed, geodesics, straight, with_squared_lengths
from scvae_cli.tools.trajectory.gene_changes import gene_changes
from scvae_cli.tools.trajectory.options import InterpolateOptions
from scvae_cli.tools.trajectory.result import Trajectory
from scvae_cli.tools.trajectory.steps import along
from scvae_cli.tools.trajectory.waypoints import Waypoints, coupled, places

# A cell belongs to a path when it is no farther from it than this share of the cells the path was drawn through.
NEAR_SHARE = 0.9
# Around a single cell, this many nearest cells stand for its population.
NEIGHBOURS = 50


def interpolate(
    model: Model,
    counts: Counts,
    waypoints: Sequence[Population],
    options: InterpolateOptions,
    *,
    name: str = "trajectory",
    groups: np.ndarray | None = None,
    cells: Posterior | None = None,
    progress: Progress = silent,
) -> Trajectory:
    """Interpolate from the first waypoint to the last and decode every step.

    Parameters
    ----------
    model
        Encodes the cells and decodes the walk.
    counts
        n cells in the model's genes.
    waypoints
        Two or more.
    groups
        Group of each cell, None for a cell in none, by which the steps are told.

    Raises
    ------
    DataError
        When two neighbouring way-points are at the same place, or populations to be coupled have a single cell.
    """
    geometry = Geometry(model.vae)
    mean_nk, var_nk = posteriors(model, counts) if cells is None else cells
    density = model.density.to(torch.device("cpu"))
    always = np.concatenate([point.candidates() for point in waypoints])
    with progress("Interpolating", 3) as advance:
        graph = cell_graph(geometry, mean_nk, always=always, seed=options.seed)
        advance()
        where = places(graph, density, mean_nk, waypoints, options.endpoint)
        _refuse_standing_still(where, waypoints)
        bundle_ptk = None
        if options.couple == "ot":
            _refuse_single_cells(waypoints)
            first, last = waypoints[0], waypoints[-1]
            pairs = coupled(graph, geometry, where, first, last, n_paths=options.n_paths, seed=options.seed)
            bundle_ptk = solve(model, graph, pairs, options)
            z_tk = bundle_ptk[_medoid(geometry, bundle_ptk)]
        else:
            z_tk = solve(model, graph, where, options)[0]
        advance()
        trajectory = described(
            model,
            counts,
            Posterior(mean_nk, var_nk),
            z_tk,
            name=name,
            kind=options.path,
            endpoint=options.endpoint,
            couple=options.couple,
            library=options.library,
            batch_as=options.batch_as,
            seed=options.seed,
            labels=tuple(point.label for point in waypoints),
            population=_population(mean_nk, waypoints),
            groups=groups,
            bundle_ptk=bundle_ptk,
        )
        advance()
    return trajectory


def described(
    model: Model,
    counts: Counts,
    cells: Posterior,
    z_tk: np.ndarray,
    *,
    name: str,
    kind: str,
    library: str | float,
    batch_as: str,
    seed: int,
    endpoint: str = "density",
    couple: str = "none",
    labels: tuple[str, ...],
    population: np.ndarray,
    groups: np.ndarray | None = None,
    bundle_ptk: np.ndarray | None = None,
) -> Trajectory:
    """Decode every step of a walk and say what lies along it.

    Parameters
    ----------
    model, counts
        As for `interpolate`.
    cells
        q(z|x) of the n cells.
    z_tk, bundle_ptk
        The walk, and others like it if there are any, in the frame of the training.
    labels
        Of the places it goes through.
    population
        Indices of the cells it was drawn through: as near as most of these, others lie on it too.
    groups
        Group of each cell, None for a cell in none.
    """
    geometry, density = Geometry(model.vae), model.density.to(torch.device("cpu"))
    mean_nk, var_nk = cells
    steps = along(geometry, density, mean_nk, z_tk, groups)
    mean_tg = decode(model, z_tk, library, batch_as)
    if bundle_ptk is None:
        around_tk = var_nk[torch.as_tensor(steps.nearest_tj)].mean(1).numpy()
        low_tg, high_tg = posterior_band(model, z_tk, around_tk, library, batch_as, seed=seed)
    else:
        each_ptg = np.stack([decode(model, path_tk, library, batch_as) for path_tk in bundle_ptk])
        low_tg, high_tg = np.quantile(each_ptg, (0.05, 0.95), axis=0).astype(np.float32)
    position_n, distance_n = project(mean_nk.numpy(), z_tk)
    limit = np.quantile(distance_n[population], NEAR_SHARE)
    return Trajectory(
        name=name,
        kind=kind,
        endpoint=endpoint,
        couple=couple,
        library=library,
        batch_as=batch_as,
        labels=labels,
        genes=model.genes,
        z_tk=model.axes.position(torch.as_tensor(z_tk, dtype=torch.float32)).numpy(),
        steps=steps,
        nearest_names_tj=counts.cell_names[steps.nearest_tj],
        mean_tg=mean_tg,
        low_tg=low_tg,
        high_tg=high_tg,
        changes=gene_changes(_coordinates(model, mean_tg)),
        pseudotime_n=np.where(distance_n <= limit, position_n, np.nan),
        bundle_ptk=None
        if bundle_ptk is None
        else model.axes.position(torch.as_tensor(bundle_ptk, dtype=torch.float32)).numpy(),
        of_counts=model.of_counts,
    )


def solve(model: Model, graph: CellGraph, where: Waypoints, options: InterpolateOptions) -> np.ndarray:
    """All paths through given places at once, shape (p, t, k)."""
    ends_pwk = where.ends_pwk.astype(np.float64)
    if options.path == "straight":
        return np.stack([straight(ends_wk, options.n_steps) for ends_wk in ends_pwk])
    geometry = Geometry(model.vae)
    guide = with_squared_lengths(graph) if options.path == "geodesic" else graph
    legs = along_cells(guide, ends_pwk, where.nodes_pw)
    if options.path == "geodesic":
        n_legs = ends_pwk.shape[1] - 1
        flat = geodesics(geometry, model.density, [leg for path in legs for leg in path])
        legs = [flat[start : start + n_legs] for start in range(0, len(flat), n_legs)]
    joined = [np.concatenate([legs_of[0], *(leg[1:] for leg in legs_of[1:])]) for legs_of in legs]
    # The splines' ends are float32; the ends asked for are exact.
    for path_tk, ends_wk in zip(joined, ends_pwk, strict=True):
        path_tk[0], path_tk[-1] = ends_wk[0], ends_wk[-1]
    return np.stack([at_constant_speed(geometry, path_tk, options.n_steps) for path_tk in joined])


def project(z_nk: np.ndarray, z_tk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest point of a walk to each cell: its position in 0..1 and its latent distance, each of shape (n,)."""
    start_sk, step_sk = z_tk[:-1], np.diff(z_tk, axis=0)
    squared_s = np.maximum((step_sk**2).sum(1), 1e-30)
    position_n = np.empty(len(z_nk))
    distance_n = np.empty(len(z_nk))
    for begin in range(0, len(z_nk), BLOCK_CELLS):
        rows = slice(begin, begin + BLOCK_CELLS)
        from_start_nsk = z_nk[rows, None, :] - start_sk
        share_ns = np.clip((from_start_nsk * step_sk).sum(2) / squared_s, 0, 1)
        distance_ns = np.linalg.norm(from_start_nsk - share_ns[..., None] * step_sk, axis=2)
        nearest_n = distance_ns.argmin(1)
        each = np.arange(len(nearest_n))
        position_n[rows] = (nearest_n + share_ns[each, nearest_n]) / len(step_sk)
        distance_n[rows] = distance_ns[each, nearest_n]
    return position_n, distance_n


def _coordinates(model: Model, mean_tg: np.ndarray) -> np.ndarray:
    """Fisher–Rao coordinates of decoded means."""
    y_tg: np.ndarray = model.vae.decoder.head.isometric(torch.as_tensor(mean_tg).double()).numpy()
    return y_tg


def _medoid(geometry: Geometry, bundle_ptk: np.ndarray) -> int:
    """The path that is nearest to all others, step by step, in the Fisher–Rao coordinates."""
    device = geometry.vae.reference_library.device
    total_pp: Tensor | float = 0.0
    with torch.no_grad():
        for z_pk in torch.as_tensor(bundle_ptk, dtype=torch.float32).transpose(0, 1):
            y_pg = geometry.coordinates(z_pk.to(device))
            total_pp = total_pp + torch.cdist(y_pg, y_pg)
    assert isinstance(total_pp, Tensor), "a bundle has steps"
    return int(total_pp.sum(1).argmin())


def _population(mean_nk: Tensor, waypoints: Sequence[Population]) -> np.ndarray:
    """Cells the walk was drawn through: the way-points' own, or the neighbours of a single cell."""
    members = []
    for point in waypoints:
        if len(point.cells) > 1:
            members.append(point.cells)
        else:
            members.append(nearest(mean_nk[torch.as_tensor(point.cells)], mean_nk, NEIGHBOURS)[0][0])
    return np.unique(np.concatenate(members))


def _refuse_standing_still(where: Waypoints, waypoints: Sequence[Population]) -> None:
    for (before, after), gap in zip(pairwise(waypoints), np.diff(where.ends_pwk[0], axis=0), strict=True):
        if not np.linalg.norm(gap) > 0:
            raise DataError(f"{before.label!r} and {after.label!r} are at the same place", "choose two different ends")


def _refuse_single_cells(waypoints: Sequence[Population]) -> None:
    for point in (waypoints[0], waypoints[-1]):
        if len(point.cells) < 2:
            raise DataError(f"{point.label!r} is a single cell", "--couple ot pairs the cells of two populations")
