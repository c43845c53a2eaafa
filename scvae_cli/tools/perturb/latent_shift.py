"""Shift of cells in latent space under a perturbation, learned from cells of other groups.

The target is the group whose response is predicted. Source groups are the groups from whose treated cells the shift is
learned. The method "centroid" computes the shift of each source group from the mean of its control cells to the mean of
its treated cells. All target cells then shift by the weighted mean of the source groups' shifts, with more weight on
groups near the target. (Lotfollahi et al. 2019, doi:10.1038/s41592-019-0494-8, give all groups the same weight.) The
method "ot" pairs the control cells of each source group with its treated cells by optimal transport. Each control cell
of a source group shifts to the mean of the treated cells with which it is paired. A target cell shifts by the average
shift of the nearest control cells of the source groups.

Letters in array shapes: n cells, k latent dimensions, m cells that shift, r source cells, s source groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from scvae_cli.latent.neighbor_graph import nearest
from scvae_cli.tools.perturb.design import Design, Term
from scvae_cli.tools.perturb.result import NONE

CENTROID, OT = METHODS = ("centroid", "ot")
# Largest number of control cells, and of treated cells, that are paired. The cost of optimal transport grows with the
# product of the two numbers.
_PAIRED = 500
# Number of nearest control cells of the source groups whose shifts are averaged.
_NEIGHBORS = 50
# Rate at which the weight of a source group decays with its squared distance from the target. The unit of the squared
# distance is its mean over the source groups.
_SHARPNESS = 2.0


@dataclass(frozen=True)
class LatentShifts:
    """Latent posterior means of the cells, from which shifts are learned."""

    mean_nk: Tensor
    _paired: dict[tuple[str, str], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def shift(self, design: Design, method: str) -> Tensor:
        """Compute the shift of the target's control cells, shape (m, k)."""
        from_mk = self.mean_nk[design.rows(design.group, design.control)]
        shift_mk = torch.zeros_like(from_mk)
        if method == NONE:
            return shift_mk
        for term in design.terms:
            shift_mk += term.weight * (self._matched if method == OT else self._centroid)(design, term, from_mk)
        return shift_mk

    def weights(self, design: Design, groups: Sequence[str]) -> np.ndarray:
        """Compute the weight of each source group, shape (s,).

        The weight is larger if the control cells of the group are nearer to the control cells of the target.
        """
        center_k = self._center(design, design.group, design.control)
        centers = torch.stack([self._center(design, group, design.control) for group in groups])
        squared_s = (centers - center_k).square().sum(1).double()
        if not squared_s.any():
            return np.full(len(groups), 1 / len(groups))
        weights: np.ndarray = torch.softmax(-_SHARPNESS * squared_s / squared_s.mean(), 0).numpy()
        return weights

    def _center(self, design: Design, group: str, label: str) -> Tensor:
        return self.mean_nk[design.rows(group, label)].mean(0)

    def _centroid(self, design: Design, term: Term, from_mk: Tensor) -> Tensor:
        steps = [self._center(design, g, term.label) - self._center(design, g, design.control) for g in term.groups]
        weights_s = torch.as_tensor(self.weights(design, term.groups), dtype=from_mk.dtype)
        return (weights_s[:, None] * torch.stack(steps)).sum(0).expand_as(from_mk)

    def _matched(self, design: Design, term: Term, from_mk: Tensor) -> Tensor:
        pairs = [self._pairs(design, group, term.label) for group in term.groups]
        start_rk, step_rk = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        near_mj, _ = nearest(from_mk, start_rk, min(_NEIGHBORS, len(start_rk)))
        return step_rk[torch.as_tensor(near_mj)].mean(1)

    def _pairs(self, design: Design, group: str, label: str) -> tuple[Tensor, Tensor]:
        """Return the control cells of a group, and the shift of each cell to the mean of its paired treated cells."""
        if (group, label) not in self._paired:
            import ot

            sides = (design.rows(group, of) for of in (design.control, label))
            start_rk, end_rk = (self.mean_nk[rows[:: -(-len(rows) // _PAIRED)]] for rows in sides)
            cost_rs = torch.cdist(start_rk.double(), end_rk.double()).square().numpy()
            plan_rs = torch.as_tensor(ot.emd([], [], cost_rs))
            end_of_rk = (plan_rs / plan_rs.sum(1, keepdim=True)) @ end_rk.double()
            self._paired[group, label] = start_rk, (end_of_rk - start_rk).to(start_rk)
        return self._paired[group, label]
