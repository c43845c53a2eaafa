"""Which cells a perturbation is learned from: groups, labels, and what adds up to the change that is asked for.

A group's cells under a label are compared with its control cells. The change a target group would make is put together
from terms, each the change that a label made in some groups: of a single perturbation one term, in the other groups. Of
a combination, B+C, which the other groups have been under, it is half their change under B+C, half the group's own
change under B and under C with the interaction (what B+C does beyond the two) of the others: the first is surer, the
second the group's own. Where the group was not under both parts it is the first alone. A combination that nobody has
been under is put together of its parts, each as the group itself shows it, where it does.

A label names a combination by its parts, joined by plus signs: B+C. The order of the parts does not matter, nor do
spaces around them: cells labelled B+C and C + B are under one treatment. Where no cell has the label asked for, the
control label as a part is left out or put in: B+ctrl is found as B, and the part B of B+C as ctrl+B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from scvae_cli.data.labels import matching
from scvae_cli.errors import ConfigError, DataError, ModelError
from scvae_cli.tools.perturb.perturbation_labels import PerturbationLabels

# A change between fewer cells than this says nothing.
MIN_CELLS = 5
_SHOWN = 12


class Term(NamedTuple):
    """A change that is added with a weight, or taken off: that of a label in some groups."""

    weight: float
    label: str
    groups: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Design:
    """A group, what is done to it, and all cells' labels.

    Parameters
    ----------
    group, control, treated
        The target, and the labels of its cells before and after.
    parts
        Of a combination, the labels of its single perturbations; else empty.
    members
        Indices of the cells of every group under every label, ascending.
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
        """Whether a group has cells enough under some labels, and control cells."""
        return all(len(self.rows(group, label)) >= MIN_CELLS for label in (self.control, *labels))

    def others(self, *labels: str) -> tuple[str, ...]:
        """The other groups that have been under all of some labels, by name."""
        return tuple(group for group in self._groups if group != self.group and self.has(group, *labels))

    @property
    def sources(self) -> tuple[str, ...]:
        """The other groups that have been under the very treatment."""
        return self.others(self.treated)

    @property
    def observed(self) -> bool:
        """Whether the group itself has been under it: the prediction never looks, what judges it does."""
        return self.has(self.group, self.treated)

    @property
    def own_parts(self) -> bool:
        """Whether the group has been under every part of a combination."""
        return bool(self.parts) and self.has(self.group, *self.parts)

    @property
    def own(self) -> bool:
        """Whether all that adds up to the change is the group's own: of a combination that no other has been under."""
        return not self.sources and self.own_parts

    @property
    def terms(self) -> tuple[Term, ...]:
        """What adds up to the change."""
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
        """The parts of a combination, each as the group itself shows it, else the others."""
        return tuple(
            Term(1, part, (self.group,) if self.has(self.group, part) else self.others(part)) for part in self.parts
        )

    def heard(self, term: Term) -> tuple[str, ...]:
        """Groups that have a say in a term: where it is the group's own change, first it, then the others under it."""
        return term.groups if term.groups != (self.group,) else (self.group, *self.others(term.label))

    @property
    def learned_from(self) -> dict[str, tuple[str, ...]]:
        """Groups that have a say in the change, of each label; two terms of one label may hear different ones."""
        heard: dict[str, tuple[str, ...]] = {}
        for term in self.terms:
            if term.weight > 0:
                heard[term.label] = tuple(dict.fromkeys((*heard.get(term.label, ()), *self.heard(term))))
        return heard

    @property
    def _groups(self) -> list[str]:
        return sorted({group for group, _ in self.members})

    def of(self, group: str, treated: str | None = None) -> Design:
        """The same question of another group, or of a part of the combination."""
        if treated is None or treated == self.treated:
            return replace(self, group=group)
        return replace(self, group=group, treated=treated, parts=())

    def checks(self) -> tuple[Design, ...]:
        """The same question of every group whose answer is known and can be found without looking at it.

        Of a combination that nobody has been under, the question of its parts.
        """
        labels = (self.treated,) if self.sources else self.parts
        asked = [self.of(group, label) for label in labels for group in self._groups]
        return tuple(
            design
            for design in asked
            if (design.group != self.group or not self.sources) and design.observed and design.sources
        )


