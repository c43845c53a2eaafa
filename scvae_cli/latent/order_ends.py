"""Groups at which an order of the cells ends, because hardly any cell develops from them into other groups.

Random walks that move forward along the order remain in such a group, although walks without direction leave it
(`scvae_cli.latent.fates.remaining_shares`). Walks leave a group of intermediate cells, and go on to later cells of
other groups. The order in diffusion coordinates does not resolve small groups near the root, so several orders can be
used, such as the order and the distance from the root in expression space.

Letters in array shapes: m nodes of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from scvae_cli.latent.fates import remaining_shares
from scvae_cli.latent.neighbor_graph import CellGraph
from scvae_cli.latent.populations import core

# An order ends at a group if at least this share of the walks remains there. In groups of intermediate cells, the share
# was at most 0.32, in simulated trees and in real cells. It was at least 0.57 in mature groups of trees whose branches
# differ, and at least 0.44 in 68 megakaryocytes. It is low if walks lead on to similar cells of another fate.
_REMAIN = 0.4
# Walks start at this fraction of the core of a group, the latest in the order.
_LATEST = 0.2


def ends_of_orders(
    expression: CellGraph,
    similarities: Sequence[sp.csr_matrix],
    orders: Sequence[np.ndarray],
    groups: Sequence[np.ndarray],
) -> np.ndarray:
    """Return the mask of the groups at which at least one order ends, shape (len(groups),).

    Parameters
    ----------
    expression
        Neighbor graph in expression space.
    similarities
        Similarities between neighbors, each of shape (m, m), as in `fate_probabilities`.
    orders
        Positions of the nodes in one or several orders, each of shape (m,).
    groups
        Nodes of each group, in ascending order.
    """
    cores = [core(expression, expression.cells[nodes]) for nodes in groups]
    most = np.zeros(len(groups))
    for time_m in orders:
        latest = [nodes[time_m[nodes] >= np.quantile(time_m[nodes], 1 - _LATEST)] for nodes in cores]
        most = np.maximum(most, remaining_shares(similarities, time_m, groups, latest))
    ending: np.ndarray = most >= _REMAIN
    return ending
