"""The latent position of a population, and the pairs of cells that optimal transport finds.

Letters in array shapes: n cells, k latent dimensions, p paths.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import clusters, density_of, flat, graph_of, points
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from scvae_cli.latent.populations import Population, core, densest
from scvae_cli.tools.trajectory import waypoints
from scvae_cli.tools.trajectory.waypoints import coupled, positions


@pytest.fixture(scope="module")
def border():
    """A small population (cells 600 to 659) on the border of a large one."""
    x_nk = np.vstack([clusters([[0.0, 0]], 600, 0.6), clusters([[1.5, 0]], 60, 0.35, seed=1)])
    return graph_of(x_nk), density_of(x_nk), np.arange(600, 660), x_nk


def group(label: str, cells: object) -> Population:
    return Population(label=label, cells=np.asarray(cells))


# --- ends -------------------------------------------------------------------------------------------------------------


def test_end_of_a_small_population_is_among_its_own_cells(border):
    graph, density, small, x_nk = border
    naive = small[int(density.log_prob(points(x_nk[small])).argmax())]
    chosen = densest(graph, density, small)

    def share(cell: int) -> float:
        return float(np.isin(graph.neighbors_mj[cell], small).mean())

    assert share(naive) < 0.5
    assert share(chosen) > 2 * share(naive)
    assert chosen in core(graph, small)
    shares = np.asarray([share(cell) for cell in small])
    np.testing.assert_array_equal(core(graph, small), small[shares >= 0.9 * shares.max()])
    # The position is that of the cell of the core with the highest density.
    inner = core(graph, small)
    assert chosen == inner[int(density.log_prob(points(x_nk[inner])).argmax())]


def test_end_of_a_large_population_is_its_densest_position(border):
    graph, density, _, x_nk = border
    assert np.linalg.norm(x_nk[densest(graph, density, np.arange(600))]) < 0.5


def test_outliers_do_not_represent_a_population():
    """Most cells of a small population lie next to a large population, and the others are scattered far away."""
    near_nk = np.vstack([clusters([[0.0, 0]], 600, 0.6), clusters([[0.9, 0]], 40, 0.35, seed=1)])
    x_nk = np.vstack([near_nk, clusters([[8.0, 0]], 20, 2.0, seed=2)])
    graph, density, small = graph_of(x_nk), density_of(x_nk), np.arange(600, 660)
    assert core(graph, small).min() >= 640
    chosen = densest(graph, density, small)
    assert chosen < 640
    assert float(density.off_manifold(points(x_nk[[chosen]]))) <= 0.9
    # A population may consist of outliers only.
    assert densest(graph, density, np.arange(640, 660)) >= 640


def test_single_cell_is_its_own_core(border):
    graph, density, _, _ = border
    assert core(graph, np.array([17])).tolist() == [17]
    assert densest(graph, density, np.array([17])) == 17


def test_ends_are_cells_or_means(border):
    graph, density, small, x_nk = border
    populations = [group("large", np.arange(600)), group("one", [3]), group("small", small)]
    dense = positions(graph, density, points(x_nk), populations, "density")
    assert dense.z_pwk.shape == (1, 3, 2)
    expected = [densest(graph, density, np.arange(600)), 3, densest(graph, density, small)]
    assert dense.nodes_pw.tolist() == [expected]
    np.testing.assert_allclose(dense.z_pwk[0], x_nk[expected], rtol=1e-5)
    mean = positions(graph, density, points(x_nk), populations, "centroid")
    np.testing.assert_allclose(mean.z_pwk[0, 0], x_nk[:600].mean(0), atol=1e-5)
    np.testing.assert_allclose(mean.z_pwk[0, 1], x_nk[3], rtol=1e-5)
    np.testing.assert_allclose(mean.z_pwk[0, 2], x_nk[small].mean(0), atol=1e-5)
    to_mean = np.linalg.norm(x_nk - x_nk[small].mean(0), axis=1)
    assert mean.nodes_pw[0, 2] == to_mean.argmin()


def test_candidates_of_a_large_population_are_evenly_spaced():
    some = group("all", np.arange(5000)).candidates()
    assert 400 <= len(some) <= 500
    assert np.ptp(np.diff(some)) == 0
    assert group("few", [1, 5]).candidates().tolist() == [1, 5]


# --- pairs ------------------------------------------------------------------------------------------------------------


def pairs_of(n_start: int, n_end: int, *, n_paths: int, seed: int = 0):
    """Draw pairs of cells from two populations; return all cells, the pairs, the waypoints and squared distances."""
    x_nk = np.vstack([clusters([[0.0, 0]], n_start, 1.0), clusters([[6.0, 1]], n_end, 1.0, seed=1)])
    graph, density = graph_of(x_nk), density_of(x_nk)
    start, end = group("a", np.arange(n_start)), group("b", np.arange(n_start, n_start + n_end))
    single = positions(graph, density, points(x_nk), [start, group("via", [3]), end], "density")
    drawn = coupled(graph, flat(), single, start, end, n_paths=n_paths, seed=seed)
    return x_nk, drawn, single, 100 * cdist(x_nk[:n_start], x_nk[n_start:]) ** 2


def test_equal_populations_are_paired_with_minimal_cost():
    x_nk, drawn, single, cost = pairs_of(40, 40, n_paths=40)
    assert drawn.z_pwk.shape == (40, 3, 2)
    starts, ends = drawn.nodes_pw[:, 0], drawn.nodes_pw[:, -1]
    assert sorted(starts) == list(range(40))
    assert sorted(ends) == list(range(40, 80))
    least = cost[linear_sum_assignment(cost)].sum()
    assert cost[starts, ends - 40].sum() == pytest.approx(least, rel=1e-4)
    np.testing.assert_allclose(drawn.z_pwk[:, 0], x_nk[starts], rtol=1e-5)
    np.testing.assert_allclose(drawn.z_pwk[:, -1], x_nk[ends], rtol=1e-5)
    assert (drawn.nodes_pw[:, 1] == single.nodes_pw[0, 1]).all()
    assert (drawn.z_pwk[:, 1] == single.z_pwk[0, 1]).all()


def test_pairs_depend_on_the_seed_and_repeat_only_if_necessary():
    first, second, other = (pairs_of(30, 50, n_paths=20, seed=s)[1].nodes_pw for s in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert len({tuple(pair) for pair in first}) == 20
    many = pairs_of(10, 10, n_paths=30)[1].nodes_pw
    assert len(many) == 30
    assert len({tuple(pair) for pair in many}) <= 10


def test_large_populations_are_paired_in_part(monkeypatch):
    monkeypatch.setattr(waypoints, "COUPLED_CELLS", 20)
    drawn = pairs_of(100, 60, n_paths=20)[1]
    assert len(set(drawn.nodes_pw[:, 0])) == len(set(drawn.nodes_pw[:, -1])) == 20
    assert torch.as_tensor(drawn.z_pwk).isfinite().all()
