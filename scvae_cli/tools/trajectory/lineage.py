"""The lineage of a trajectory: cells that may develop into the end of the trajectory, and cells of sister fates.

A sister fate is another group than the end of the trajectory, at which the order of the cells ends or which is known to
be a fate. A cell is away from the lineage if the end of the trajectory is much less probable for this cell than for the
start. A trajectory that leads through cells away from its lineage takes a short cut: the mature cells of two fates may
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
import torch

from scvae_cli.latent.fates import AS_FAR
from scvae_cli.session import Session
from scvae_cli.tools.trajectory.walks import Walks

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


def lineage(
    walks: Walks,
    session: Session,
    end: str,
    *,
    named: Collection[str],
    fates: Collection[str],
) -> Lineage:
    """Find the cells away from the lineage that leads from the start of some walks to a group.

    Parameters
    ----------
    walks, session
        Random walks from the start of the trajectory; the n cells and the model.
    end
        Group where the trajectory ends.
    named
        Groups that the user named. These groups are no sister fates.
    fates
        Other groups that are taken for fates, in addition to the groups where the order ends.
    """
    graph, group_m = walks.graph, walks.group_m
    others = sorted({group for group in group_m.tolist() if group is not None} - {end, *named})
    sisters = [
        group
        for group, probability in zip(others, walks.staying(others), strict=True)
        if probability > _STAYS or group in fates
    ]
    away_m, sister_n = np.zeros(len(group_m), dtype=bool), np.full(len(walks.groups_n), "", dtype=object)
    at_end = walks.median(end)
    if sisters and at_end > -np.inf and all(walks.median(group) <= at_end for group in named):
        probability_me = walks.fates((end, *sisters))
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


def suspects(walks: Walks, end: str, passed: Collection[str]) -> frozenset[str]:
    """Find the groups that a trajectory passes although they are about as far from the start as the end is."""
    least = AS_FAR * walks.median(end)
    return frozenset(group for group in passed if walks.median(group) >= least)
