"""Straight, graph and geodesic paths, tested with decoders and densities for which the correct path is known.

Letters in array shapes: n cells, k latent dimensions, p paths, w waypoints, t steps.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from handmade import FlatGeometry, clusters, density_of, flat, graph_of, points, random_vae, ring
from scipy.interpolate import BSpline
from scipy.sparse.csgraph import dijkstra
from scipy.spatial.distance import cdist

from scvae_cli.latent.neighbor_graph import cell_graph
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.geometry import Geometry
from scvae_cli.model.posterior import Posterior
from scvae_cli.tools.trajectory import curves
from scvae_cli.tools.trajectory.avoided import AvoidedCells
from scvae_cli.tools.trajectory.curves import (
    along_cells,
    around_avoided,
    at_constant_speed,
    geodesics,
    step_lengths,
    straight,
    with_squared_lengths,
)
from scvae_cli.tools.trajectory.interpolation import solve
from scvae_cli.tools.trajectory.options import InterpolateOptions, PathKind
from scvae_cli.tools.trajectory.steps import along
from scvae_cli.tools.trajectory.waypoints import Waypoints

EVERY_KIND = pytest.mark.parametrize("kind", get_args(PathKind))


@pytest.fixture(scope="module")
def curved():
    """A strongly nonlinear decoder, and cells that fill a square of its latent space."""
    vae = random_vae(k=2, g=30).float()
    x_nk = np.random.default_rng(0).uniform(-2, 2, size=(600, 2))
    model = SimpleNamespace(vae=vae, density=density_of(x_nk))
    graph = cell_graph(Geometry(vae), points(x_nk), always=np.empty(0, dtype=np.int64))
    return model, graph, x_nk


@pytest.fixture(scope="module")
def ring_cells():
    """Cells on a ring under a flat decoder; there are no cells in the middle."""
    x_nk = ring(1200)
    return graph_of(x_nk), density_of(x_nk), x_nk


def wide_density() -> LatentDensity:
    """A density under which no position within 3 of the origin is unusual."""
    return density_of(np.random.default_rng(1).normal(size=(500, 2)) * 5)


def waypoints_at(graph, x_nk: np.ndarray, ends_pwk: object) -> Waypoints:
    """Make waypoints, and find the graph node nearest to each waypoint."""
    ends = np.asarray(ends_pwk, dtype=np.float32)
    nodes = cdist(ends.reshape(-1, ends.shape[-1]), x_nk).argmin(1).reshape(ends.shape[:-1])
    return Waypoints(z_pwk=ends, nodes_pw=nodes)


def solved_paths(curved, ends_pwk: object, kind: str, n_steps: int = 50) -> np.ndarray:
    model, graph, x_nk = curved
    return solve(
        model,
        graph,
        waypoints_at(graph, x_nk, ends_pwk),
        InterpolateOptions(cells=("a", "b"), path=kind, n_steps=n_steps),
    )


def unevenness(geometry, z_tk: np.ndarray) -> float:
    """Compute the coefficient of variation of the speed."""
    length_s = step_lengths(geometry, z_tk)
    return float(length_s.std() / length_s.mean())


@torch.no_grad()
def penalty(density, z_nk: np.ndarray) -> np.ndarray:
    """Compute the factor `cost` at some positions by its definition."""
    nll_n = -density.log_prob(points(z_nk)).double().numpy()
    usual, rare = (np.quantile(density.heldout_nll.numpy(), q) for q in (0.5, 0.95))
    return 1 + 10 * np.maximum((nll_n - usual) / (rare - usual), 0)


@torch.no_grad()
def penalized_energy(geometry, density, z_tk: np.ndarray) -> float:
    """Compute Σ (w·‖Δy‖)² over 24 points at constant speed."""
    z = at_constant_speed(geometry, z_tk, 24)
    y = geometry.coordinates(points(z)).double().numpy()
    squared = (np.diff(y, axis=0) ** 2).sum(1)
    return float((penalty(density, (z[1:] + z[:-1]) / 2) ** 2 * squared).sum())


# --- all kinds of paths -----------------------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("n_steps", [2, 3, 50])
def test_paths_start_and_end_exactly_at_their_ends(curved, kind, n_steps):
    ends_pwk = np.array([[[-1.511111, -1.3], [1.2, 1.77777]], [[0.1, 0.2], [1.9, -1.9]]], dtype=np.float32)
    z_ptk = solved_paths(curved, ends_pwk, kind, n_steps)
    assert z_ptk.shape == (2, n_steps, 2)
    np.testing.assert_array_equal(z_ptk[:, [0, -1]], ends_pwk)


@EVERY_KIND
def test_paths_pass_intermediate_waypoints(curved, kind):
    ends_pwk = [[[-1.5, -1.5], [0.0, 1.5], [1.5, -1.5]]]
    z_tk = solved_paths(curved, ends_pwk, kind, n_steps=200)[0]
    from_middle_t = np.linalg.norm(z_tk - [0.0, 1.5], axis=1)
    assert from_middle_t.min() <= np.linalg.norm(np.diff(z_tk, axis=0), axis=1).max()
    assert 0.2 < from_middle_t.argmin() / 199 < 0.8


@pytest.mark.parametrize(("kind", "limit"), [("geodesic", 0.03), ("graph", 0.1)])
def test_speed_in_expression_is_constant(curved, kind, limit):
    geometry = Geometry(curved[0].vae)
    z_ptk = solved_paths(curved, [[[-1.5, -1.5], [1.5, 1.5]], [[-1.8, 1.5], [1.5, -1.0]]], kind)
    for z_tk in z_ptk:
        assert unevenness(geometry, z_tk) < limit
    # The speed in latent space is not constant.
    assert unevenness(geometry, solved_paths(curved, [[[-1.5, -1.5], [1.5, 1.5]]], "straight")[0]) > 0.1


@torch.no_grad()
def test_geodesics_work_inside_no_grad(curved):
    ends_pwk = [[[-1.5, -1.5], [1.5, 1.5]]]
    with torch.enable_grad():
        expected = solved_paths(curved, ends_pwk, "geodesic")
    np.testing.assert_array_equal(solved_paths(curved, ends_pwk, "geodesic"), expected)


@EVERY_KIND
def test_paths_solved_together_equal_paths_solved_singly(curved, monkeypatch, kind):
    ends_pwk = np.array(
        [[[-1.5, -1.5], [0.0, 0.5], [1.5, 1.5]], [[-1.8, 1.5], [0.3, 0.0], [1.5, -1.0]], [[1, 1], [0, 1], [-1, 1]]]
    )
    together = solved_paths(curved, ends_pwk, kind)
    single = np.concatenate([solved_paths(curved, ends_pwk[p : p + 1], kind) for p in range(3)])
    np.testing.assert_allclose(together, single, atol=2e-3)
    monkeypatch.setattr(curves, "CPU_VALUES", 1)
    np.testing.assert_allclose(solved_paths(curved, ends_pwk, kind), single, atol=2e-3)


def test_at_constant_speed_does_not_change_the_path():
    """Under a flat decoder, the steps along a polygon have equal arc lengths, whichever points describe the polygon."""
    corners = np.array([[0.0, 0], [0.01, 0], [1, 0], [1, 3]])
    z_tk = at_constant_speed(flat(), corners, 9)
    np.testing.assert_allclose(z_tk[:, 0], [0, 0.5, 1, 1, 1, 1, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(z_tk[:, 1], [0, 0, 0, 0.5, 1, 1.5, 2, 2.5, 3], atol=1e-6)
    # A dimension to which the decoder does not respond adds no length.
    unresponsive = FlatGeometry(torch.tensor([[1.0, 0.0]]))
    np.testing.assert_allclose(
        at_constant_speed(unresponsive, np.array([[0.0, 0], [2, 0], [2, 9]]), 3)[1], [1, 0], atol=1e-6
    )


def test_straight_paths_turn_at_waypoints():
    z_tk = straight(np.array([[0.0, 0], [2, 0], [2, 2]]), 5)
    np.testing.assert_allclose(z_tk, [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]])


# --- graph ------------------------------------------------------------------------------------------------------------


def test_graph_paths_are_shortest_paths_through_cells(ring_cells):
    graph, _, x_nk = ring_cells
    waypoints = waypoints_at(graph, x_nk, [[x_nk[100], x_nk[400], x_nk[700]]])
    segments = along_cells(graph, waypoints.z_pwk, waypoints.nodes_pw)
    assert len(segments) == 1
    assert len(segments[0]) == 2
    for segment, (start, end) in zip(segments[0], ((100, 400), (400, 700)), strict=True):
        nodes = graph.shortest_paths([(start, end)])[0]
        np.testing.assert_allclose(segment, x_nk[nodes], rtol=1e-5)
        assert step_lengths(flat(), segment).sum() == pytest.approx(graph.distances([start])[0, end], rel=1e-4)


def test_path_between_neighbors_is_one_edge(ring_cells):
    graph, _, x_nk = ring_cells
    waypoints = waypoints_at(graph, x_nk, [[x_nk[100], x_nk[graph.neighbors_mj[100, 0]]]])
    assert along_cells(graph, waypoints.z_pwk, waypoints.nodes_pw)[0][0].shape == (2, 2)


# --- geodesic ---------------------------------------------------------------------------------------------------------


def test_geodesic_costs_less_than_its_initial_graph_path(curved):
    model, graph, x_nk = curved
    geometry = Geometry(model.vae)
    waypoints = waypoints_at(
        graph, x_nk, [[[-1.5, -1.5], [1.5, 1.5]], [[-1.8, 1.5], [1.5, -1.0]], [[0.0, 0.0], [1.9, 0.1]]]
    )
    guesses = [segments[0] for segments in along_cells(graph, waypoints.z_pwk, waypoints.nodes_pw)]
    for guess, solved in zip(guesses, geodesics(geometry, model.density, guesses), strict=True):
        before, after = (penalized_energy(geometry, model.density, path) for path in (guess, solved))
        assert after < 0.9 * before


def test_geodesic_of_a_flat_decoder_in_a_flat_density_is_a_line():
    x_nk = np.random.default_rng(0).uniform(-3, 3, size=(3000, 2))
    graph, density = graph_of(x_nk), wide_density()
    waypoints = waypoints_at(graph, x_nk, [[[-1.0, -1.0], [1.0, 1.0]]])
    guess = along_cells(graph, waypoints.z_pwk, waypoints.nodes_pw)[0][0]
    (solved,) = geodesics(flat(), density, [guess])
    off_line = np.abs(solved[:, 0] - solved[:, 1]) / np.sqrt(2)
    assert off_line.max() < 0.03
    length = step_lengths(flat(), solved).sum()
    assert 10 * np.sqrt(8) * 0.999 < length < 10 * np.sqrt(8) * 1.005


@torch.no_grad()
def shortest_on_a_grid(geometry, start: np.ndarray, end: np.ndarray) -> float:
    """Compute the length of the shortest path over a fine grid, with the moves of a king and of a knight in chess."""
    n, limit = 121, 2.4
    axis = np.linspace(-limit, limit, n)
    corners = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    y = geometry.coordinates(points(corners)).double().numpy().reshape(n, n, -1)
    index = np.arange(n * n).reshape(n, n)
    source, target, length = [], [], []
    for i, j in ((0, 1), (1, 0), (1, 1), (1, -1), (1, 2), (2, 1), (1, -2), (2, -1)):
        here = (slice(0, n - i), slice(max(0, -j), n - max(0, j)))
        there = (slice(i, n), slice(max(0, j), n + min(0, j)))
        source.append(index[here].ravel())
        target.append(index[there].ravel())
        length.append(np.linalg.norm(y[here] - y[there], axis=2).ravel())
    edges = sp.csr_matrix((np.concatenate(length), (np.concatenate(source), np.concatenate(target))), (n * n, n * n))
    a, b = (int(cdist([point], corners).argmin()) for point in (start, end))
    return float(dijkstra(edges, directed=False, indices=a)[b])


@pytest.mark.parametrize("ends", [[[-1.6, -1.6], [1.6, 1.6]], [[-1.6, 1.6], [1.6, -1.6]], [[-2.0, 0.0], [2.0, 0.0]]])
def test_geodesic_is_the_shortest_path_over_a_fine_grid(curved, ends):
    """The cells fill the whole square, so the path may go anywhere. Paths on the grid are up to 3% too long."""
    model, graph, x_nk = curved
    geometry = Geometry(model.vae)
    waypoints = waypoints_at(graph, x_nk, [ends])
    guess = along_cells(graph, waypoints.z_pwk, waypoints.nodes_pw)[0][0]
    (solved,) = geodesics(geometry, wide_density(), [guess])
    found, reference = step_lengths(geometry, solved).sum(), shortest_on_a_grid(geometry, *np.asarray(ends))
    assert 0.965 * reference < found < 1.005 * reference


def test_geodesic_goes_around_the_hole_of_a_ring(ring_cells):
    graph, density, x_nk = ring_cells
    start, end = (int(cdist([[x, 0.5]], x_nk).argmin()) for x in (1.95, -1.95))
    waypoints = waypoints_at(graph, x_nk, [[x_nk[start], x_nk[end]]])
    guess = along_cells(graph, waypoints.z_pwk, waypoints.nodes_pw)[0][0]
    line = straight(x_nk[[start, end]], 50)
    (solved,) = geodesics(flat(), density, [guess])
    geodesic = at_constant_speed(flat(), solved, 50)
    through, around = (along(flat(), density, points(x_nk), path, None) for path in (line, geodesic))
    assert through.off[10:40].all()
    assert not around.off.any()
    assert np.abs(np.linalg.norm(geodesic, axis=1) - 2).max() < 0.4
    assert unevenness(flat(), geodesic) < 0.02
    # The path above the hole is shorter (length 2.6) than the path below the hole (length 3.6).
    assert (geodesic[:, 1] > 0).all()
    assert around.length > through.length


def test_paths_of_squared_steps_have_shorter_steps_and_are_longer(curved):
    _, graph, _ = curved
    squared = with_squared_lengths(graph)
    np.testing.assert_allclose(squared.lengths.toarray(), graph.lengths.toarray() ** 2, rtol=1e-12)
    pairs = [(0, 100), (1, 200), (2, 300)]
    for direct, stepwise in zip(graph.shortest_paths(pairs), squared.shortest_paths(pairs), strict=True):
        direct_s, stepwise_s = (graph.lengths[path[:-1], path[1:]].A1 for path in (direct, stepwise))
        assert (stepwise_s**2).sum() <= (direct_s**2).sum()
        assert stepwise_s.sum() >= direct_s.sum()


def test_geodesic_does_not_cross_a_hole_over_single_cells():
    """Single cells lie in the hole of a ring, on the shortest path; the geodesic stays in the ring, with many cells."""
    x_nk = ring(1200)
    single_nk = np.column_stack([np.linspace(-1.5, 1.5, 9), np.full(9, 0.1)])
    all_nk = np.concatenate([x_nk, single_nk])
    graph, density = graph_of(all_nk), density_of(x_nk)
    start, end = (int(cdist([[x, 0.1]], x_nk).argmin()) for x in (2, -2))
    assert (graph.shortest_paths([(start, end)])[0] >= len(x_nk)).any()
    assert (with_squared_lengths(graph).shortest_paths([(start, end)])[0] < len(x_nk)).all()
    waypoints = waypoints_at(graph, all_nk, [[x_nk[start], x_nk[end]]])
    (geodesic,) = geodesics(
        flat(), density, along_cells(with_squared_lengths(graph), waypoints.z_pwk, waypoints.nodes_pw)[0]
    )
    assert not along(flat(), density, points(x_nk), at_constant_speed(flat(), geodesic, 50), None).off.any()


def test_geodesic_does_not_depend_on_the_rotation_of_latent_space(ring_cells):
    """The latent axes are not identified, so no result may depend on their directions."""
    _, density, _ = ring_cells
    angle = 0.7
    rotation_kk = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=torch.float32)
    covariance_ckk = torch.linalg.inv(density.whiten_ckk @ density.whiten_ckk.mT)
    rotated = replace(
        density,
        mean_ck=density.mean_ck @ rotation_kk,
        whiten_ckk=torch.linalg.inv(torch.linalg.cholesky(rotation_kk.T @ covariance_ckk @ rotation_kk)).mT,
    )
    uneven_gk = torch.tensor([[10.0, 0.0], [0.0, 3.0], [2.0, 2.0]])
    line = straight(np.array([[1.9, 0.6], [-1.9, 0.6]]), 30)
    (plain,) = geodesics(FlatGeometry(uneven_gk), density, [line])
    (found,) = geodesics(FlatGeometry(uneven_gk @ rotation_kk), rotated, [line @ rotation_kk.numpy()])
    np.testing.assert_allclose(found, plain @ rotation_kk.numpy(), atol=0.05)
    assert np.abs(plain - line[0]).max() > 1


def test_speed_at_a_step_is_the_mean_of_before_and_after():
    z_tk = np.array([[0.0, 0], [1, 0], [1, 3], [1, 5]])
    steps = along(flat(), density_of(ring(100)), points(ring(100)), z_tk, None)
    np.testing.assert_allclose(steps.speed_t, 30 * np.array([1, 2, 2.5, 2]), rtol=1e-5)
    assert steps.length == pytest.approx(60)
    assert steps.groups_passed() == []


def test_geodesic_crosses_the_gap_between_components():
    x_nk = clusters([[0.0, 0], [8, 0]], 200)
    graph, density = graph_of(x_nk), density_of(x_nk)
    assert graph.bridges > 0
    waypoints = waypoints_at(graph, x_nk, [[[0.0, 0.0], [8.0, 0.0]]])
    (solved,) = geodesics(flat(), density, along_cells(graph, waypoints.z_pwk, waypoints.nodes_pw)[0])
    steps = along(flat(), density, points(x_nk), at_constant_speed(flat(), solved, 50), None)
    assert steps.off[15:35].all()
    assert not steps.off[[0, -1]].any()
    assert np.isfinite(solved).all()


def test_density_without_spread_gives_a_finite_geodesic():
    """If the density is equal at all held-out cells, the unit of −log density in the factor `cost` is zero."""
    x_nk = np.random.default_rng(0).normal(size=(100, 2))
    density = density_of(x_nk)
    same = type(density)(density.log_weight_c, density.mean_ck, density.whiten_ckk, torch.full((5,), 2.0))
    (solved,) = geodesics(flat(), same, [x_nk[[0, 1]]])
    assert np.isfinite(solved).all()


@pytest.mark.parametrize("n_points", [2, 10, 24, 96])
def test_spline_basis_equals_scipy(n_points):
    c = curves._CONTROLS
    knots = np.concatenate([[0.0] * 3, np.linspace(0, 1, c - 2), [1.0] * 3])
    expected_tc = BSpline.design_matrix(np.linspace(0, 1, n_points), knots, 3).toarray()
    np.testing.assert_allclose(curves.spline_basis(n_points).numpy(), expected_tc, atol=1e-7)


# --- cells that are avoided -------------------------------------------------------------------------------------------


def test_share_of_avoided_cells_equals_that_of_their_posteriors():
    random = np.random.default_rng(0)
    mean_nk, var_nk = random.normal(size=(40, 3)), random.uniform(0.05, 0.5, size=(40, 3))
    avoided_m, z_nk = random.random(40) < 0.4, random.normal(size=(9, 3))
    avoided = AvoidedCells.among(graph_of(mean_nk), Posterior(points(mean_nk), points(var_nk)), avoided_m)
    density_nm = np.exp(-0.5 * (z_nk[:, None] - mean_nk) ** 2 / var_nk) / np.sqrt(var_nk)
    density_nm = density_nm.prod(2)
    expected = density_nm[:, avoided_m].sum(1) / density_nm.sum(1)
    np.testing.assert_allclose(avoided.share(points(z_nk)).numpy(), expected, rtol=1e-3, atol=1e-5)


def test_paths_go_around_avoided_cells(ring_cells):
    """On a ring, most cells on the shorter way are avoided, although there are as many cells as elsewhere."""
    graph, density, x_nk = ring_cells
    posterior = Posterior(points(x_nk), torch.full((len(x_nk), 2), 1e-2))
    ends = waypoints_at(graph, x_nk, [[x_nk[300], x_nk[800]]])
    between_n = (np.arange(len(x_nk)) > 350) & (np.arange(len(x_nk)) < 750)
    avoided = AvoidedCells.among(graph, posterior, between_n)
    for cells in (None, avoided):
        guide = graph if cells is None else around_avoided(graph, between_n)
        guess = along_cells(guide, ends.z_pwk, ends.nodes_pw)[0]
        (solved,) = geodesics(flat(), density, guess, avoided=cells)
        for path_tk in (*guess, solved):
            passed = between_n[cdist(path_tk, x_nk).argmin(1)].mean()
            assert passed > 0.7 if cells is None else passed < 0.05
