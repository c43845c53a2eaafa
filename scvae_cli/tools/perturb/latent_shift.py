"""How cells move in latent space when something is done to them, learned from cells it was done to.

Two ways. By centroids: a group moves from the mean of its control cells to that of its treated ones, and the cells
asked about move as the groups do, more as those that lie near their own (Lotfollahi et al. 2019,
doi:10.1038/s41592-019-0494-8, has all groups alike). By matched cells: optimal transport pairs a group's control with
its treated cells, each moves to the mean of those it is paired with, and a cell asked about moves as the control cells
do that lie nearest to it.

Shapes: n cells, k latent dimensions, m cells that move, r source cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from scvae_cli.latent.neighbor_graph import nearest
from scvae_cli.tools.perturb.design import Design, Term

CENTROID, OT = METHODS = ("centroid", "ot")
# Of each side, so many cells are paired: the cost of optimal transport grows with their product.
_PAIRED = 500
# Moves of so many nearest source cells are averaged.
_NEIGHBOURS = 50
# How sharply a group's say falls with its distance, in units of the mean squared distance of all source groups.
_SHARPNESS = 2.0


@dataclass(frozen=True)
class Moves:
    """Cells and where they lie; what was computed once is kept.

    Parameters
    ----------
    mean_nk
        Posterior means in the frame of the training, on the CPU.
    """

    mean_nk: Tensor
    _paired: dict[tuple[str, str], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def shift(self, design: Design, method: str) -> Tensor:
        """How far the target's control cells move, shape (m, k)."""
        from_mk = self.mean_nk[design.rows(design.group, design.control)]
        shift_mk = torch.zeros_like(from_mk)
        for term in design.terms:
            shift_mk += term.weight * (self._centroid if method == CENTROID else self._matched)(design, term, from_mk)
        return shift_mk

    def weights(self, design: Design, groups: Sequence[str]) -> np.ndarray:
        """How much each source group has to say about the target: control cells that lie nearer say more."""
        centre_k = self._centre(design, design.group, design.control)
        centres = torch.stack([self._centre(design, group, design.control) for group in groups])
        squared_s = (centres - centre_k).square().sum(1).double()
        if not squared_s.any():
            return np.full(len(groups), 1 / len(groups))
        weights: np.ndarray = torch.softmax(-_SHARPNESS * squared_s / squared_s.mean(), 0).numpy()
        return weights

    def _centre(self, design: Design, group: str, label: str) -> Tensor:
        return self.mean_nk[design.rows(group, label)].mean(0)

    def _centroid(self, design: Design, term: Term, from_mk: Tensor) -> Tensor:
        steps = [self._centre(design, g, term.label) - self._centre(design, g, design.control) for g in term.groups]
        weights_s = torch.as_tensor(self.weights(design, term.groups), dtype=from_mk.dtype)
        return (weights_s[:, None] * torch.stack(steps)).sum(0).expand_as(from_mk)

    def _matched(self, design: Design, term: Term, from_mk: Tensor) -> Tensor:
        pairs = [self._pairs(design, group, term.label) for group in term.groups]
        start_rk, step_rk = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        near_mj, _ = nearest(from_mk, start_rk, min(_NEIGHBOURS, len(start_rk)))
        return step_rk[torch.as_tensor(near_mj)].mean(1)

    def _pairs(self, design: Design, group: str, label: str) -> tuple[Tensor, Tensor]:
        """Control cells of a group, and how far each moves to the treated ones it is paired with."""
        if (group, label) not in self._paired:
            import ot

            start_rk, end_rk = (self.mean_nk[_even(design.rows(group, of))] for of in (design.control, label))
            cost_rs = torch.cdist(start_rk.double(), end_rk.double()).square().numpy()
            plan_rs = torch.as_tensor(ot.emd([], [], cost_rs))
            end_of_rk = (plan_rs / plan_rs.sum(1, keepdim=True)) @ end_rk.double()
            self._paired[group, label] = start_rk, (end_of_rk - start_rk).to(start_rk)
        return self._paired[group, label]


def _even(rows: np.ndarray) -> np.ndarray:
    return rows[:: -(-len(rows) // _PAIRED)]
