"""Trajectories through latent space from one population of cells to another, decoded at every step.

All computations use the latent coordinates in which the encoder and decoder networks work. Results are in canonical
coordinates: the coordinates of `obsm["scvae_latent"]`. A bundle is a set of paths between paired cells of two
populations.

Letters in array shapes: n cells, k latent dimensions, g genes, t steps, s intervals between steps, w waypoints, p paths
of a bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from scvae_cli.errors import DataError
from scvae_cli.latent.clouds import share_apart
from scvae_cli.latent.decoding import decode, decoder_at, posterior_band
from scvae_cli.latent.gaps import LongestStep
from scvae_cli.latent.neighbor_graph import CellGraph, cell_graph
from scvae_cli.latent.populations import Population
from scvae_cli.model.bundle import Model
from scvae_cli.model.geometry import Geometry
from scvae_cli.progress import Progress, silent, tracked
from scvae_cli.session import Session
from scvae_cli.tools.trajectory.avoided import AvoidedCells
from scvae_cli.tools.trajectory.curves import (
    along_cells,
    around_avoided,
    at_constant_speed,
    geodesics,
    straight,
    with_squared_lengths,
)
from scvae_cli.tools.trajectory.detours import earliest_step, empty_steps, groups_beyond, returning_steps
from scvae_cli.tools.trajectory.gene_changes import gene_changes
from scvae_cli.tools.trajectory.lineage import Lineage, lineage, visited_fates
from scvae_cli.tools.trajectory.membership import members
from scvae_cli.tools.trajectory.options import InterpolateOptions
from scvae_cli.tools.trajectory.result import Trajectory
from scvae_cli.tools.trajectory.steps import Steps, along, refuse_too_many
from scvae_cli.tools.trajectory.walks import Walks
from scvae_cli.tools.trajectory.waypoints import Waypoints, coupled, positions

# A trajectory that avoids other fates is used if it has at most this fraction of the implausible steps.
_FEWER = 1 / 3


def interpolate(
    session: Session,
    waypoints: Sequence[Population],
    options: InterpolateOptions,
    *,
    name: str,
    groups_n: np.ndarray | None = None,
    orders: Iterable[tuple[str, np.ndarray]] = (),
    fates: Collection[str] = (),
) -> Trajectory:
    """Interpolate a trajectory from the first to the last of two or more waypoints, and decode every step.

    Parameters
    ----------
    session
        The n cells and the model.
    waypoints
        Populations, or single cells, that the trajectory passes in this order.
    options
        Kind of path, number of steps, whether cells are paired, and library size and batch for decoding.
    name
        Name of the result.
    groups_n
        Group of each cell, None for a cell without a group. The groups are used to describe the steps.
    orders
        Known orders of the cells, with which the trajectory is compared. An order consists of its root and the position
        of each cell, from 0 to 1.
    fates
        Groups that are known to be fates. A trajectory avoids cells that develop into another fate than its end.

    Raises
    ------
    DataError
        If two consecutive waypoints have the same position, if a population to be paired is a single cell, or if the
        batch is unknown.
    ConfigError
        If the steps do not fit into memory.
    """
    model = session.model
    refuse_too_many(options.n_steps, len(model.genes), options.n_paths if options.couple == "ot" else 0)
    geometry, density = Geometry(model.vae), model.density.to(torch.device("cpu"))
    mean_nk = session.cells.mean_nk
    # This call refuses an unknown batch before the long computation begins.
    decoder_at(model, options.library, options.batch_as)
    with session.progress("Building the neighbor graph", None):
        always = np.concatenate([population.candidates() for population in waypoints])
        graph = cell_graph(geometry, mean_nk, always=always, seed=options.seed)
        single = positions(graph, density, mean_nk, waypoints, options.endpoint)
        _refuse_equal_positions(single, waypoints)
    if options.couple == "ot":
        _refuse_single_cells(waypoints)
        first, last = waypoints[0], waypoints[-1]
        ways = coupled(graph, geometry, single, first, last, n_paths=options.n_paths, seed=options.seed)
    else:
        ways = single
    found = _paths(session, graph, ways, options, groups_n)
    named, start = _named_groups(waypoints, found.steps), int(single.nodes_pw[0, 0])
    walks = None
    if groups_n is not None and _fates_matter(session, found.steps, named, options):
        with session.progress("Comparing fates", None):
            walks = Walks.beginning_at(session, graph, start, groups_n)
        found = _avoiding_fates(session, walks, ways, options, found, named=named, fates=fates)
    trajectory = described(
        session,
        found.z_tk,
        bundle_ptk=found.z_ptk if options.couple == "ot" else None,
        groups_n=groups_n,
        ends=(None, None) if options.time_key is not None else (waypoints[0], waypoints[-1]),
        seed=options.seed,
        name=name,
        kind=options.path,
        endpoint=options.endpoint,
        couple=options.couple,
        library=options.library,
        batch_as=options.batch_as,
        labels=tuple(population.label for population in waypoints),
    )
    return replace(
        trajectory,
        avoided=found.avoided,
        sisters=found.sisters,
        visited=found.visited,
        gap=found.gap,
        apart=_apart(session, graph, waypoints, single) if options.groups else (),
        beyond=_groups_beyond(trajectory, walks),
        turning=_turning(trajectory, orders),
    )


@dataclass(frozen=True, kw_only=True)
class _Paths:
    """Paths between paired waypoints, the most central path with its steps, and the fates on the way."""

    z_ptk: np.ndarray
    z_tk: np.ndarray
    steps: Steps
    avoided: tuple[str, ...] = ()
    sisters: tuple[str, ...] = ()
    visited: tuple[str, ...] = ()
    gap: LongestStep | None = None

    def implausible(self, own: Lineage) -> int:
        """Count the steps that are away from a lineage, and the steps where no cells were observed."""
        return int((own.detour(self.steps.nearest_tj) | self.steps.off).sum())


def _paths(
    session: Session,
    graph: CellGraph,
    ways: Waypoints,
    options: InterpolateOptions,
    groups_n: np.ndarray | None,
    avoided: AvoidedCells | None = None,
) -> _Paths:
    model = session.model
    geometry, density = Geometry(model.vae), model.density.to(torch.device("cpu"))
    z_ptk = solve(model, graph, ways, options, avoided=avoided, progress=session.progress)
    z_tk = z_ptk[_medoid(geometry, z_ptk)]
    return _Paths(z_ptk=z_ptk, z_tk=z_tk, steps=along(geometry, density, session.cells.mean_nk, z_tk, groups_n))


def _avoiding_fates(
    session: Session,
    walks: Walks,
    ways: Waypoints,
    options: InterpolateOptions,
    first: _Paths,
    *,
    named: Sequence[str],
    fates: Collection[str],
) -> _Paths:
    """Compute the paths again if they lead through cells that develop into another fate than the end.

    `fates` are groups that are known to be fates; a path that passes one of them leads through cells of another fate.
    """
    visited = visited_fates(walks, named, fates=fates)
    own = lineage(walks, session, named[-1], named=named, fates=fates, visited=visited)
    found = first
    if options.path != "straight" and own.detour(first.steps.nearest_tj).any():
        others = AvoidedCells.among(walks.graph, session.cells, own.away_m)
        again = _paths(session, walks.graph, ways, options, walks.groups_n, others)
        # A trajectory must not cross a gap between two branches in order to avoid a fate.
        if again.implausible(own) <= _FEWER * first.implausible(own):
            found = replace(again, avoided=own.sisters(first.steps.nearest_tj))
    passed = [group for group in found.steps.groups_passed() if group in {*fates} - {*named}]
    # If the trajectory starts at mature cells, groups on its way may be as far from the start as its end.
    led_to = [group for group in own.sisters(found.steps.nearest_tj) if group in own.certain]
    sisters = dict.fromkeys([*led_to, *passed])
    return replace(found, sisters=tuple(sisters), visited=tuple(visited), gap=walks.gap_before(named[-1]))


def _named_groups(waypoints: Sequence[Population], steps: Steps) -> list[str]:
    """List the groups that the user named; the group of a single cell is that of most of the cells around it."""
    named = [population.label for population in waypoints]
    for at in (0, -1):
        if len(waypoints[at].cells) == 1:
            named[at] = str(steps.group_t[at])
    return named


def _fates_matter(session: Session, steps: Steps, named: Sequence[str], options: InterpolateOptions) -> bool:
    """Return whether the trajectory may pass another fate: a group that it passes between its ends.

    Fates are not known between time points, or if the model was trained by an earlier version of scvae.
    """
    known = options.time_key is None and session.model.expression is not None and named[-1] != ""
    return known and (len(named) > 2 or not {*named}.issuperset(steps.groups_passed()))


def _groups_beyond(trajectory: Trajectory, walks: Walks | None) -> tuple[str, ...]:
    """Find the groups between the waypoints that are farther from the start than the end is (`groups_beyond`)."""
    end, passed = trajectory.labels[-1], trajectory.steps.groups_passed()
    # The groups are not compared if the user named intermediate waypoints, or if an end is not a group.
    if walks is None or len(trajectory.labels) > 2 or end not in passed:
        return ()
    between = [group for group in passed if group not in trajectory.labels]
    return groups_beyond(between, end, walks.group_m, walks.time_m)


def _apart(
    session: Session, graph: CellGraph, waypoints: Sequence[Population], single: Waypoints
) -> tuple[tuple[str, float], ...]:
    """Find the groups of which a part lies in another cloud than the position that represents the group.

    Returns each group with the share of its cells in the other cloud. Without a map to expression space, the result is
    empty.
    """
    if session.model.expression is None:
        return ()
    found = []
    for population, node in zip(waypoints, single.nodes_pw[0], strict=True):
        # The node nearest to the mean of a group may be a cell of another group.
        at = np.flatnonzero(population.cells == graph.cells[node])
        if len(at):
            point_pd = torch.as_tensor(session.expression[population.cells])
            found.append((population.label, share_apart(point_pd, at)))
    return tuple((label, share) for label, share in found if share > 0)


def _turning(trajectory: Trajectory, orders: Iterable[tuple[str, np.ndarray]]) -> tuple[int, str] | None:
    """Find the step up to which a trajectory goes back along an order of the cells; return the step and the root.

    The result is None if the trajectory goes back along none of the orders. If an order begins where the trajectory
    starts, the orders from other roots are not compared.
    """
    known = list(orders)
    own = [(root, time_n) for root, time_n in known if root == trajectory.labels[0]]
    for root, time_n in own or known:
        if np.isfinite(time_n[trajectory.steps.nearest_tj]).all():
            step = earliest_step(trajectory.steps.nearest_tj, time_n)
            if step is not None:
                return step, root
    return None


def described(
    session: Session,
    z_tk: np.ndarray,
    *,
    bundle_ptk: np.ndarray | None = None,
    groups_n: np.ndarray | None,
    ends: tuple[Population | None, Population | None],
    seed: int,
    library: str | float,
    batch_as: str,
    name: str,
    kind: str,
    labels: tuple[str, ...],
    endpoint: str = "density",
    couple: str = "none",
) -> Trajectory:
    """Decode and describe every step of a trajectory.

    Parameters
    ----------
    session, groups_n
        The parameters of `interpolate` with the same names.
    z_tk, bundle_ptk
        The trajectory, and all trajectories of the bundle, in the coordinates of the networks. `bundle_ptk` is None
        without a bundle.
    ends
        Populations at the start and at the end of the trajectory. Cells of these populations may belong to the
        trajectory although they lie beyond its ends. The entry of an end is None if the end is a single cell, or all
        cells of a time point.
    seed
        Random seed of the posterior samples from which the 5% and 95% quantiles of the expected counts are computed.
    library, batch_as, name, kind, labels, endpoint, couple
        Fields of the returned `Trajectory`. The steps are decoded with `library` and `batch_as`.
    """
    model, (mean_nk, var_nk) = session.model, session.cells
    geometry, density = Geometry(model.vae), model.density.to(torch.device("cpu"))
    steps = along(geometry, density, mean_nk, z_tk, groups_n)
    mean_tg = decode(model, z_tk, library, batch_as)
    if bundle_ptk is None:
        around_tk = var_nk[torch.as_tensor(steps.nearest_tj)].mean(1).numpy()
        low_tg, high_tg = posterior_band(model, z_tk, around_tk, library, batch_as, seed=seed)
    else:
        paths = tracked(bundle_ptk, session.progress, "Decoding", len(bundle_ptk))
        each_ptg = np.stack([decode(model, path_tk, library, batch_as) for path_tk in paths])
        low_tg, high_tg = np.quantile(each_ptg, (0.05, 0.95), axis=0).astype(np.float32)
    position_n, belongs_n = members(
        geometry,
        density,
        session.cells,
        z_tk,
        steps.nearest_tj,
        ends=ends,
        groups_n=groups_n,
        seed=seed,
        progress=session.progress,
    )
    y_tg = model.vae.decoder.head.isometric(torch.as_tensor(mean_tg).double()).numpy()
    return Trajectory(
        name=name,
        kind=kind,
        endpoint=endpoint,
        couple=couple,
        library=library,
        batch_as=batch_as,
        labels=labels,
        genes=model.genes,
        z_tk=_canonical(model, z_tk),
        steps=steps,
        nearest_names_tj=session.counts.cell_names[steps.nearest_tj],
        mean_tg=mean_tg,
        low_tg=low_tg,
        high_tg=high_tg,
        changes=gene_changes(y_tg),
        pseudotime_n=np.where(belongs_n, position_n, np.nan),
        empty=empty_steps(position_n[belongs_n], len(z_tk)),
        returning=returning_steps(y_tg),
        group_sizes={} if groups_n is None else _sizes(groups_n[belongs_n]),
        bundle_ptk=None if bundle_ptk is None else _canonical(model, bundle_ptk),
        of_counts=model.of_counts,
    )


def solve(
    model: Model,
    graph: CellGraph,
    waypoints: Waypoints,
    options: InterpolateOptions,
    *,
    avoided: AvoidedCells | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Compute one path through each row of waypoints, shape (p, t, k).

    Except for straight lines, the paths keep away from the cells in `avoided`, if possible.
    """
    z_pwk = waypoints.z_pwk.astype(np.float64)
    if options.path == "straight":
        return np.stack([straight(z_wk, options.n_steps) for z_wk in z_pwk])
    geometry = Geometry(model.vae)
    guide = graph if avoided is None else around_avoided(graph, avoided.avoided_m)
    guide = with_squared_lengths(guide) if options.path == "geodesic" else guide
    paths = along_cells(guide, z_pwk, waypoints.nodes_pw)
    if options.path == "geodesic":
        n_segments = z_pwk.shape[1] - 1
        guesses = [segment for segments in paths for segment in segments]
        solved = geodesics(geometry, model.density, guesses, avoided=avoided, progress=progress)
        paths = [solved[first : first + n_segments] for first in range(0, len(solved), n_segments)]
    joined = [np.concatenate([first, *(segment[1:] for segment in others)]) for first, *others in paths]
    # Splines are computed in float32, so the exact ends of each path are restored.
    for path_tk, z_wk in zip(joined, z_pwk, strict=True):
        path_tk[0], path_tk[-1] = z_wk[0], z_wk[-1]
    return np.stack([at_constant_speed(geometry, path_tk, options.n_steps) for path_tk in joined])


