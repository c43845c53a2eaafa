"""The predicted labels of the cells, and the slots of an AnnData to which they are written.

Letters in array shapes: n cells, c labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.amounts import amount, noun
from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.labels import BETWEEN, UNKNOWN
from scvae_cli.tools.annotate.back_off import BackOff
from scvae_cli.tools.annotate.difference import Difference
from scvae_cli.tools.annotate.expected import Expected
from scvae_cli.tools.annotate.label_categories import categorical
from scvae_cli.tools.annotate.quality import Quality

# A warning is given if the share of unknown cells exceeds _MANY, and also exceeds _MANY_TIMES times the expected share.
_MANY_TIMES, _MANY = 5, 0.1
# A warning is given if more than _FEW_SHARE of the cells without a label get labels that fewer than _FEW labeled cells
# have.
_FEW, _FEW_SHARE = 10, 0.1
# A warning is given if the share of cells of missing types is larger by more than _HIDDEN without the corrections of
# `map`.
_HIDDEN = 0.1


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """Predicted labels of n cells.

    Parameters
    ----------
    labels
        The labels, c strings.
    probability_nc
        Probability of each label, shape (n, c), float32. The probabilities of the known labels sum to 1 for each cell,
        even if the cell is called "unknown".
    set_nc
        Mask of the labels in the prediction set of each cell, shape (n, c).
    p_n
        p-value of the hypothesis that a cell belongs to a known type, shape (n,). The p-value of a cell is the share of
        held-out labeled cells that are at least as unlike all known types as this cell.
    unknown_n
        Mask of the cells that are called "unknown", shape (n,).
    labeled_n
        Mask of the cells that have a known label, shape (n,).
    labeled_c
        Number of labeled cells of each label, shape (c,).
    coverage, unknown_rate
        Requested coverage of the prediction sets, and expected share of cells of known types that are called "unknown".
    view_weights
        Weight of each view (set of coordinates of a cell) in the prediction of labels.
    quality
        How well the labels of held-out labeled cells were predicted.
    difference
        How well a classifier distinguishes cells without a label from labeled cells; None if there are too few cells.
    expected
        Expected accuracy of the labels of the cells without a label; None if all cells have a label.
    expected_unmapped
        The same, with the novelty of cells in mapped batches from states without the corrections of `map`; None if no
        batch is mapped.
    values
        Values of the labels, shape (c,), if the labels are numbers or booleans; otherwise None.
    back_off
        Coarse labels, and which cells get a coarse label; None if no coarse labels were given.
    """

    __repr__ = brief

    labels: tuple[str, ...]
    probability_nc: np.ndarray
    set_nc: np.ndarray
    p_n: np.ndarray
    unknown_n: np.ndarray
    labeled_n: np.ndarray
    labeled_c: np.ndarray
    coverage: float
    unknown_rate: float
    view_weights: dict[str, float]
    quality: Quality
    difference: Difference | None = None
    expected: Expected | None = None
    expected_unmapped: Expected | None = None
    values: np.ndarray | None = None
    back_off: BackOff | None = None

    @property
    def code_n(self) -> np.ndarray:
        """Index of each cell's most probable label, shape (n,). Unknown cells have the index c."""
        code_n: np.ndarray = np.where(self.unknown_n, len(self.labels), self.probability_nc.argmax(1))
        return code_n

    def sizes(self) -> dict[str, int]:
        """Count the cells of each predicted label, and the unknown cells."""
        size_c = np.bincount(self.code_n, minlength=len(self.labels) + 1)
        return {name: int(size) for name, size in zip((*self.labels, UNKNOWN), size_c, strict=True)}

    def warnings(self) -> list[str]:
        """Return warnings about labels and cells whose predictions may be unreliable."""
        found = []
        alone = [name for name, size in zip(self.labels, self.labeled_c, strict=True) if size == 1]
        if alone:
            shown = ", ".join(map(repr, alone[:3])) + (", ..." if len(alone) > 3 else "")
            found.append(
                f"{amount(len(alone), 'label has', 'labels have')} one labeled cell ({shown}): it is not known "
                f"how well {noun(len(alone), 'this label is', 'these labels are')} predicted"
            )
        found += self._warning_of_few()
        share = float(self.unknown_n[~self.labeled_n].mean()) if not self.labeled_n.all() else 0.0
        if share > max(_MANY, _MANY_TIMES * self.unknown_rate):
            found.append(
                f"{share:.0%} of the cells without a label are unknown: these cells are of other types than the "
                "labeled cells, or of batches that differ much from those of the labeled cells"
            )
        if self.expected is not None and self.expected_unmapped is not None:
            hidden = self.expected_unmapped.of_missing_types - self.expected.of_missing_types
            if hidden > _HIDDEN:
                found.append(
                    "without the corrections of scvae map, about "
                    f"{self.expected_unmapped.of_missing_types:.0%} of the cells without a label would seem to be of "
                    f"types without labeled cells (with them: {self.expected.of_missing_types:.0%}). The corrections "
                    "may have removed a response to the condition or technology, or have moved cells of new types to "
                    "known types. Check marker genes of the predicted labels"
                )
        if self.difference is not None and self.difference.is_clear:
            found.append(
                "the cells without a label differ from labeled cells with the same predicted label (a classifier "
                f"distinguishes these cells with an area under the ROC curve of {self.difference.auc:.2f}; 0.5 is "
                f"chance): accuracy may be lower than the {self.quality.labels.accuracy:.0%} of the held-out labeled "
                "cells, and it is not guaranteed that the prediction sets of cells without a label contain the true "
                f"label with probability {self.coverage:g}"
            )
        return found

    def _warning_of_few(self) -> list[str]:
        """Return a warning if many cells without a label get a label that few labeled cells have."""
        few_c = self.labeled_c < _FEW
        got_n = np.append(few_c, False)[self.code_n[~self.labeled_n]]
        if self.expected is None or not got_n.any() or got_n.mean() <= _FEW_SHARE:
            return []
        rare = [f"{name!r}: {size}" for name, size in zip(self.labels, self.labeled_c, strict=True) if size < _FEW]
        shown = ", ".join(rare[:3]) + (", ..." if len(rare) > 3 else "")
        return [
            f"{got_n.mean():.0%} of the cells without a label get labels that fewer than {_FEW} labeled cells have "
            f"({shown}). So few cells do not show reliably how accurate these labels are: the true accuracy may be "
            "much lower or higher than the expected accuracy"
        ]

    def notes(self) -> list[str]:
        """Return remarks about the limits of the predictions."""
        smallest = 1 / (self.quality.n_cells + 1)
        if not self.unknown_rate or smallest <= self.unknown_rate:
            return []
        return [
            f"with {self.quality.n_cells} held-out labeled cells, no cell can be called unknown at a rate of "
            f"{self.unknown_rate:g}: --unknown-rate must be at least {smallest:.2g}"
        ]

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the AnnData to which the predictions are written."""
        import pandas as pd  # pandas is slow to import, so it is imported only here

        coarse = (
            []
            if self.back_off is None
            else self.back_off.slots(names, self.probability_nc.argmax(1), self.labels, self.unknown_n)
        )
        return [
            Slot(group="obs", key=names.label, value=categorical(self.code_n, self.labels, self.values)),
            Slot(group="obs", key=names.label_probability, value=self.probability_nc.max(1)),
            Slot(group="obs", key=names.label_set, value=pd.Categorical(self._sets())),
            Slot(group="obs", key=names.label_p, value=self.p_n),
            *coarse,
            Slot(group="obsm", key=names.label_probabilities, value=self.probability_nc),
            Slot(group="uns", key=names.label_names, value=np.asarray(self.labels, dtype=object)),
        ]

    def _sets(self) -> np.ndarray:
        """Write the prediction set of each cell as text, with the most probable label first; shape (n,)."""
        order_nc = np.argsort(-self.probability_nc, axis=1, kind="stable")
        texts = np.empty(len(order_nc), dtype=object)
        for n, (order, inside) in enumerate(zip(order_nc, self.set_nc, strict=True)):
            texts[n] = BETWEEN.join(self.labels[c] for c in order if inside[c])
        return texts