def design(
    group: str, control: str, treated: str, *, group_n: np.ndarray, label_n: np.ndarray, perturbation_key: str
) -> Design:
    """What to learn from, or why there is nothing.

    Parameters
    ----------
    group, control, treated
        As for `Design`, but labels as a caller names them (`scvae_cli.data.labels`), a combination's parts in any
        order. A treated label that no cell has is taken apart at its plus signs.
    group_n, label_n
        Group and label of every cell, strings or None; shape (n,).
    perturbation_key
        Column that the labels are from, for messages.

    Raises
    ------
    ConfigError
        When treated is control.
    DataError
        For labels that no cells have, a group without control cells, or no group to learn from.
    """
    group = matching(group, set(group_n) - {None}) or group
    control, treated, parts, label_n = _understood(control, treated, label_n, perturbation_key)
    members = _members(group_n, label_n)
    result = Design(group=group, control=control, treated=treated, parts=parts, members=members)
    n_control = len(result.rows(group, control))
    if n_control < MIN_CELLS:
        raise DataError(
            f"{group!r} has {n_control} cell(s) with obs[{perturbation_key!r}] == {control!r}, too few to start from",
            f"at least {MIN_CELLS} control cells of the group are needed",
        )
    if not result.sources:
        without = [part for part, term in zip(parts, result.additive_terms, strict=True) if not term.groups]
        for label in without if parts else (treated,):
            raise DataError(
                f"no other group has {MIN_CELLS} cells or more of both {control!r} and {label!r}",
                "a perturbation is learned from groups that have been under it: choose another --groupby",
            )
    return result


def refuse_explained_away(design: Design, batch_n: np.ndarray | None, batch_key: str | None) -> None:
    """Refuse a model that was told that the perturbation is a batch effect: it has taken it out of the latent space.

    Raises
    ------
    ModelError
        When no batch holds both control and treated cells.
    """
    if batch_n is None:
        return
    for label in (design.treated,) if design.sources else design.parts:
        if not _of_label(batch_n, design, design.control) & _of_label(batch_n, design, label):
            raise ModelError(
                f"no batch (obs[{batch_key!r}]) holds cells of both {design.control!r} and {label!r}, so to this model "
                "the perturbation is a batch effect",
                "train without --batch-key, or with one whose batches hold both",
            )


def _understood(
    control: str, treated: str, label_n: np.ndarray, key: str
) -> tuple[str, str, tuple[str, ...], np.ndarray]:
    """Control, treated and its parts as the data spells them, and the cells' labels, one for each combination."""
    labels = PerturbationLabels.of(label_n, control, treated)
    listed = ", ".join(labels.known[:_SHOWN]) + (", ..." if len(labels.known) > _SHOWN else "")
    start, label, pieces = labels.find(control), labels.find(treated), labels.pieces(treated)
    if not pieces or (label is not None and label == start):
        raise ConfigError(
            f"--treated and --control are both {control!r}"
            if str(treated) == str(control)
            else f"--treated {treated!r} is --control {control!r}",
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
            f"a combination is its parts' labels joined by +, in any order, such as A+B; labels: {listed}",
        )
    parts = () if missing else tuple(single for single in found if single is not None)
    if len(set(parts)) < len(parts):
        raise ConfigError(f"--treated is {treated!r}", "a combination is of different perturbations")
    return start, label or "+".join(pieces), parts, labels.label_n


def _of_label(batch_n: np.ndarray, design: Design, label: str) -> set[str]:
    return {batch for (_, of), rows in design.members.items() if of == label for batch in batch_n[rows]}


def _members(group_n: np.ndarray, label_n: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    members: dict[tuple[str, str], list[int]] = {}
    for cell, (group, label) in enumerate(zip(group_n, label_n, strict=True)):
        if group is not None and label is not None:
            members.setdefault((group, label), []).append(cell)
    return {key: np.asarray(cells) for key, cells in members.items()}
