"""The order of the cells from the start of a trajectory, and random walks of the cells along this order.

The order is that of `scvae pseudotime` (`latent/diffusion.py`), and the fate probabilities are those of `scvae
pseudotime` (`latent/fates.py`), with the start of the trajectory as the root.

Letters in array shapes: n cells, m nodes of the neighbor graph, e groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from scvae_cli.latent.diffusion import ORDER_NEIGHBORS, order_graph, similarities
from scvae_cli.latent.end_cells import best, standing
from scvae_cli.latent.fates import fate_probabilities, staying_probabilities
from scvae_cli.latent.gaps import LongestStep, longest_step
from scvae_cli.latent.neighbor_graph import CellGraph, euclidean_graph
from scvae_cli.latent.order_ends import ends_of_orders
from scvae_cli.latent.populations import core
from scvae_cli.session import Session


@dataclass(frozen=True, kw_only=True)
class Walks:
    """The order of the cells from a node, and the similarities that give the random walks along this order.

    Parameters
    ----------
    graph, expression
        Neighbor graphs of the same nodes in latent space and in expression space.
    start
        The node from which the order begins.
    order
        Neighbor graph of the same nodes in diffusion coordinates.
    time_m
        Distance of each node from the start along the order.
    similarities
        Similarities between neighbors in expression space and in latent space, each of shape (m, m).
    groups_n
        Group of each cell, None for a cell without a group.
    """

    graph: CellGraph
    expression: CellGraph
    start: int
    order: CellGraph
    time_m: np.ndarray
    similarities: tuple[sp.csr_matrix, ...]
    groups_n: np.ndarray

    @classmethod
    def beginning_at(cls, session: Session, graph: CellGraph, start: int, groups_n: np.ndarray) -> Walks:
        """Order the cells by their distance from a node.

        Parameters
        ----------
        session, graph
            The n cells and the model, and a neighbor graph of the cells in latent space.
        start
            The node from which the order begins.
        groups_n
            Group of each cell, None for a cell without a group.

        Raises
        ------
        ModelError
            If the model was trained by an earlier version of scvae, and therefore has no map to expression space.
        """
        position_md = torch.as_tensor(session.expression)[torch.as_tensor(graph.cells)]
        expression = euclidean_graph(graph.cells, position_md, ORDER_NEIGHBORS)
        order = order_graph(expression)
        return cls(
            graph=graph,
            expression=expression,
            start=start,
            order=order,
            time_m=order.distances([start])[0],
            similarities=tuple(
                similarities(euclidean_graph(graph.cells, place)) for place in (position_md, graph.mean_mk)
            ),
            groups_n=groups_n,
        )

    @property
    def group_m(self) -> np.ndarray:
        """Group of each node, None for a node without a group, shape (m,)."""
        group_m: np.ndarray = self.groups_n[self.graph.cells]
        return group_m

    def median(self, group: str) -> float:
        """Compute the median distance of a group from the start; −∞ if no node belongs to the group."""
        inside_m = self.group_m == group
        return float(np.median(self.time_m[inside_m])) if inside_m.any() else -np.inf

    def staying(self, groups: Sequence[str]) -> np.ndarray:
        """Compute the probability that a walk from a group stays in it, for each group (`staying_probabilities`)."""
        nodes = [np.flatnonzero(self.group_m == group) for group in groups]
        return staying_probabilities(self.similarities, self.time_m, nodes)

    def ending(self, groups: Sequence[str]) -> list[str]:
        """List the groups at which the order, or the distance from the start in expression space, ends."""
        nodes = [np.flatnonzero(self.group_m == group) for group in groups]
        orders = [self.time_m, self.expression.distances([self.start])[0]]
        mask = ends_of_orders(self.expression, self.similarities, orders, nodes)
        return [group for group, ends_there in zip(groups, mask, strict=True) if ends_there]

    def gap_before(self, end: str) -> LongestStep | None:
        """Find the gap without cells on the way from the start to the latest cells of a group; None without a gap."""
        if self.median(end) == -np.inf:
            return None
        nodes = core(self.expression, np.flatnonzero(self.groups_n == end))
        step = longest_step(self.order, np.array([self.start]), best(nodes, self.time_m[nodes]), self.group_m)
        return step if step.is_gap else None

    def fates(self, ends: Sequence[str]) -> np.ndarray:
        """Compute the probability of each end for each node (`fate_probabilities`), shape (m, e).

        An end is the core of a group, and is best represented by the cells that are farthest from the start.
        """
        cores = []
        for end in ends:
            nodes = core(self.expression, np.flatnonzero(self.groups_n == end))
            rank_p = standing("extreme", self.time_m[nodes], np.zeros(len(nodes)), np.zeros((len(nodes), 1)))
            cores.append((nodes, rank_p))
        return fate_probabilities(self.similarities, self.time_m, cores)
