"""The neighbor graph is compared with brute force, and distances along the graph with known distances.

Letters in array shapes: n cells, k latent dimensions, m nodes.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
import torch
from handmade import FlatGeometry, clusters, flat, graph_of, points
from scipy.spatial.distance import cdist

from scvae_cli.latent import neighbor_graph as graph_module
from scvae_cli.latent.neighbor_graph import cell_graph, euclidean_graph, nearest


def random_points(n: int = 60, k: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, k))


# --- the edges --------------------------------------------------------------------------------------------------------


def test_neighbors_are_the_nearest_in_latent_space():
    x_nk = random_points()
    graph = graph_of(x_nk)
    expected = np.argsort(cdist(x_nk, x_nk) + np.diag(np.full(60, np.inf)), axis=1)[:, :15]
    np.testing.assert_array_equal(graph.neighbors_mj, expected)
    assert graph.bridges == 0


def test_edge_lengths_are_distances_of_the_decoder():
    """The second latent dimension does not change the decoded counts, so only the first dimension counts."""
    x_nk = random_points(k=2)
    graph = graph_of(x_nk, FlatGeometry(torch.tensor([[3.0, 0.0]])))
    lengths = graph.lengths.tocoo()
    assert (abs(graph.lengths - graph.lengths.T) > 0).nnz == 0
    expected = 3 * np.abs(x_nk[lengths.row, 0] - x_nk[lengths.col, 0])
    np.testing.assert_allclose(lengths.data, expected, rtol=1e-3, atol=1e-5)
    joined = set(zip(lengths.row, lengths.col, strict=True))
    pairs = {(i, int(j)) for i, row in enumerate(graph.neighbors_mj) for j in row}
    assert joined == pairs | {(j, i) for i, j in pairs}


def test_euclidean_graph_uses_the_given_coordinates():
    x_nk, cells = random_points(80, 5), np.arange(80) * 3
    graph = euclidean_graph(cells, points(x_nk), 7)
    far_nn = cdist(x_nk, x_nk)
    np.testing.assert_array_equal(graph.neighbors_mj, np.argsort(far_nn, axis=1)[:, 1:8])
    lengths = graph.lengths.tocoo()
    np.testing.assert_allclose(lengths.data, far_nn[lengths.row, lengths.col], rtol=1e-5)
    np.testing.assert_array_equal(graph.cells, cells)


def test_shortest_paths_equal_networkx():
    graph = graph_of(random_points(40))
    reference = nx.from_scipy_sparse_array(graph.lengths)
    pairs = [(0, 39), (5, 5), (17, 2), (0, 8)]
    for (start, end), path in zip(pairs, graph.shortest_paths(pairs), strict=True):
        assert list(path) == nx.dijkstra_path(reference, start, end)
    expected = nx.single_source_dijkstra_path_length(reference, 17)
    np.testing.assert_allclose(graph.distances([17])[0], [expected[m] for m in range(40)])


def test_nearest_equals_brute_force_for_any_block_size(monkeypatch):
    x_nk, among_mk = random_points(50), random_points(30, seed=1)
    monkeypatch.setattr(graph_module, "BLOCK_VALUES", 100)
    index, distance = nearest(points(x_nk), points(among_mk), 4)
    expected = cdist(x_nk, among_mk)
    np.testing.assert_array_equal(index, np.argsort(expected, axis=1)[:, :4])
    np.testing.assert_allclose(distance, np.sort(expected, axis=1)[:, :4], rtol=1e-5)
    assert nearest(points(x_nk), points(among_mk[:2]), 9)[0].shape == (50, 2)


def test_near_points_far_from_the_origin_are_distinguished():
    x_nk = 1000 + 1e-2 * np.arange(40.0)[:, None]
    np.testing.assert_array_equal(nearest(points(x_nk), points(x_nk), 1)[0][:, 0], np.arange(40))


def test_identical_cells_are_neighbors_but_no_cell_is_its_own_neighbor():
    x_nk = np.concatenate([np.zeros((30, 2)), random_points(20, 2) + 5])
    graph = graph_of(x_nk)
    assert (graph.neighbors_mj != np.arange(50)[:, None]).all()
    assert graph.neighbors_mj.shape == (50, 15)
    assert graph.lengths.data.min() > 0
    assert np.isfinite(graph.distances([0])).all()
    assert graph.distances([0])[0, :30].max() < 1e-3


@pytest.mark.parametrize("n", [2, 3, 10])
def test_graph_of_few_cells_is_complete(n):
    graph = graph_of(random_points(n))
    assert graph.neighbors_mj.shape == (n, n - 1)
    assert np.isfinite(graph.distances([0])).all()


# --- components of the graph ------------------------------------------------------------------------------------------


def test_components_are_joined_at_their_nearest_cells():
    centers = [[0.0, 0], [20, 0], [50, 0]]
    x_nk = clusters(centers, 40)
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


def test_number_of_components_is_not_derived_from_the_number_of_bridges():
    """Each of the three components is joined by a bridge to the nearest cell of the other components."""
    graph = graph_of(clusters([[0.0, 0], [50, 0], [70, 0]], 40))
    assert graph.n_components == 3
    assert graph.bridges == 3
    assert graph_of(random_points(60)).n_components == 1


def test_distant_cell_needs_no_bridge():
    """A distant cell is connected to its nearest cells as any other cell is, so no bridge is needed."""
    graph = graph_of(np.vstack([random_points(50, 2), [[100.0, 0]]]))
    assert graph.bridges == 0
    assert np.isfinite(graph.distances([50])).all()


# --- fewer nodes than cells -------------------------------------------------------------------------------------------


@pytest.fixture
def few_nodes(monkeypatch):
    monkeypatch.setattr(graph_module, "MAX_NODES", 150)


def test_requested_cells_are_nodes(few_nodes):
    del few_nodes
    always = np.array([7, 1999, 600])
    graph = cell_graph(flat(), points(random_points(2000, 2)), always=always, seed=3)
    assert 150 <= len(graph.cells) <= 153
    assert (np.diff(graph.cells) > 0).all()
    assert [graph.cells[graph.node_of(cell)] for cell in always] == always.tolist()
    np.testing.assert_array_equal(graph.cells[graph.nodes_of(always)], np.sort(always))
    second = cell_graph(flat(), points(random_points(2000, 2)), always=always, seed=3)
    np.testing.assert_array_equal(second.cells, graph.cells)
    with pytest.raises(AssertionError, match="must be a node"):
        graph.node_of(int(np.setdiff1d(np.arange(2000), graph.cells)[0]))


def test_many_genes_reduce_the_number_of_nodes(monkeypatch):
    monkeypatch.setattr(graph_module, "MAX_VALUES", 10)
    graph = cell_graph(flat(), points(random_points(1200, 2)), always=np.empty(0, dtype=np.int64))
    assert len(graph.cells) == 1000


def test_values_are_spread_to_cells_that_are_not_nodes(few_nodes):
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


def test_spread_returns_the_values_if_all_cells_are_nodes():
    x_nk = random_points(30)
    value_m = np.arange(30.0)
    assert graph_of(x_nk).spread(value_m, points(x_nk)) is value_m
