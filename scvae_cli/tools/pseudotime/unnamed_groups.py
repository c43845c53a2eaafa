"""Groups that are not named as ends, but may be fates of their own.

Every cell gets a probability for each of the named ends, even if its type develops into none of these ends. There are
two signs that a group is a fate of its own, or not a part of the process:

- An order ends at the group (`scvae_cli.latent.order_ends`): the order of the cells, or the distance from the root in
  expression space.
- The group lies about as far from the root as the end that is most probable for its cells, among the named ends and
  the groups at which the order ends. The mature cells of two fates may be alike, so that walks lead from one fate to
  the other.

A group of intermediate cells lies between the root and an end, and walks lead from it to later cells of other groups.

Letters in array shapes: m nodes of the graphs, e ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp

from scvae_cli.latent.end_cells import standing
from scvae_cli.latent.fates import AS_FAR, fate_probabilities
from scvae_cli.latent.neighbor_graph import CellGraph
from scvae_cli.latent.order_ends import ends_of_orders


def unnamed_ends(
    expression: CellGraph,
    similarities: Sequence[sp.csr_matrix],
    orders: Sequence[np.ndarray],
    probability_me: np.ndarray,
    group_m: np.ndarray,
    *,
    ends: Sequence[str],
    stops: Sequence[tuple[np.ndarray, np.ndarray]],
    root: str,
) -> tuple[tuple[str, str], ...]:
    """Find the groups that may be ends although they are not named; return each with the most probable named end.

    Parameters
    ----------
    expression
        Neighbor graph in expression space.
    similarities
        Similarities between neighbors, each of shape (m, m), as in `fate_probabilities`.
    orders
        Positions of the nodes in one or several orders, each of shape (m,). Distances from the root are compared along
        the first order.
    probability_me
        Probability of each named end for each node, shape (m, e).
    group_m
        Group of each node, a string, or None for a node without a group.
    ends, stops
        The named ends, and their nodes as in `fate_probabilities`.
    root
        The group of the root, or the name of the root cell.
    """
    names = sorted({*group_m.tolist()} - {None, root, *ends})
    groups = {name: np.flatnonzero(group_m == name) for name in names}
    at_end = ends_of_orders(expression, similarities, orders, list(groups.values()))
    ending = [name for name, ends_there in zip(names, at_end, strict=True) if ends_there]
    if ending:
        # A group on the way to an end that was just found is no end.
        others = [(nodes, _ranks(orders[0][nodes])) for nodes in (groups[name] for name in ending)]
        with_others_me = fate_probabilities(similarities, orders[0], [*stops, *others])
    else:
        with_others_me = probability_me
    far = _far(orders[0], with_others_me, group_m, groups, [*ends, *ending])
    likely = {name: ends[int(probability_me[nodes].mean(0).argmax())] for name, nodes in groups.items()}
    return tuple((name, likely[name]) for name in names if name in {*ending, *far})


def _ranks(time_p: np.ndarray) -> np.ndarray:
    """Rank the nodes of a group from 0 to 1 along the order."""
    return standing("extreme", time_p, np.zeros(len(time_p)), np.zeros((len(time_p), 1)))


def _far(
    time_m: np.ndarray,
    probability_me: np.ndarray,
    group_m: np.ndarray,
    groups: Mapping[str, np.ndarray],
    ends: Sequence[str],
) -> list[str]:
    """Return the groups that lie about as far from the root as their most probable end."""
    # The distance of an end that is a single cell is unknown.
    distance_e = [np.median(time_m[group_m == end]) if (group_m == end).any() else np.inf for end in ends]
    return [
        name
        for name, nodes in groups.items()
        if np.median(time_m[nodes]) >= AS_FAR * distance_e[int(probability_me[nodes].mean(0).argmax())]
    ]
