"""A predicted perturbation: cells, changes of the genes, and the accuracy in groups whose response was observed.

Letters in array shapes: m predicted cells, g genes, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.tools.perturb.tested_change import Tested, any_changed

TOP_GENES = 50
# Methods that do not shift cells in latent space: the prediction is the mean change of the other groups, or no change.
MEAN, NONE = "mean", "none"
# Names of the predictions that are compared with the observed change: the prediction itself and its two baselines.
COMPARED = ("predicted", "mean_change", "additive")


class Accuracy(NamedTuple):
    """Agreement of a predicted change with the observed change.

    Parameters
    ----------
    correlation, top_correlation
        Pearson correlation over all genes, and over the 50 genes with the largest absolute Welch's t between treated
        and control cells.
    explained
        1 − sum of squared errors / sum of squared observed changes: 0 for the prediction "no change", 1 at best.
    top_slope
        Slope of the predicted on the observed changes of the 50 most significant genes (least squares through zero).
        The slope is 1 if predicted changes are as large as observed changes, and below 1 if predicted changes are too
        small.
    rmse
        Root mean squared error over all genes, in the unit of the changes.
    """

    correlation: float
    top_correlation: float
    explained: float
    top_slope: float
    rmse: float

    @property
    def score(self) -> float:
        """Score by which recipes are compared: the mean of `correlation`, `top_correlation` and `explained`."""
        return (self.correlation + self.top_correlation + self.explained) / 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """Accuracy in one group whose response was observed; the change was learned without the group's treated cells.

    Parameters
    ----------
    predicted, mean_change, additive
        Accuracy of the prediction and of two baselines: the mean change of the other groups, and the sum of the changes
        under a combination's parts. The accuracy of a baseline that cannot be computed is None.
    held_out
        Whether the model was trained without the group's treated cells; otherwise the accuracy is too optimistic.
    """

    group: str
    treated: str
    n_control: int
    n_treated: int
    predicted: Accuracy
    mean_change: Accuracy | None
    additive: Accuracy | None
    held_out: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        result: dict[str, Any] = {"group": self.group, "treated": self.treated}
        result |= {"n_control": self.n_control, "n_treated": self.n_treated, "held_out": self.held_out}
        return result | {name: _as_dict(getattr(self, name)) for name in COMPARED}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Recipe of a prediction: the method, the share of the mean shift, and the scale of the change.

    The mean shift is the average observed change of expression from control to treated cells in the groups that the
    perturbation is learned from. Besides the mean shift, the prediction contains the change that the model decodes
    after a latent shift by the method "centroid" or "ot". The predicted log ratios (for real-valued data, the predicted
    differences) are multiplied by the scale, because models underestimate the changes of cells that they were not
    trained on. With the method "mean", the prediction is the plain mean of the other groups' changes; with "none", the
    prediction is no change.
    """

    method: str
    mean_shift_share: float
    scale: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Changes of the genes, each of shape (g,): differences of the mean of log(1 + 10⁴·count/library).

    For real-valued data, the changes are differences of mean values.

    Parameters
    ----------
    change_g, log2_fold_g
        Predicted change, and predicted log2 fold change of the expression rate. The fold change is None for real
        numbers.
    mean_change_g, additive_g
        Baselines: mean change of the other groups, and sum of the changes under a combination's parts. A baseline that
        cannot be computed is None.
    observed_g
        Observed change of the group itself; None if the group has no treated cells.
    """

    change_g: np.ndarray
    log2_fold_g: np.ndarray | None
    mean_change_g: np.ndarray | None
    additive_g: np.ndarray | None
    observed_g: np.ndarray | None

    def columns(self) -> dict[str, np.ndarray]:
        """Return the changes that are not None, by column name."""
        columns = {"change": self.change_g, "log2_fold_change": self.log2_fold_g, "mean_change": self.mean_change_g}
        columns |= {"additive": self.additive_g, "observed": self.observed_g}
        return {name: column_g for name, column_g in columns.items() if column_g is not None}


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """Cells of a group as predicted under a perturbation.

    Parameters
    ----------
    group, control, treated
        Group, label of its control cells, and label of the predicted perturbation.
    sources
        For each label under which a change was learned, the groups from which the change was learned.
    cells, z_mk
        Indices of the control cells that were shifted, and their positions along the latent axes after the shift.
    off_manifold_m
        Off-manifold score of each predicted cell: share of the cells held out of the training whose latent density is
        higher than that of the predicted cell.
    checks, group_check
        Accuracy in other groups whose response was observed, and in the group itself. `group_check` is None if the
        group has no treated cells.
    tests, group_test
        `tests` contains one permutation test for each label under which a change was learned, in the groups of
        `sources`. `group_test` is the test of the group's own cells; it is None if the group has no treated cells.
    model_accuracy
        Mean accuracy of the model's prediction in the checked groups. `model_accuracy` is None unless the mean change
        of the other groups was more accurate and is therefore the prediction.
    model_agreement
        Agreement of two predictions for the group: the change decoded by the model, and the mean shift (see `Recipe`).
        The agreement is the correlation of these predictions, divided by the mean of the same correlation over the
        checked groups. Without checked groups, the correlation is not divided. If the agreement is below 0.75, the
        prediction is the mean shift alone. `model_agreement` is None if the checks used retrained models, or if the
        change is learned only from the group's own changes under the parts of the combination.
    blocks
        Expected or drawn counts, float32, as consecutive blocks of rows that can be iterated once.
    """

    __repr__ = brief

    group: str
    control: str
    treated: str
    recipe: Recipe
    sources: dict[str, tuple[str, ...]]
    genes: tuple[str, ...]
    changes: Changes
    cells: np.ndarray
    z_mk: np.ndarray
    off_manifold_m: np.ndarray
    checks: tuple[Check, ...]
    group_check: Check | None
    tests: tuple[Tested, ...]
    group_test: Tested | None
    model_accuracy: Accuracy | None
    model_agreement: float | None
    blocks: Iterator[sp.csr_matrix] | Iterator[np.ndarray]

    @property
    def all_checks(self) -> tuple[Check, ...]:
        """The checks of the other groups, then the check of the group itself if there is one."""
        return self.checks if self.group_check is None else (*self.checks, self.group_check)

    @property
    def off_manifold(self) -> float:
        """Share of the predicted cells with an off-manifold score above 0.95."""
        return float((self.off_manifold_m > OFF_MANIFOLD).mean())

    @property
    def changed(self) -> bool:
        """Whether a change was detected. If no change was detected, the predicted change is 0."""
        return any_changed(self.tests)

    @property
    def no_better_than_mean(self) -> bool:
        """Whether the prediction is no more accurate in the checked groups than the mean change of the other groups.

        The prediction counts as more accurate if the mean difference of the scores exceeds the standard error of this
        mean.
        """
        if self.recipe.method == MEAN:
            return True
        gains = [check.predicted.score - check.mean_change.score for check in self.checks if check.mean_change]
        error = float(np.std(gains, ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0
        return bool(gains) and float(np.mean(gains)) <= error

    @property
    def tested(self) -> bool:
        """Whether the accuracy was measured for the perturbation itself, not only for parts of a combination."""
        return bool(self.checks) and all(check.treated == self.treated for check in self.checks)

    def mean_accuracy(self, what: str = "predicted") -> Accuracy | None:
        """Compute the mean accuracy of the prediction or of a baseline over the checked groups.

        The result is None if the accuracy in one of the groups is missing.
        """
        return mean_accuracy(self.checks, what)

    def top_genes(self, n: int) -> np.ndarray:
        """Return the indices of the n genes with the largest changes, the largest first."""
        return np.argsort(-np.abs(self.changes.change_g), kind="stable")[:n]

    @property
    def _asked(self) -> dict[str, Any]:
        names = {"group": self.group, "control": self.control, "treated": self.treated}
        recipe = {"method": self.recipe.method, "mean_shift_share": self.recipe.mean_shift_share}
        return names | recipe | {"scale": self.recipe.scale, "change_detected": self.changed}

    def facts(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return self._asked | {
            "learned_from": {label: list(groups) for label, groups in self.sources.items()},
            "n_cells": len(self.cells),
            "n_genes": len(self.genes),
            "off_manifold": self.off_manifold,
            "change_tests": [test.as_dict() for test in self.tests],
            "group_change_test": None if self.group_test is None else self.group_test.as_dict(),
            "no_better_than_mean": self.no_better_than_mean if self.checks else None,
            "model_accuracy": _as_dict(self.model_accuracy),
            "model_agreement": self.model_agreement,
            "mean_accuracy": {what: _as_dict(self.mean_accuracy(what)) for what in COMPARED},
            "checks": [check.as_dict() for check in self.checks],
            "group_check": None if self.group_check is None else self.group_check.as_dict(),
        }

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the output file that hold the result, except the names and labels of the cells."""
        found: dict[str, Any] = self._asked
        found["change_tests"] = {
            "label": np.asarray([test.label for test in self.tests], dtype=object),
            "p": np.asarray([test.p for test in self.tests]),
            "n_changed": np.asarray([test.n_changed for test in self.tests]),
        }
        if self.checks:
            kinds = {"group": object, "treated": object, "held_out": bool}
            found["checks"] = {
                name: np.asarray([getattr(check, name) for check in self.checks], dtype=kind)
                for name, kind in kinds.items()
            } | {
                f"{what}_{part}": np.asarray([getattr(getattr(check, what), part) for check in self.checks])
                for what in COMPARED
                if self.mean_accuracy(what) is not None
                for part in Accuracy._fields
            }
        return [
            Slot(group="obs", key=names.off_manifold, value=self.off_manifold_m),
            *(
                Slot(group="var", key=names.perturbation_gene(column), value=column_g, may_lack=True)
                for column, column_g in self.changes.columns().items()
            ),
            Slot(group="obsm", key=names.latent, value=self.z_mk),
            Slot(group="uns", key=names.perturbation(f"{self.group}_{self.treated}"), value=found),
        ]


def mean_accuracy(checks: Sequence[Check], what: str = "predicted") -> Accuracy | None:
    """Compute the mean accuracy of the prediction or of a baseline; None if the accuracy in some group is missing."""
    found = [getattr(check, what) for check in checks]
    if not found or any(one is None for one in found):
        return None
    return Accuracy(*(float(np.mean(values)) for values in zip(*found, strict=True)))


def _as_dict(accuracy: Accuracy | None) -> dict[str, float] | None:
    return None if accuracy is None else accuracy._asdict()
