"""Description of the steps of a trajectory: speed, distance from the observed cells, nearest cells, and groups.

Letters in array shapes: t steps, s intervals between steps, n cells, k latent dimensions, j nearest cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.latent.neighbor_graph import nearest
from scvae_cli.memory_limit import refuse_too_large
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.geometry import Geometry
from scvae_cli.tools.trajectory.curves import step_lengths

NEAREST_CELLS = 15
# Half of the width of the window around a step, as a fraction of the trajectory.
_HALF_WINDOW = 0.04


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of a trajectory.

    Parameters
    ----------
    length
        Fisher–Rao length of the trajectory. One unit of length is the standard deviation of a single count around its
        expected value; for real numbers, it is the standard deviation of the noise.
    position_t, speed_t
        Position along the trajectory, from 0 to 1, and Fisher–Rao speed: the Fisher–Rao length per unit of
        position.
    off_manifold_t
        Off-manifold score: the fraction of the held-out cells whose latent density is higher than that of the step. A
        score near 1 means that no cells were observed near the step.
    nearest_tj
        Indices of the nearest cells, nearest first.
    group_t, group_share_t
        Most frequent group among the nearest cells, and the fraction of the nearest cells that belong to this group.
        Without groups, the values are "" and NaN.
    majority_t
        Group to which more than half of the cells belong that are nearest to the steps in a window around the step; ""
        if there is no such group. Where cells of several groups are mixed, as soon after a branching, a group may have
        more than half of the few cells nearest to a step by chance.
    """

    length: float
    position_t: np.ndarray
    speed_t: np.ndarray
    off_manifold_t: np.ndarray
    nearest_tj: np.ndarray
    group_t: np.ndarray
    group_share_t: np.ndarray
    majority_t: np.ndarray

    @property
    def off(self) -> np.ndarray:
        """Mask of the steps where no cells were observed (off-manifold score above 0.95), shape (t,)."""
        mask: np.ndarray = self.off_manifold_t > OFF_MANIFOLD
        return mask

    def groups_passed(self) -> list[str]:
        """List the groups in the order of the trajectory. A group that is passed again is listed again.

        The most frequent groups at the first and at the last step are always listed.
        """
        named = np.flatnonzero(self.group_t != "")
        ends = {named[0], named[-1]} if len(named) else set()
        found = [self.group_t[t] if t in ends else self.majority_t[t] for t in range(len(self.group_t))]
        return [str(group) for group, _ in groupby(group for group in found if group != "")]


def refuse_too_many(n_steps: int, n_genes: int, n_paths: int = 0) -> None:
    """Raise a ConfigError if the expression along a trajectory, and along the paths of a bundle, exceeds the memory."""
    # Memory per step: means, quantiles, differences and their copies; for a bundle, also every path and its quantiles.
    per_step = n_genes * (80 + 12 * n_paths)
    refuse_too_large(
        n_steps * per_step,
        f"--steps {n_steps} of {n_genes:,} genes",
        lambda free: f"--steps {free // per_step} would fit",
    )


def along(
    geometry: Geometry, density: LatentDensity, mean_nk: Tensor, z_tk: np.ndarray, groups_n: np.ndarray | None
) -> Steps:
    """Describe the steps of a trajectory.

    `mean_nk` (the posterior means of the cells) and `z_tk` (the steps) must be in the latent coordinates of the
    networks. `groups_n` contains the group of each cell, or None for a cell without a group. Without groups, `groups_n`
    is None.
    """
    points_tk = torch.as_tensor(z_tk, dtype=torch.float32)
    nearest_tj = nearest(points_tk, mean_nk, NEAREST_CELLS)[0]
    group_t = np.full(len(z_tk), "", dtype=object)
    share_t = np.full(len(z_tk), np.nan)
    if groups_n is not None:
        for t, cells in enumerate(nearest_tj):
            group_t[t], share_t[t] = _most_frequent(groups_n[cells])
    # The speed at a step is the mean of the speeds before and after it.
    length_s = step_lengths(geometry, z_tk)
    speed_s = length_s * len(length_s)
    speed_t = np.concatenate([speed_s[:1], (speed_s[1:] + speed_s[:-1]) / 2, speed_s[-1:]])
    return Steps(
        length=float(length_s.sum()),
        position_t=np.linspace(0, 1, len(z_tk)),
        speed_t=speed_t,
        off_manifold_t=density.off_manifold(points_tk).double().numpy(),
        nearest_tj=nearest_tj,
        group_t=group_t,
        group_share_t=share_t,
        majority_t=np.full(len(z_tk), "", dtype=object) if groups_n is None else _majorities(nearest_tj, groups_n),
    )


def _most_frequent(groups_j: np.ndarray) -> tuple[str, float]:
    """Return the most frequent group of some cells, and the fraction of the cells that belong to this group.

    If several groups are equally frequent, the group that comes first is returned. Returns "" and NaN if no cell has a
    group.
    """
    named = [group for group in groups_j if group is not None]
    if not named:
        return "", np.nan
    group = max(dict.fromkeys(named), key=named.count)
    return group, named.count(group) / len(groups_j)


def _majorities(nearest_tj: np.ndarray, groups_n: np.ndarray) -> np.ndarray:
    """Compute `Steps.majority_t`, shape (t,). A cell that is near to several steps of a window counts once."""
    width = round(_HALF_WINDOW * (len(nearest_tj) - 1))
    majority_t = np.full(len(nearest_tj), "", dtype=object)
    for t in range(len(nearest_tj)):
        group, share = _most_frequent(groups_n[np.unique(nearest_tj[max(0, t - width) : t + width + 1])])
        if share > 0.5:
            majority_t[t] = group
    return majority_t
