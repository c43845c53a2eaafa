"""The lineage of a trajectory: cells that may develop into the end of the trajectory, and cells of sister fates.

A sister fate is another group than the end of the trajectory, at which the order of the cells ends, whose cells are
about as far from the start as those of the end, or which is known to be a fate. The distance from the start is needed
because the mature cells of two fates may be alike: walks from one fate then lead on into the other, and the order does
not end at it.

A step of a trajectory is away from the lineage if the end of the trajectory is less probable there than at the start.
Along a true lineage, the probability of the end increases. A trajectory that leads through cells away from its lineage
takes a short cut: cells of one fate do not develop into another fate, even if the cells are alike.

Letters in array shapes: n cells, m nodes of the neighbor graph, t steps, j nearest cells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scvae_cli.latent.fates import AS_FAR
from scvae_cli.session import Session
from scvae_cli.tools.trajectory.walks import Walks

# The order of the cells ends at a group if more than this fraction of the walks from the group stay there.
_STAYS = 0.5
# A trajectory avoids a cell if the end of the trajectory is less probable than at the start, times this number.
_AVOIDED = 0.5
# A step is away from the lineage if the mean probability of the end among the nearest cells is less than at the start,
# times this number, or if the median is low enough that most of the nearest cells are avoided.
_AWAY = 0.7
# A sister fate is reported if more than this fraction of the cells around the steps away from the lineage develop into
# it.
_REPORTED = 0.1


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The probability that a cell develops into the end of a trajectory, and the sister fate of each cell.

    Parameters
    ----------
    away_m
        Mask of the nodes from which the end is so improbable that the trajectory avoids them.
    chance_n
        Probability that a cell develops into the end of the trajectory, divided by the probability for a cell at the
        start.
    sister_n
        Most probable sister fate of each cell.
    certain
        Sister fates at which the order ends, or which are known to be fates.
    """

    away_m: np.ndarray
    chance_n: np.ndarray
    sister_n: np.ndarray
    certain: frozenset[str] = frozenset()

    def detour(self, nearest_tj: np.ndarray) -> np.ndarray:
        """Return the mask of the steps that are away from the lineage, shape (t,)."""
        chance_tj = self.chance_n[nearest_tj]
        # Near the end of a short detour, a few cells from which the end is very probable can make the mean large.
        mask: np.ndarray = (chance_tj.mean(1) < _AWAY) | (np.median(chance_tj, axis=1) < _AVOIDED)
        return mask

    def sisters(self, nearest_tj: np.ndarray) -> tuple[str, ...]:
        """List the sister fates of the cells nearest to the steps away from the lineage, the most frequent first."""
        cells = nearest_tj[self.detour(nearest_tj)].ravel()
        count = Counter(self.sister_n[cells[self.chance_n[cells] < _AWAY]].tolist())
        return tuple(sister for sister, n in count.most_common() if n > _REPORTED * count.total())


def lineage(
    walks: Walks,
    session: Session,
    end: str,
    *,
    named: Collection[str],
    fates: Collection[str],
    visited: Sequence[str] = (),
) -> Lineage:
    """Find the cells away from the lineage that leads from the start of random walks to a group.

    Parameters
    ----------
    walks, session
        Random walks from the start of the trajectory; the n cells and the model.
    end
        Group where the trajectory ends.
    named
        Groups that the user named. These groups are no sister fates.
    fates
        Other groups that are known to be fates.
    visited
        Named groups that are other fates than the end. Cells that develop into them are no detour, because the
        trajectory has to pass these groups.
    """
    group_m = walks.group_m
    sisters, certain = _sister_fates(walks, end, named=named, fates=fates)
    if not sisters:
        n_cells = len(walks.groups_n)
        return Lineage(
            away_m=np.zeros(len(group_m), dtype=bool), chance_n=np.ones(n_cells), sister_n=np.full(n_cells, "")
        )
    probability_me = walks.fates((end, *sisters, *visited))
    at_start = probability_me[[walks.start, *walks.graph.neighbors_mj[walks.start]], 0].mean()
    chance_m = probability_me[:, 0] / at_start
    # The user named the start and the end, so cells of their groups are on the lineage.
    own_m = group_m == end
    if group_m[walks.start] is not None:
        own_m |= group_m == group_m[walks.start]
    # The trajectory has to pass the groups that the user named, and the cells on the way to them.
    own_m |= np.isin(group_m, list(visited)) | (probability_me.argmax(1) > len(sisters))
    chance_m[own_m] = np.maximum(chance_m[own_m], 1)
    value_me = np.column_stack([chance_m, probability_me[:, 1 : 1 + len(sisters)]])
    value_ne = walks.expression.spread(value_me, torch.as_tensor(session.expression))
    nearest_n = np.asarray(sisters, dtype=object)[value_ne[:, 1:].argmax(1)]
    return Lineage(away_m=chance_m < _AVOIDED, chance_n=value_ne[:, 0], sister_n=nearest_n, certain=certain)


def visited_fates(walks: Walks, named: Sequence[str], *, fates: Collection[str]) -> list[str]:
    """List the groups that the user named between the start and the end although they are other fates than the end."""
    between = sorted({*named[1:-1]} - {named[0], named[-1]})
    found, _ = other_fates(walks, between, named[-1], fates=fates)
    known = [group for group in between if walks.median(group) > -np.inf]
    ending = [] if walks.gap_before(named[-1]) is not None else walks.ending(known)
    return sorted({*found, *ending})


def _sister_fates(
    walks: Walks, end: str, *, named: Collection[str], fates: Collection[str]
) -> tuple[list[str], frozenset[str]]:
    """List the sister fates of the end of a trajectory, and those that are certain.

    If the end is nearer to the start than a group that the user named before it, the trajectory follows no lineage, and
    there are no sister fates.
    """
    if any(walks.median(group) > walks.median(end) for group in named):
        return [], frozenset()
    return other_fates(walks, {*walks.group_m.tolist()} - {None, end, *named}, end, fates=fates)


def other_fates(
    walks: Walks, groups: Collection[str], end: str, *, fates: Collection[str]
) -> tuple[list[str], frozenset[str]]:
    """List the groups that are other fates than the end of a trajectory, and those that are certain.

    A group is certainly a fate if the order ends there, or if it is one of the known `fates`. A group is probably a
    fate if its cells are about as far from the start as those of the end. Names that are not groups of nodes are left
    out. If there is a gap on the way to the end, the order ends at the groups before the gap, whether or not they
    develop into the end, so only the known fates are certain.
    """
    at_end = walks.median(end)
    among = sorted(group for group in groups if walks.median(group) > -np.inf) if at_end > -np.inf else []
    stays = walks.staying(among) > _STAYS if walks.gap_before(end) is None else np.zeros(len(among), dtype=bool)
    ending = [group for group, stay in zip(among, stays, strict=True) if stay]
    certain = frozenset(ending) | (frozenset(fates) & frozenset(among))
    return [group for group in among if group in certain or walks.median(group) >= AS_FAR * at_end], certain
