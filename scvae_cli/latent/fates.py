"""Fate probabilities of the cells, from random walks that move forward along the order until they stop at an end.

A walk steps from a cell to one of its neighbors. Steps to similar cells are more probable, and steps that go back in
the order are improbable, as in Palantir (Setty et al. 2019, doi:10.1038/s41587-019-0068-4) and in the pseudotime kernel
of CellRank (Lange et al. 2022, doi:10.1038/s41592-021-01346-6). An end is a group where the order may end. The fate
probability of a cell is the probability that a walk from the cell stops at a given end. Fate probabilities are thus
absorption probabilities, the solution of a linear system.

- The neighbors of a cell are its neighbors in expression space and its neighbors in latent space, with equal weight.
  Expression space keeps cells of the same type together, and latent space separates fates that few genes distinguish.
- A step that goes back by Δ in the order is less probable by the factor exp(−3Δ/σ), where σ is the spread of the order
  among the neighbors. The spread σ is computed for each cell, because the order changes quickly among neighbors in some
  regions and slowly in others.
- At a cell that belongs to an end, a walk stops with a probability between one half and one. The probability is one at
  the cell that represents the end best, and one half at the cell that represents the end worst.
- A walk may get lost in a branch that belongs to none of the ends. A walk therefore loses its direction after a
  thousand steps on average, and then moves to any neighbor, also back in the order.

Letters in array shapes: m nodes, p nodes of a group, e ends or groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

# A step that goes back by the local spread of the order is less probable by the factor exp(−_DIRECTION).
_DIRECTION = 3.0
# Probability of stopping at the cell of an end that represents the end worst.
_LEAST_STOP = 0.5
# Probability that a walk loses its direction in a step.
_LOST = 1e-3
# This value is added to the weight of every end, so that ends that hardly any walk reaches become equally probable.
_NOTHING = 1e-9
# A cell is committed to an end if the probability of this end is at least the first number, and the probability of
# every other end is at most the second number times as large.
_COMMITTED, _RUNNER_UP = 0.5, 0.5
# `remaining_shares` counts walks in the first step after which at most this share of the walks without direction has
# remained in the group, but after at most this number of steps.
_FREE_REMAIN, _MOST_STEPS = 0.25, 1000
# A group may be a fate of its own, and no intermediate group, if its median distance from the root is at least this
# fraction of that of the end. In three data sets, the fraction was 0.5 to 0.7 for intermediate cells, and 0.89 to 1.1
# for mature cells of other types.
AS_FAR = 0.85


def fate_probabilities(
    similarities: Sequence[sp.csr_matrix], time_m: np.ndarray, ends: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Compute the probability of each end for each node, shape (m, e); rows sum to 1.

    Parameters
    ----------
    similarities
        Matrices of the similarities between neighbors, each of shape (m, m). All matrices have the same weight.
    time_m
        Position of each node in the order, shape (m,).
    ends
        For each end: its nodes, and a number from 0 to 1 for each node that says how well the node represents the end.
    """
    order = np.argsort(time_m, kind="stable")
    steps = _sorted_steps(similarities, order)
    stop_me = np.zeros((len(time_m), len(ends)))
    for e, (nodes, standing) in enumerate(ends):
        stop_me[nodes, e] = _LEAST_STOP + (1 - _LEAST_STOP) * standing
    stop_me = stop_me[order]
    going = sp.diags((1 - _LOST) * (1 - stop_me.sum(1)))
    directed = going @ _forward(steps, time_m[order])
    # A walk that has lost its direction continues at random over all neighbors.
    lost_me = _shares(_stopped(going @ _rows_sum_to_one(steps), stop_me))
    resumed_me = (_LOST / (1 - _LOST)) * (directed @ lost_me)
    probability_me = np.empty_like(stop_me)
    probability_me[order] = _shares(_stopped(directed, stop_me + resumed_me))
    return probability_me


def staying_probabilities(
    similarities: Sequence[sp.csr_matrix], time_m: np.ndarray, groups: Sequence[np.ndarray]
) -> np.ndarray:
    """Compute the probability that a walk that starts in a group is in the same group when it loses its direction.

    No cell stops the walks. Walks leave a group of intermediate cells long before they lose their direction. Walks stay
    in a group at which the order ends.

    Parameters
    ----------
    similarities, time_m
        The parameters of `fate_probabilities` with the same names.
    groups
        The nodes of each group.

    Returns
    -------
    The mean probability over the nodes of each group, shape (len(groups),).
    """
    order = np.argsort(time_m, kind="stable")
    directed = (1 - _LOST) * _forward(_sorted_steps(similarities, order), time_m[order])
    lost_me = np.zeros((len(time_m), len(groups)))
    for e, nodes in enumerate(groups):
        lost_me[nodes, e] = _LOST
    probability_me = np.empty_like(lost_me)
    probability_me[order] = _stopped(directed, lost_me[order])
    return np.asarray([probability_me[nodes, e].mean() for e, nodes in enumerate(groups)])


