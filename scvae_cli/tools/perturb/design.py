"""Cells from which a perturbation is learned: groups, labels, and the terms that add up to the predicted change.

The change of a group under a label is the difference between the group's cells with this label and the group's control
cells. The change predicted for the target group is a sum of terms. Each term is the change under one label in some
groups. A single perturbation has one term: the change under the perturbation in the other groups.

For a combination B+C that other groups have undergone, the prediction is the mean of two estimates. The first estimate
is the change of the other groups under B+C. The second estimate is the sum of the target's own change under B, the
target's own change under C, and the interaction of B and C in the other groups. The interaction of B and C in a group
is the group's change under B+C minus the group's changes under B and under C. The first estimate, from the other
groups, is more certain; the second estimate is specific to the target group. The second estimate needs a target that
has undergone B alone and C alone, and another group that has undergone B, C and B+C. If the second estimate cannot be
computed, the prediction is the first estimate. For a combination B+C that no other group has undergone, the changes
under B and under C are added. The change under B is the target's own change if the target has undergone B, and
otherwise the change of the other groups.

A label names a combination by its parts, joined by plus signs: B+C. Neither the order of the parts nor spaces around
the parts matter: cells labeled B+C and C + B have the same perturbation. The control label, such as ctrl, does not
count as a part of a combination. If no cell has the label B+ctrl, the label B is used instead, and vice versa.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.labels import matching
from scvae_cli.errors import ConfigError, DataError, ModelError
from scvae_cli.tools.perturb.perturbation_labels import PerturbationLabels

# A change estimated from fewer treated or fewer control cells than this number is too uncertain to use.
MIN_CELLS = 5
_SHOWN = 12


class Term(NamedTuple):
    """The change under a label in some groups, with a positive or negative weight in the prediction."""

    weight: float
    label: str
    groups: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Design:
    """A target group, its perturbation, and the labels of all cells.

    Parameters
    ----------
    group, control, treated
        Target group, label of its control cells, and label of the perturbation to predict.
    parts
        Labels of the single perturbations in a combination; empty for a single perturbation.
    members
        Ascending indices of the cells with each pair of group and label.
    """

    group: str
    control: str
    treated: str
    parts: tuple[str, ...]
    members: Mapping[tuple[str, str], np.ndarray]

    def rows(self, group: str, label: str) -> np.ndarray:
        """Return the indices of a group's cells under a label."""
        return self.members.get((group, label), np.empty(0, dtype=np.int64))

    def has(self, group: str, *labels: str) -> bool:
        """Whether a group has enough control cells, and enough cells under each of the given labels."""
        return all(len(self.rows(group, label)) >= MIN_CELLS for label in (self.control, *labels))

    def others(self, *labels: str) -> tuple[str, ...]:
        """Return the other groups with enough control cells and enough cells under each given label, sorted by name."""
        return tuple(group for group in self._groups if group != self.group and self.has(group, *labels))

    @property
    def sources(self) -> tuple[str, ...]:
        """The groups, except the target, that have undergone the perturbation to predict."""
        return self.others(self.treated)

    @property
    def observed(self) -> bool:
        """Whether the target has enough treated cells with which the prediction can be compared."""
        return self.has(self.group, self.treated)

    @property
    def own_parts(self) -> bool:
        """Whether the target group has undergone every single perturbation of a combination."""
        return bool(self.parts) and self.has(self.group, *self.parts)

    @property
    def only_own_parts(self) -> bool:
        """Whether no other group has undergone the combination, but the target has undergone each part alone."""
        return not self.sources and self.own_parts

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms (weighted changes of groups under labels) that add up to the predicted change of the target."""
        if not self.sources:
            return self.additive_terms
        whole = self.others(self.treated, *self.parts)
        if not self.own_parts or not whole:
            return (Term(1, self.treated, self.sources),)
        own = [Term(0.5, part, (self.group,)) for part in self.parts]
        interaction = [Term(0.5, self.treated, whole), *(Term(-0.5, part, whole) for part in self.parts)]
        return (Term(0.5, self.treated, self.sources), *own, *interaction)

    @property
    def additive_terms(self) -> tuple[Term, ...]:
        """One term for each single perturbation of a combination.

        The term is the target group's own change if the target group has undergone the single perturbation, and
        otherwise the change of the other groups.
        """
        return tuple(
            Term(1, part, (self.group,) if self.has(self.group, part) else self.others(part)) for part in self.parts
        )

    def contributors(self, term: Term) -> tuple[str, ...]:
        """Return the groups that contribute to a term.

        A change of the target group alone is shrunk to the mean change of the other groups with enough cells. These
        other groups therefore contribute too.
        """
        return term.groups if term.groups != (self.group,) else (self.group, *self.others(term.label))

    @property
    def learned_from(self) -> dict[str, tuple[str, ...]]:
        """For each label whose change has a positive weight in the prediction, the groups that show this change."""
        found: dict[str, tuple[str, ...]] = {}
        for term in self.terms:
            if term.weight > 0:
                found[term.label] = tuple(dict.fromkeys((*found.get(term.label, ()), *self.contributors(term))))
        return found

    @property
    def _groups(self) -> list[str]:
        return sorted({group for group, _ in self.members})

    @property
    def checks(self) -> tuple[Design, ...]:
        """Designs that check the prediction: each one predicts observed treated cells without using these cells.

        For a combination that no other group has undergone, the designs predict the combination's single perturbations.
        """
        if self.sources:
            possible = [replace(self, group=group) for group in self._groups if group != self.group]
        else:
            singles = [replace(self, treated=part, parts=()) for part in self.parts]
            possible = [replace(single, group=group) for single in singles for group in self._groups]
        return tuple(design for design in possible if design.observed and design.sources)


def design(
    group: str, control: str, treated: str, *, group_n: np.ndarray, label_n: np.ndarray, perturbation_key: str
) -> Design:
    """Find the cells from which the perturbation is learned.

    Parameters
    ----------
    group, control, treated
        Target group, control label and label of the perturbation, as the user wrote them. `scvae_cli.data.labels` says
        how labels from the user are compared with labels of the data. The treated label is split into parts at its plus
        signs, and the parts may be in any order.
    group_n, label_n, perturbation_key
        Group and label of every cell, each a string or None, shape (n,); and name of the obs column with the labels.

    Raises
    ------
    ConfigError
        If treated and control are the same label, or if a combination has the same part twice.
    DataError
        If no cell has the control or the treated label, if the group has too few control cells, or if no other group
        has undergone the perturbation.
    """
    group = matching(group, set(group_n) - {None}) or group
    control, treated, parts, label_n = _resolved(control, treated, label_n, perturbation_key)
    members: dict[tuple[str, str], list[int]] = {}
    for cell, pair in enumerate(zip(group_n, label_n, strict=True)):
        if None not in pair:
            members.setdefault(pair, []).append(cell)
    rows = {pair: np.asarray(cells) for pair, cells in members.items()}
    result = Design(group=group, control=control, treated=treated, parts=parts, members=rows)
    n_control = len(result.rows(group, control))
    if n_control < MIN_CELLS:
        raise DataError(
            f"{group!r} has {amount(n_control, 'cell')} with obs[{perturbation_key!r}] == {control!r}",
            f"at least {MIN_CELLS} control cells of the group are needed",
        )
    if not result.sources:
        missing = [part for part, term in zip(parts, result.additive_terms, strict=True) if not term.groups]
        for label in missing if parts else (treated,):
            raise DataError(
                f"no other group has at least {MIN_CELLS} cells with each of the labels {control!r} and {label!r}",
                "a perturbation is learned from groups that have undergone it; choose another --groupby",
            )
    return result


def refuse_explained_away(design: Design, batch_n: np.ndarray, batch_key: str) -> None:
    """Raise a ModelError if no batch of the model contains both control and treated cells.

    A model whose batches separate control from treated cells removes the perturbation as a batch effect.
    """

    def batches(label: str) -> set[str]:
        return {batch for (_, of), rows in design.members.items() if of == label for batch in batch_n[rows]}

    for label in (design.treated,) if design.sources else design.parts:
        if not batches(design.control) & batches(label):
            raise ModelError(
                f"no batch (obs[{batch_key!r}]) holds cells of both {design.control!r} and {label!r}, so the model "
                "removes the perturbation as a batch effect",
                "train without --batch-key, or with a --batch-key whose batches hold cells of both labels",
            )


def _resolved(
    control: str, treated: str, label_n: np.ndarray, key: str
) -> tuple[str, str, tuple[str, ...], np.ndarray]:
    """Return the control label, treated label, parts of the treated label, and labels of all cells.

    Each label has only one spelling in the result.
    """
    labels = PerturbationLabels.of(label_n, control, treated)
    listed = ", ".join(labels.known[:_SHOWN]) + (", ..." if len(labels.known) > _SHOWN else "")
    start, label, pieces = labels.find(control), labels.find(treated), labels.pieces(treated)
    if not pieces or (label is not None and label == start):
        raise ConfigError(
            f"--treated and --control are both {control!r}"
            if str(treated) == str(control)
            else f"--treated {treated!r} and --control {control!r} are the same label",
            "choose different labels for treated and control cells",
        )
    if start is None:
        raise DataError(f"no cells with obs[{key!r}] == {control!r}", f"labels: {listed}")
    if len(pieces) == 1:
        if label is None:
            raise DataError(f"no cells with obs[{key!r}] == {treated!r}", f"labels: {listed}")
        return start, label, (), labels.label_n
    found = [labels.find(piece) for piece in pieces]
    missing = [piece for piece, single in zip(pieces, found, strict=True) if single is None]
    if label is None and missing:
        raise DataError(
            f"no cells with obs[{key!r}] == {treated!r}, nor with its part {missing[0]!r} alone",
            f"to name a combination, join the labels of its parts by +, in any order, such as A+B; labels: {listed}",
        )
    parts = () if missing else tuple(single for single in found if single is not None)
    if len(set(parts)) < len(parts):
        raise ConfigError(f"--treated {treated!r} names a perturbation twice", "combine different perturbations")
    return start, label or "+".join(pieces), parts, labels.label_n
