"""The lineage of a trajectory: cells that may develop into the end of the trajectory, and cells of sister fates.

A sister fate is another group than the end of the trajectory, at which the order of the cells ends or which is known to
be a fate. A cell is away from the lineage if the end of the trajectory is much less probable for this cell than for the
start. Fate probabilities are those of `scvae pseudotime` (`latent/fates.py`), with the start of the trajectory as the
root. A trajectory that leads through cells away from its lineage takes a short cut: the mature cells of two fates may
be alike, but cells of one fate do not develop into the other. If the end of the trajectory is nearer to the start than
a group that the user named before it, the trajectory follows no lineage, and no cells are away from it.

If walks from a sister fate lead on into the end, because cells of both are alike, the order does not end at the sister
fate. A group that the trajectory passes, and that is about as far from the start as the end, is therefore suspected.

Letters in array shapes: n cells, m nodes of the neighbor graph, t steps, j nearest cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from scvae_cli.latent.diffusion import ORDER_NEIGHBORS, order_graph, similarities
from scvae_cli.latent.end_cells import standing
from scvae_cli.latent.fates import AS_FAR, fate_probabilities, staying_probabilities
from scvae_cli.latent.neighbor_graph import CellGraph, euclidean_graph
from scvae_cli.latent.populations import core
from scvae_cli.session import Session

# The order of the cells ends at a group if more than this fraction of the walks from the group stay there.
_STAYS = 0.5
# A cell is away from the lineage if the end of the trajectory is less probable than at the start, times this number.
_LESS_PROBABLE = 0.5
# A step is away from the lineage if more than this fraction of its nearest cells are.
_MAJORITY = 0.5
# A sister fate is reported if more than this fraction of the cells around the steps away from the lineage develop into
# it.
_REPORTED = 0.1


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The cells away from the lineage of a trajectory.

    Parameters
    ----------
    away_m
        Mask of the nodes that are away from the lineage.
    sister_n
        Most probable sister fate of each cell that is away from the lineage, "" for the other cells.
    """

    away_m: np.ndarray
    sister_n: np.ndarray

    def detour(self, nearest_tj: np.ndarray) -> np.ndarray:
        """Return the mask of the steps that are away from the lineage, shape (t,)."""
        mask: np.ndarray = (self.sister_n[nearest_tj] != "").mean(1) > _MAJORITY
        return mask

    def sisters(self, nearest_tj: np.ndarray) -> tuple[str, ...]:
        """List the sister fates of the cells nearest to the steps away from the lineage, the most frequent first."""
        count = Counter(self.sister_n[nearest_tj[self.detour(nearest_tj)]].ravel().tolist())
        return tuple(sister for sister, n in count.most_common() if sister and n > _REPORTED * count.total())


@dataclass(frozen=True, kw_only=True)
class Walks:
    """The order of the cells from a node, and the similarities that give the random walks along this order.

    Parameters
    ----------
    graph, expression
        Neighbor graphs of the same nodes in latent space and in expression space.
    start
        The node from which the order begins.
    time_m
        Distance of each node from the start along the order.
    similarities
        Similarities between neighbors in expression space and in latent space, each of shape (m, m).
    """

    graph: CellGraph
    expression: CellGraph
    start: int
    time_m: np.ndarray
    similarities: tuple[sp.csr_matrix, ...]

    @classmethod
    def beginning_at(cls, session: Session, graph: CellGraph, start: int) -> Walks:
        """Order the cells by their distance from a node.

        Raises
        ------
        ModelError
            If the model was trained by an earlier version of scvae, and therefore has no map to expression space.
        """
        position_md = torch.as_tensor(session.expression)[torch.as_tensor(graph.cells)]
        expression = euclidean_graph(graph.cells, position_md, ORDER_NEIGHBORS)
        return cls(
            graph=graph,
            expression=expression,
            start=start,
            time_m=order_graph(expression).distances([start])[0],
            similarities=tuple(
                similarities(euclidean_graph(graph.cells, place)) for place in (position_md, graph.mean_mk)
            ),
        )

    def median(self, group_m: np.ndarray, group: str) -> float:
        """Compute the median distance of a group from the start; −∞ if no node belongs to the group."""
        inside_m = group_m == group
        return float(np.median(self.time_m[inside_m])) if inside_m.any() else -np.inf


def lineage(
    walks: Walks,
    session: Session,
    end: str,
    groups_n: np.ndarray,
    *,
    named: Collection[str],
    fates: Collection[str],
) -> Lineage:
    """Find the cells away from the lineage that leads from the start of random walks to a group.

    Parameters
    ----------
    walks, session
        Random walks from the start of the trajectory; the n cells and the model.
    end
        Group where the trajectory ends.
    groups_n
        Group of each cell, None for a cell without a group.
    named
        Groups that the user named. These groups are no sister fates.
    fates
        Other groups that are taken for fates, in addition to the groups where the order ends.
    """
    graph, time_m, group_m = walks.graph, walks.time_m, groups_n[walks.graph.cells]
    others = sorted({group for group in group_m.tolist() if group is not None} - {end, *named})
    staying = staying_probabilities(walks.similarities, time_m, [np.flatnonzero(group_m == group) for group in others])
    sisters = [
        group for group, probability in zip(others, staying, strict=True) if probability > _STAYS or group in fates
    ]
    away_m, sister_n = np.zeros(len(time_m), dtype=bool), np.full(len(groups_n), "", dtype=object)
    at_end = walks.median(group_m, end)
    if sisters and at_end > -np.inf and all(walks.median(group_m, group) <= at_end for group in named):
        ends = []
        for group in (end, *sisters):
            nodes = core(walks.expression, np.flatnonzero(groups_n == group))
            ends.append((nodes, standing("extreme", time_m[nodes], np.zeros(len(nodes)), np.zeros((len(nodes), 1)))))
        probability_me = fate_probabilities(walks.similarities, time_m, ends)
        at_start = probability_me[[walks.start, *graph.neighbors_mj[walks.start]], 0].mean()
        away_m = probability_me[:, 0] < _LESS_PROBABLE * at_start
        # The user named the start and the end, so cells of their groups are on the lineage.
        away_m &= group_m != end
        if group_m[walks.start] is not None:
            away_m &= group_m != group_m[walks.start]
        value_me = np.column_stack([away_m, probability_me[:, 1:]])
        value_ne = walks.expression.spread(value_me, torch.as_tensor(session.expression))
        nearest_n = np.asarray(sisters, dtype=object)[value_ne[:, 1:].argmax(1)]
        sister_n = np.where(value_ne[:, 0] > _MAJORITY, nearest_n, "")
    return Lineage(away_m=away_m, sister_n=sister_n)


def suspects(walks: Walks, end: str, groups_n: np.ndarray, passed: Collection[str]) -> frozenset[str]:
    """Find the groups that a trajectory passes although they are about as far from the start as the end is."""
    group_m = groups_n[walks.graph.cells]
    least = AS_FAR * walks.median(group_m, end)
    return frozenset(group for group in passed if walks.median(group_m, group) >= least)
