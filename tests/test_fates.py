"""Absorption probabilities, diffusion coordinates, and cells that represent an end are compared with plain formulas.

Letters in array shapes: m nodes, e ends.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from handmade import clusters, points
from scipy.stats import spearmanr

from scvae_cli.latent.diffusion import diffusion_coordinates, similarities
from scvae_cli.latent.end_cells import best, standing
from scvae_cli.latent.fates import committed, fate_probabilities, staying_probabilities
from scvae_cli.latent.neighbor_graph import euclidean_graph


def chain(m: int) -> sp.csr_matrix:
    """Make nodes in a row, each similar to the previous node and to the next node."""
    return sp.diags([np.ones(m - 1), np.ones(m - 1)], [-1, 1]).tocsr()


def graph(x_mk: np.ndarray, n_neighbors: int = 15):
    return euclidean_graph(np.arange(len(x_mk)), points(x_mk), n_neighbors)


def test_probabilities_equal_those_of_a_markov_chain():
    """The graph is a fork: nodes 0-1-2, then either 3-4 or 5-6."""
    pairs = [(0, 1), (1, 2), (2, 3), (3, 4), (2, 5), (5, 6)]
    similar = sp.lil_matrix((7, 7))
    for (a, b), weight in zip(pairs, (1, 1, 3, 1, 1, 1), strict=True):
        similar[a, b] = similar[b, a] = weight
    time_m = np.array([0.0, 1, 2, 3, 4, 3, 4])
    found_me = fate_probabilities([similar.tocsr()], time_m, [(np.array([4]), np.ones(1)), (np.array([6]), np.ones(1))])
    # Every step changes the order by one, so the local spread is one, and a step back has the factor exp(-3).
    steps = similar.toarray() * np.where(np.subtract.outer(time_m, time_m) > 0, np.exp(-3), 1)
    steps /= steps.sum(1, keepdims=True)
    transient = [0, 1, 2, 3, 5]
    expected = np.linalg.solve(np.eye(5) - steps[np.ix_(transient, transient)], steps[np.ix_(transient, [4, 6])])
    np.testing.assert_allclose(found_me[transient], expected, atol=0.01)
    np.testing.assert_allclose(found_me[[4, 6]], np.eye(2), atol=1e-6)
    np.testing.assert_allclose(found_me.sum(1), 1)


def test_walks_leave_a_branch_without_an_end():
    """The nodes beyond the second end are on no path to an end."""
    m = 60
    ends = [(np.array([5]), np.ones(1)), (np.array([20]), np.ones(1))]
    found_me = fate_probabilities([chain(m)], np.arange(m) / m, ends)
    assert np.isfinite(found_me).all()
    assert (found_me[21:, 1] > 0.99).all()


def test_walks_stay_in_groups_at_the_ends():
    """A stem that splits into two arms, and a group in the middle of each part."""
    x_mk = np.concatenate([np.linspace([0, 0], [1, 0], 60), *(np.linspace([1, 0], [2, y], 60)[1:] for y in (-1, 1))])
    x_mk += np.random.default_rng(0).normal(scale=0.01, size=x_mk.shape)
    groups = [np.arange(30, 55), np.arange(60, 90), np.arange(100, 119), np.arange(150, 178)]
    stays = staying_probabilities([similarities(graph(x_mk))], x_mk[:, 0], groups)
    assert (stays[:2] < 0.1).all()
    assert (stays[2:] > 0.9).all()


def test_cells_near_each_of_many_ends_have_its_fate():
    x_mk = np.random.default_rng(0).normal(size=(21, 12)) * 5
    x_mk = np.concatenate([np.linspace(x_mk[0], tip, 40) for tip in x_mk[1:]])
    x_mk += np.random.default_rng(1).normal(scale=0.1, size=x_mk.shape)
    time_m = np.tile(np.arange(40) / 39, 20)
    ends = [(np.arange(35, 40) + 40 * e, np.linspace(0, 1, 5)) for e in range(20)]
    found_me = fate_probabilities([similarities(graph(x_mk))], time_m, ends)
    late = time_m > 0.6
    assert (found_me.argmax(1)[late] == np.repeat(np.arange(20), 40)[late]).all()


def test_cells_are_committed_if_one_end_is_clear():
    probability_ne = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.4, 0.1, 0.1], [0.2, 0.75, 0.05]])
    np.testing.assert_array_equal(committed(probability_ne), [True, False, False, True])
    assert committed(np.ones((3, 1))).all()


def test_diffusion_coordinates_order_a_noisy_line():
    random = np.random.default_rng(0)
    along_m = random.uniform(0, 10, 400)
    x_mk = np.column_stack([along_m, *random.normal(scale=0.5, size=(3, 400))])
    coordinate_md = diffusion_coordinates(similarities(graph(x_mk)), 5)
    assert abs(spearmanr(coordinate_md[:, 0], along_m).statistic) > 0.99


@pytest.mark.parametrize("m", [2, 3, 5, 30])
def test_diffusion_coordinates_of_few_or_separate_cells(m):
    for x_mk in (np.random.default_rng(0).normal(size=(m, 3)), clusters([[0.0, 0], [1e3, 0]], m)):
        coordinate_md = diffusion_coordinates(similarities(graph(x_mk)), 10)
        assert coordinate_md.shape == (len(x_mk), min(10, len(x_mk) - 1))
        assert np.isfinite(coordinate_md).all()


def test_similarities_do_not_depend_on_the_scale():
    x_mk = np.random.default_rng(0).normal(size=(60, 3))
    small, large = (similarities(graph(scale * x_mk)).toarray() for scale in (1, 100))
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(small, small.T)


def test_standing_orders_the_cells_of_an_end():
    time_p, density_p = np.array([0.1, 0.9, 0.5]), np.array([3.0, 2, 1])
    position_pd = np.array([[0.0], [1], [2.9]])
    for kind, order in (("extreme", [0, 2, 1]), ("density", [2, 1, 0]), ("centroid", [2, 0, 1])):
        np.testing.assert_array_equal(np.argsort(standing(kind, time_p, density_p, position_pd)), order)
    assert standing("density", time_p[:1], density_p[:1], position_pd[:1]) == [1]
    np.testing.assert_array_equal(best(np.arange(30), np.arange(30) / 29), [29, 28, 27])
    np.testing.assert_array_equal(best(np.array([4]), np.zeros(1)), [4])
