"""Labels of single and combined perturbations; the parts of a combination may have any order and spacing.

Letters in array shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scvae_cli.data.labels import as_label, matching


@dataclass(frozen=True, kw_only=True)
class PerturbationLabels:
    """The labels of a column of perturbations.

    Parameters
    ----------
    label_n
        Label of every cell, or None, shape (n,). Labels with the same parts have the same spelling.
    known
        All labels, sorted.
    by_parts
        Label for each sorted tuple of parts.
    control_part
        Label of the control, which is ignored as a part of a label; None if the control is itself a combination.

    >>> cells = np.array(["ctrl", "B+ctrl", "ctrl + B", "C", "C+D", "D+C"], dtype=object)
    >>> labels = PerturbationLabels.of(cells, "ctrl", "D+C")
    >>> list(labels.label_n)
    ['ctrl', 'B+ctrl', 'B+ctrl', 'C', 'D+C', 'D+C']
    >>> labels.find("B"), labels.find("C+ctrl"), labels.find("C + D"), labels.find("D"), labels.pieces("B+ctrl")
    ('B+ctrl', 'C', 'D+C', None, ('B',))
    """

    label_n: np.ndarray
    known: tuple[str, ...]
    by_parts: Mapping[tuple[str, ...], str]
    control_part: str | None

    @classmethod
    def of(cls, label_n: np.ndarray, control: object, treated: object) -> PerturbationLabels:
        """Read a column of labels; `control` and `treated` keep their given spelling if some cell has this spelling."""
        spelled = sorted(set(label_n) - {None})
        asked = [label for label in (matching(control, spelled), matching(treated, spelled)) if label is not None]
        by_parts: dict[tuple[str, ...], str] = {}
        for label in (*asked, *spelled):
            by_parts.setdefault(_sorted_parts(label), label)
        label_of: dict[str | None, str | None] = {label: by_parts[_sorted_parts(label)] for label in spelled}
        label_of[None] = None
        one_n = np.empty(len(label_n), dtype=object)
        one_n[:] = [label_of[label] for label in label_n]
        control_parts = set(_parts(matching(control, spelled) or as_label(control) or ""))
        return cls(
            label_n=one_n,
            known=tuple(sorted(set(by_parts.values()))),
            by_parts=by_parts,
            control_part=control_parts.pop() if len(control_parts) == 1 else None,
        )

    def pieces(self, asked: object) -> tuple[str, ...]:
        """Return the parts of a label in their order, without the control.

        The result is empty for the control label.
        """
        label = matching(asked, self.known) or as_label(asked) or ""
        return self._without_control(tuple(matching(part, self.known) or part for part in _parts(label)))

    def find(self, asked: object) -> str | None:
        """Return the data's spelling of a label, or None if no cell has the label.

        The control does not count as a part, so a label is found with or without the control.
        """
        exact = matching(asked, self.known)
        if exact is not None:
            return exact
        parts = _sorted_parts(as_label(asked) or "")
        if parts in self.by_parts:
            return self.by_parts[parts]
        bare = tuple(sorted(self.pieces(asked)))
        same = {label for known, label in self.by_parts.items() if self._without_control(known) == bare}
        # If both B and B+ctrl are labels, the label B+ctrl+ctrl is read as B.
        return min(same, key=lambda label: (len(_parts(label)), label), default=None)

    def _without_control(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(part for part in parts if part != self.control_part)


def _parts(label: str) -> tuple[str, ...]:
    """Split a label into its parts; a plus sign at the end, as in CD4+, belongs to the name.

    >>> _parts("B + C"), _parts("CD4+")
    (('B', 'C'), ('CD4+',))
    """
    parts = tuple(part.strip() for part in label.split("+"))
    return parts if len(parts) > 1 and all(parts) else (label,)


def _sorted_parts(label: str) -> tuple[str, ...]:
    return tuple(sorted(_parts(label)))