def _sizes(groups_n: np.ndarray) -> dict[str, int]:
    """Count the cells of each group, largest group first."""
    return dict(Counter(group for group in groups_n.tolist() if group is not None).most_common())


def _canonical(model: Model, z_tk: np.ndarray) -> np.ndarray:
    """Transform latent positions from the coordinates of the networks to canonical coordinates."""
    z: np.ndarray = model.axes.position(torch.as_tensor(z_tk, dtype=torch.float32)).numpy()
    return z


def _medoid(geometry: Geometry, bundle_ptk: np.ndarray) -> int:
    """Find the path with the least total distance to the other paths.

    The distance between two paths is the sum of the Fisher–Rao distances between steps with the same index.
    """
    device = geometry.vae.reference_library.device
    total_pp = torch.zeros(len(bundle_ptk), len(bundle_ptk), device=device)
    with torch.no_grad():
        for z_pk in torch.as_tensor(bundle_ptk, dtype=torch.float32).transpose(0, 1):
            y_pg = geometry.coordinates(z_pk.to(device))
            total_pp += torch.cdist(y_pg, y_pg)
    return int(total_pp.sum(1).argmin())


def _refuse_equal_positions(single: Waypoints, waypoints: Sequence[Population]) -> None:
    for (before, after), gap in zip(pairwise(waypoints), np.diff(single.z_pwk[0], axis=0), strict=True):
        if not np.linalg.norm(gap) > 0:
            raise DataError(
                f"{before.label!r} and {after.label!r} have the same position in latent space",
                "choose two different ends",
            )


def _refuse_single_cells(waypoints: Sequence[Population]) -> None:
    for population in (waypoints[0], waypoints[-1]):
        if len(population.cells) < 2:
            raise DataError(f"{population.label!r} is a single cell", "--couple ot pairs the cells of two groups")