def remaining_shares(
    similarities: Sequence[sp.csr_matrix],
    time_m: np.ndarray,
    groups: Sequence[np.ndarray],
    latest: Sequence[np.ndarray],
) -> np.ndarray:
    """Compute how many walks that move forward remain in a group while most walks without direction leave it.

    All walks start at the latest cells of a group. From these cells, walks that move forward leave a group of
    intermediate cells at least as soon as walks without direction, and remain in a group at which the order ends. The
    comparison with walks without direction makes the result independent of the number of cells in the group.

    Parameters
    ----------
    similarities, time_m
        The parameters of `fate_probabilities` with the same names.
    groups, latest
        The nodes of each group, in ascending order, and those at which the walks start.

    Returns
    -------
    The share of the walks that have remained in the group in the first step after which at most a quarter of the walks
    without direction have remained, shape (len(groups),).
    """
    steps = _sorted_steps(similarities, np.arange(len(time_m)))
    directed, free = _forward(steps, time_m).tocsr(), _rows_sum_to_one(steps).tocsr()
    shares = []
    for nodes, start in zip(groups, latest, strict=True):
        directed_pp, free_pp = directed[nodes][:, nodes], free[nodes][:, nodes]
        at = np.searchsorted(nodes, start)
        remain_p, free_remain_p = np.ones(len(nodes)), np.ones(len(nodes))
        for _ in range(_MOST_STEPS):
            remain_p, free_remain_p = directed_pp @ remain_p, free_pp @ free_remain_p
            if free_remain_p[at].mean() <= _FREE_REMAIN:
                break
        shares.append(remain_p[at].mean())
    return np.asarray(shares)


def _sorted_steps(similarities: Sequence[sp.csr_matrix], order: np.ndarray) -> sp.csr_matrix:
    """Compute the step probabilities of walks without direction, with the nodes in the given order, shape (m, m)."""
    m = len(order)
    steps = sum((_rows_sum_to_one(similarity) for similarity in similarities), start=sp.csr_matrix((m, m)))
    return steps.tocsr()[order][:, order]


def _shares(weight_me: np.ndarray) -> np.ndarray:
    """Make rows sum to 1. If hardly any walk from a node reaches an end, all ends are equally probable."""
    weight_me = np.clip(weight_me, 0, None) + _NOTHING
    shares_me: np.ndarray = weight_me / weight_me.sum(1, keepdims=True)
    return shares_me


def committed(probability_ne: np.ndarray) -> np.ndarray:
    """Return which cells are committed to their most probable end, a mask of shape (n,)."""
    if probability_ne.shape[1] == 1:
        return np.ones(len(probability_ne), dtype=bool)
    second_n, first_n = np.sort(probability_ne, axis=1)[:, -2:].T
    result: np.ndarray = (first_n >= _COMMITTED) & (second_n <= _RUNNER_UP * first_n)
    return result


def _forward(steps: sp.csr_matrix, time_m: np.ndarray) -> sp.csr_matrix:
    """Make steps that go back in the order less probable; rows sum to 1."""
    pairs = steps.tocoo()
    back = time_m[pairs.row] - time_m[pairs.col]
    n_steps_m = np.maximum(np.bincount(pairs.row, minlength=len(time_m)), 1)
    spread_m = np.sqrt(np.bincount(pairs.row, back**2, minlength=len(time_m)) / n_steps_m)
    less = np.exp(-_DIRECTION * np.maximum(back, 0) / np.maximum(spread_m, 1e-12)[pairs.row])
    return _rows_sum_to_one(sp.csr_matrix((pairs.data * less, (pairs.row, pairs.col)), shape=pairs.shape))


def _rows_sum_to_one(weight: sp.csr_matrix) -> sp.csr_matrix:
    total_m = np.asarray(weight.sum(1)).ravel()
    # A node without neighbors occurs only if it is the only node.
    return sp.diags(1 / np.where(total_m > 0, total_m, 1)) @ weight


def _stopped(steps: sp.csr_matrix, stop_me: np.ndarray) -> np.ndarray:
    """Compute the probabilities with which walks stop at each end: the solution x of x = steps · x + stop, (m, e).

    Nodes are sorted along the order, so most steps are above the diagonal of the matrix. The upper triangle is solved
    exactly and serves as the preconditioner, so GMRES needs few iterations.
    """
    from scipy.sparse.linalg import LinearOperator, gmres, splu

    m = len(stop_me)
    system = (sp.identity(m) - steps).tocsc()
    triangle = splu(sp.triu(system).tocsc(), permc_spec="NATURAL", diag_pivot_thresh=0)
    before = LinearOperator((m, m), triangle.solve)
    solved_me = np.zeros_like(stop_me)
    for e in range(stop_me.shape[1]):
        # The second solution of the linear system corrects the error of the first solution.
        for _ in range(2):
            rest_m = stop_me[:, e] - system @ solved_me[:, e]
            correction_m, unsolved = gmres(system, rest_m, M=before, atol=1e-14, restart=50, maxiter=200)
            assert unsolved == 0, "every walk stops or loses its direction"
            solved_me[:, e] += correction_m
    return solved_me
