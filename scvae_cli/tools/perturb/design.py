"""Cells from which a perturbation is learned: groups, labels, and the terms that add up to the target's change.

A group's cells under a label are compared with its control cells. The change of the target group is a sum of terms,
each the change under a label in some groups. A single perturbation has one term, its change in the other groups. For a
combination, B+C, that other groups have undergone, the change is half theirs under B+C, plus half of: the target's own
changes under B and under C and the others' interaction (the change under B+C beyond the two). The first half is more
certain, the second is the target's own. If the target has not undergone both parts, the first alone is used. A
combination that no other group has undergone is the sum of its parts, each as observed in the target where possible.

A label names a combination by its parts, joined by plus signs: B+C. Neither the order of the parts nor spaces around
them matter: cells labeled B+C and C + B have the same perturbation. Where no cell has the given label, the control
label is added or removed as a part: B+ctrl is found as B, and the part B of B+C as ctrl+B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from scvae_cli.data.labels import matching
from scvae_cli.errors import ConfigError, DataError, ModelError
from scvae_cli.tools.perturb.perturbation_labels import PerturbationLabels

# A change between fewer cells than this is too uncertain to use.
MIN_CELLS = 5
_SHOWN = 12


class Term(NamedTuple):
    """Change under a label in some groups, with its weight in the sum, which may be negative."""

    weight: float
    label: str
    groups: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Design:
    """A target group, its perturbation, and the labels of all cells.

    Parameters
    ----------
    group, control, treated
        Target group, and the labels of its cells before and after.
    parts
        Labels of the single perturbations of a combination; empty for a single one.
    members
        Ascending indices of the cells of every group under every label.
    """

    group: str
    control: str
    treated: str
    parts: tuple[str, ...]
    members: Mapping[tuple[str, str], np.ndarray]

    def rows(self, group: str, label: str) -> np.ndarray:
        """Indices of a group's cells under a label."""
        return self.members.get((group, label), np.empty(0, dtype=np.int64))

    def has(self, group: str, *labels: str) -> bool:
        """Whether a group has enough cells under all of some labels, and enough control cells."""
        return all(len(self.rows(group, label)) >= MIN_CELLS for label in (self.control, *labels))

    def others(self, *labels: str) -> tuple[str, ...]:
        """The other groups with enough cells under all of some labels, sorted by name."""
        return tuple(group for group in self._groups if group != self.group and self.has(group, *labels))

    @property
    def sources(self) -> tuple[str, ...]:
        """The other groups that have undergone the perturbation itself."""
        return self.others(self.treated)

    @property
    def observed(self) -> bool:
        """Whether the target has treated cells, which are used to judge the prediction but never to make it."""
        return self.has(self.group, self.treated)

    @property
    def own_parts(self) -> bool:
        """Whether the target has undergone every part of a combination."""
        return bool(self.parts) and self.has(self.group, *self.parts)

    @property
    def only_own_parts(self) -> bool:
        """Whether all terms are the target's own: a combination that no other group has undergone."""
        return not self.sources and self.own_parts

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms that add up to the target's change."""
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
        """The parts of a combination, each observed in the target itself, else in the other groups."""
        return tuple(
            Term(1, part, (self.group,) if self.has(self.group, part) else self.others(part)) for part in self.parts
        )

    def contributors(self, term: Term) -> tuple[str, ...]:
        """Groups that contribute to a term; for the target's own change, the target and then the others."""
        return term.groups if term.groups != (self.group,) else (self.group, *self.others(term.label))

    @property
    def learned_from(self) -> dict[str, tuple[str, ...]]:
        """Groups that contribute to the change, by label; two terms of one label may have different ones."""
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
        """Designs of all groups with treated cells that can be predicted without using them.

        For a combination that no other group has undergone, designs of its parts.
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
    """Find the cells to learn from.

    Parameters
    ----------
    group, control, treated
        As for `Design`, but labels as a caller names them (`scvae_cli.data.labels`), with the parts of a combination in
        any order. A treated label that no cell has is split at its plus signs.
    group_n, label_n, perturbation_key
        Group and label of every cell, strings or None, shape (n,), and the labels' column, for messages.

    Raises
    ------
    ConfigError
        When treated is control.
    DataError
        For labels that no cells have, a group without control cells, or no group to learn from.
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
            f"{group!r} has {n_control} cell(s) with obs[{perturbation_key!r}] == {control!r}",
            f"at least {MIN_CELLS} control cells of the group are needed",
        )
    if not result.sources:
        missing = [part for part, term in zip(parts, result.additive_terms, strict=True) if not term.groups]
        for label in missing if parts else (treated,):
            raise DataError(
                f"no other group has {MIN_CELLS} cells or more of both {control!r} and {label!r}",
                "a perturbation is learned from groups that have undergone it; choose another --groupby",
            )
    return result


def refuse_explained_away(design: Design, batch_n: np.ndarray | None, batch_key: str | None) -> None:
    """Refuse a model that removes the perturbation as a batch effect: no batch holds both control and treated cells."""
    if batch_n is None:
        return

    def batches(label: str) -> set[str]:
        return {batch for (_, of), rows in design.members.items() if of == label for batch in batch_n[rows]}

    for label in (design.treated,) if design.sources else design.parts:
        if not batches(design.control) & batches(label):
            raise ModelError(
                f"no batch (obs[{batch_key!r}]) holds cells of both {design.control!r} and {label!r}, so the model "
                "removes the perturbation as a batch effect",
                "train without --batch-key, or with one whose batches hold both",
            )


def _resolved(
    control: str, treated: str, label_n: np.ndarray, key: str
) -> tuple[str, str, tuple[str, ...], np.ndarray]:
    """Control, treated and its parts as the data spells them, and the cells' labels, one spelling per combination."""
    labels = PerturbationLabels.of(label_n, control, treated)
    listed = ", ".join(labels.known[:_SHOWN]) + (", ..." if len(labels.known) > _SHOWN else "")
    start, label, pieces = labels.find(control), labels.find(treated), labels.pieces(treated)
    if not pieces or (label is not None and label == start):
        raise ConfigError(
            f"--treated and --control are both {control!r}"
            if str(treated) == str(control)
            else f"--treated {treated!r} and --control {control!r} are the same label",
            "a perturbation compares two labels",
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
            f"join the labels of the parts of a combination by +, in any order, such as A+B; labels: {listed}",
        )
    parts = () if missing else tuple(single for single in found if single is not None)
    if len(set(parts)) < len(parts):
        raise ConfigError(f"--treated is {treated!r}", "combine different perturbations")
    return start, label or "+".join(pieces), parts, labels.label_n
