"""The cells' graph against brute force, and distances through it where they are known.

Shapes: n cells, k latent dimensions, m nodes.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from handmade import FlatGeometry, clusters, flat, graph_of, points, ring, wild_vae
from scipy.sparse.csgraph import laplacian
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr

from scvae_cli.latent import neighbor_graph as room
from scvae_cli.latent.neighbor_graph import CellGraph, cell_graph, nearest
from scvae_cli.model.geometry import Geometry


def cloud(n: int = 60, k: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, k))


def graph_by_state(x_nk: np.ndarray, geometry: FlatGeometry | Geometry) -> CellGraph:
    return cell_graph(geometry, points(x_nk), always=np.empty(0, dtype=np.int64), by_state=True)


# --- the edges --------------------------------------------------------------------------------------------------------


def test_neighbours_are_the_nearest_in_latent_space():
    x_nk = cloud()
    graph = graph_of(x_nk)
    expected = np.argsort(cdist(x_nk, x_nk) + np.diag(np.full(60, np.inf)), axis=1)[:, :15]
    np.testing.assert_array_equal(graph.neighbors_mj, expected)
    assert graph.bridges == 0


def test_edges_are_as_long_as_the_decoder_says():
    """The second dimension changes nothing that is counted."""
    x_nk = cloud(k=2)
    graph = graph_of(x_nk, FlatGeometry(torch.tensor([[3.0, 0.0]])))
    lengths = graph.lengths.tocoo()
    assert (abs(graph.lengths - graph.lengths.T) > 0).nnz == 0
    expected = 3 * np.abs(x_nk[lengths.row, 0] - x_nk[lengths.col, 0])
    np.testing.assert_allclose(lengths.data, expected, rtol=1e-3, atol=1e-5)
    joined = set(zip(lengths.row, lengths.col, strict=True))
    pairs = {(i, int(j)) for i, row in enumerate(graph.neighbors_mj) for j in row}
    assert joined == pairs | {(j, i) for i, j in pairs}


def test_neighbours_by_state_are_the_nearest_decoded_ones(monkeypatch):
    """More genes than directions are looked along, and more cells than show which these are."""
    monkeypatch.setattr(room, "DIRECTION_CELLS", 40)
    x_nk = cloud(200, 5)
    decoder = FlatGeometry(torch.as_tensor(np.random.default_rng(1).normal(size=(90, 5)) * [9, 3, 1, 0.3, 0.1]).float())
    graph = graph_by_state(x_nk, decoder)
    y_ng = x_nk @ decoder.map_gk.numpy().T
    expected = np.argsort(cdist(y_ng, y_ng) + np.diag(np.full(200, np.inf)), axis=1)[:, :15]
    assert (graph.neighbors_mj == expected).mean() > 0.99
    lengths = graph.lengths.tocoo()
    np.testing.assert_allclose(lengths.data, cdist(y_ng, y_ng)[lengths.row, lengths.col], rtol=1e-3)
    assert (graph_of(x_nk, decoder).neighbors_mj == expected).mean() < 0.5


def test_neighbours_by_state_of_a_curved_decoder():
    geometry, x_nk = Geometry(wild_vae(k=3, g=150).float()), cloud(300)
    y_ng = geometry.coordinates(points(x_nk)).detach().numpy()
    expected = np.argsort(cdist(y_ng, y_ng) + np.diag(np.full(300, np.inf)), axis=1)[:, :15]
    found = graph_by_state(x_nk, geometry).neighbors_mj
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, expected, strict=True)]) > 14.9


def test_shortest_paths_are_networkx_s():
    graph = graph_of(cloud(40))
    reference = nx.from_scipy_sparse_array(graph.lengths)
    pairs = [(0, 39), (5, 5), (17, 2), (0, 8)]
    for (start, end), path in zip(pairs, graph.shortest_paths(pairs), strict=True):
        assert list(path) == nx.dijkstra_path(reference, start, end)
    expected = nx.single_source_dijkstra_path_length(reference, 17)
    np.testing.assert_allclose(graph.distances([17])[0], [expected[m] for m in range(40)])


def test_nearest_is_brute_force_whatever_the_blocks(monkeypatch):
    x_nk, among_mk = cloud(50), cloud(30, seed=1)
    monkeypatch.setattr(room, "BLOCK_VALUES", 100)
    index, distance = nearest(points(x_nk), points(among_mk), 4)
    expected = cdist(x_nk, among_mk)
    np.testing.assert_array_equal(index, np.argsort(expected, axis=1)[:, :4])
    np.testing.assert_allclose(distance, np.sort(expected, axis=1)[:, :4], rtol=1e-5)
    assert nearest(points(x_nk), points(among_mk[:2]), 9)[0].shape == (50, 2)


def test_near_points_are_told_apart_far_from_the_origin():
    x_nk = 1000 + 1e-2 * np.arange(40.0)[:, None]
    np.testing.assert_array_equal(nearest(points(x_nk), points(x_nk), 1)[0][:, 0], np.arange(40))


def test_twins_are_neighbours_but_nobody_is_its_own():
    x_nk = np.concatenate([np.zeros((30, 2)), cloud(20, 2) + 5])
    graph = graph_of(x_nk)
    assert (graph.neighbors_mj != np.arange(50)[:, None]).all()
    assert graph.neighbors_mj.shape == (50, 15)
    assert graph.lengths.data.min() > 0
    assert np.isfinite(graph.distances([0])).all()
    assert graph.distances([0])[0, :30].max() < 1e-3


@pytest.mark.parametrize("n", [2, 3, 10])
def test_few_cells(n):
    graph = graph_of(cloud(n))
    assert graph.neighbors_mj.shape == (n, n - 1)
    assert np.isfinite(graph.distances([0])).all()
    smooth_m = graph.smooth_distances([np.array([0])])[0]
    assert np.isfinite(smooth_m).all()
    assert smooth_m[0] == 0
    np.testing.assert_array_equal(np.sort(graph_by_state(cloud(n), flat(3)).neighbors_mj), np.sort(graph.neighbors_mj))


# --- components of the graph ------------------------------------------------------------------------------------------


def test_islands_are_joined_where_they_are_nearest():
    centres = [[0.0, 0], [20, 0], [50, 0]]
    x_nk = clusters(centres, 40)
    graph = graph_of(x_nk)
    assert graph.bridges >= 2
    far_nn = cdist(x_nk, x_nk)
    lengths = graph.lengths.tocoo()
    crossing = {(min(i, j), max(i, j)) for i, j in zip(lengths.row, lengths.col, strict=True) if i // 40 != j // 40}
    for a, b in ((0, 1), (1, 2)):
        block = far_nn[a * 40 : a * 40 + 40, b * 40 : b * 40 + 40]
        i, j = np.unravel_index(block.argmin(), block.shape)
        assert (a * 40 + i, b * 40 + j) in crossing
    assert len(crossing) == 2
    distance_m = graph.distances([0])[0]
    assert distance_m[80:].min() > distance_m[40:80].max() > distance_m[:40].max()


def test_islands_are_counted_though_two_of_them_have_two_bridges():
    """The two small ones are nearest to each other, and each looks for its own nearest cell: three bridges."""
    graph = graph_of(clusters([[0.0, 0], [50, 0], [70, 0]], 40))
    assert graph.n_components == 3
    assert graph.bridges == 3
    assert graph_of(cloud(60)).n_components == 1


def test_a_lone_cell_has_neighbours_of_its_own():
    """A far cell is tied to its nearest ones like any other: no bridge."""
    graph = graph_of(np.vstack([cloud(50, 2), [[100.0, 0]]]))
    assert graph.bridges == 0
    assert np.isfinite(graph.distances([50])).all()


# --- smooth distances -------------------------------------------------------------------------------------------------


def test_smooth_distances_are_those_of_the_regularised_laplacian():
    graph = graph_of(cloud(50))
    conductance = graph.lengths.toarray()
    conductance[conductance > 0] **= -2
    kernel = np.linalg.inv(np.eye(50) + room._HEAT_TIME * laplacian(conductance, normed=True))
    fallen_m = -np.log(kernel[[3, 7]].mean(0))
    np.testing.assert_allclose(graph.smooth_distances([np.array([3, 7])])[0], fallen_m - fallen_m.min(), atol=1e-6)


def test_smooth_distances_are_not_stopped_by_twins():
    position_n = np.repeat(np.sort(np.random.default_rng(0).uniform(0, 10, 200)), 3)
    graph = graph_of(np.column_stack([position_n, np.repeat(0.1 * cloud(200, 2), 3, axis=0)]))
    assert spearmanr(graph.smooth_distances([np.arange(3)])[0], position_n).statistic > 0.995


def test_smooth_distances_order_cells_along_a_line():
    position_n = np.sort(np.random.default_rng(0).uniform(0, 10, 500))
    noise_nk = 0.1 * cloud(500, 2)
    graph = graph_of(np.column_stack([position_n, noise_nk]))
    smooth_sm = graph.smooth_distances([np.arange(10), np.arange(490, 500)])
    assert spearmanr(smooth_sm[0], position_n).statistic > 0.995
    assert spearmanr(smooth_sm[1], -position_n).statistic > 0.995
    assert smooth_sm.min() == 0


def test_smooth_distances_go_round_a_ring():
    graph = graph_of(ring(800))
    start = 400
    smooth_m = graph.smooth_distances([np.array([start])])[0]
    around = np.minimum(np.abs(np.arange(800) - start), 800 - np.abs(np.arange(800) - start))
    assert spearmanr(smooth_m, around).statistic > 0.99
    straight_n = np.linalg.norm(graph.mean_mk.numpy() - graph.mean_mk.numpy()[start], axis=1)
    assert graph.distances([start])[0].max() > 1.4 * 10 * straight_n.max()


def test_smooth_distances_by_state_do_not_see_what_changes_nothing():
    """A second dimension is as wide in latent space as the first, and hardly a gene answers to it."""
    x_nk = np.random.default_rng(0).uniform(0, 10, size=(500, 2))
    decoder = FlatGeometry(torch.tensor([[5.0, 0.0], [0.0, 0.05]]))
    start = x_nk[:, 0].argsort()[:1]
    by_state, latent = (make(x_nk, decoder).smooth_distances([start])[0] for make in (graph_by_state, graph_of))
    assert spearmanr(by_state, x_nk[:, 0]).statistic > 0.999
    assert spearmanr(latent, x_nk[:, 0]).statistic < spearmanr(by_state, x_nk[:, 0]).statistic


def test_smooth_distances_do_not_depend_on_the_unit():
    x_nk = cloud(200)
    small, large = (graph_of(x_nk, flat(3, scale)).smooth_distances([np.array([0])])[0] for scale in (1.0, 50.0))
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-3)


# --- fewer nodes than cells -------------------------------------------------------------------------------------------


@pytest.fixture
def few_nodes(monkeypatch):
    monkeypatch.setattr(room, "MAX_NODES", 150)


def test_some_cells_are_always_nodes(few_nodes):
    del few_nodes
    always = np.array([7, 1999, 600])
    graph = cell_graph(flat(), points(cloud(2000, 2)), always=always, seed=3)
    assert 150 <= len(graph.cells) <= 153
    assert (np.diff(graph.cells) > 0).all()
    assert [graph.cells[graph.node_of(cell)] for cell in always] == always.tolist()
    np.testing.assert_array_equal(graph.cells[graph.nodes_of(always)], np.sort(always))
    for by_state in (False, True):
        again = cell_graph(flat(), points(cloud(2000, 2)), always=always, by_state=by_state, seed=3)
        np.testing.assert_array_equal(again.cells, graph.cells)
    with pytest.raises(AssertionError, match="must be a node"):
        graph.node_of(int(np.setdiff1d(np.arange(2000), graph.cells)[0]))


def test_many_genes_leave_room_for_fewer_nodes(monkeypatch):
    monkeypatch.setattr(room, "MAX_VALUES", 10)
    graph = cell_graph(flat(), points(cloud(1200, 2)), always=np.empty(0, dtype=np.int64))
    assert len(graph.cells) == 1000


def test_values_spread_to_cells_that_are_no_nodes(few_nodes):
    del few_nodes
    x_nk = np.random.default_rng(0).uniform(0, 1, size=(2000, 2))
    graph = cell_graph(flat(), points(x_nk), always=np.empty(0, dtype=np.int64))
    value_n = graph.spread(x_nk[graph.cells] @ [2.0, -1.0], points(x_nk))
    assert value_n.shape == (2000,)
    np.testing.assert_array_equal(value_n[graph.cells], x_nk[graph.cells] @ [2.0, -1.0])
    assert np.abs(value_n - x_nk @ [2.0, -1.0]).max() < 0.5
    assert np.corrcoef(value_n, x_nk @ [2.0, -1.0])[0, 1] > 0.99
    shares_mk = np.column_stack([x_nk[graph.cells, 0], 1 - x_nk[graph.cells, 0]])
    shares_nk = graph.spread(shares_mk, points(x_nk))
    np.testing.assert_allclose(shares_nk.sum(1), 1, rtol=1e-5)


def test_values_of_all_cells_need_no_spreading():
    x_nk = cloud(30)
    value_m = np.arange(30.0)
    assert graph_of(x_nk).spread(value_m, points(x_nk)) is value_m
