"""Gaps between the root and an end, where no cells were observed.

Without cells between the root and an end, the order between them is unknown, and walks from the progenitors of this end
reach other ends instead. In the neighbor graph from which the order is computed, a gap is a long edge: the shortest
path from the root to the end leads through many cells with short edges, and jumps over the gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import dijkstra

from scvae_cli.latent.neighbor_graph import CellGraph


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The longest edge on the way from the root to an end.

    Parameters
    ----------
    share
        Length of the edge, as a fraction of the distance from the root to the end along the order.
    before, after
        The two nodes that the edge joins.
    """

    share: float
    before: int
    after: int


def longest_step(order: CellGraph, start: np.ndarray, end: np.ndarray) -> Gap:
    """Find the longest edge on the shortest paths from some nodes to the nodes of an end.

    Parameters
    ----------
    order
        Neighbor graph from which the order is computed.
    start, end
        Nodes that represent the root, and nodes that represent the end.

    Returns
    -------
    The edge of the node of the end for which the share is the median.
    """
    distance_m, before_m, _ = dijkstra(
        order.lengths, directed=False, indices=start, min_only=True, return_predecessors=True
    )
    found = []
    for node in end.tolist():
        after, length, at = node, 0.0, node
        while (before := int(before_m[after])) >= 0:
            if distance_m[after] - distance_m[before] > length:
                length, at = float(distance_m[after] - distance_m[before]), after
            after = before
        share = length / max(float(distance_m[node]), 1e-12)
        found.append(Gap(share=share, before=max(int(before_m[at]), 0), after=at))
    return sorted(found, key=lambda gap: gap.share)[(len(found) - 1) // 2]
