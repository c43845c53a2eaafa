"""What comes of a perturbation in silico: cells, what every gene does, how well it does where the answer is known.

Shapes: m predicted cells, g genes, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.heldout import OFF_MANIFOLD

TOP_GENES = 50


class Fit(NamedTuple):
    """How a predicted change agrees with the one observed.

    Parameters
    ----------
    correlation, top_correlation
        Pearson, over all genes and over the 50 that differ most surely (Welch's t).
    explained
        1 − squared error / squared change: 0 for "no change", 1 at best.
    """

    correlation: float
    top_correlation: float
    explained: float

    @property
    def mark(self) -> float:
        """One number to choose by, the mean of the three: direction counts, and size too."""
        return (self.correlation + self.top_correlation + self.explained) / 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """A group whose answer is known.

    Parameters
    ----------
    group, treated
        What was predicted of which group, without its treated cells.
    n_control, n_treated
        Its cells.
    predicted, mean_change, additive
        How well the prediction did, the mean change of the other groups, and the sum of a combination's parts; None
        where there is no such thing.
    unseen
        Whether the model was trained without these treated cells; else the prediction looks better than it is.
    """

    group: str
    treated: str
    n_control: int
    n_treated: int
    predicted: Fit
    mean_change: Fit | None
    additive: Fit | None
    unseen: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        result: dict[str, Any] = {"group": self.group, "treated": self.treated}
        result |= {"n_control": self.n_control, "n_treated": self.n_treated, "unseen": self.unseen}
        for name in ("predicted", "mean_change", "additive"):
            fit: Fit | None = getattr(self, name)
            result[name] = None if fit is None else fit._asdict()
        return result


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a prediction is made.

    Parameters
    ----------
    method
        "centroid" or "ot".
    plain
        Share of the plain mean change, in logs, that is mixed with what the model says.
    """

    method: str
    plain: float


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What every gene does, each of shape (g,): differences of mean log(1 + 10⁴·x/library), of real numbers of means.

    Parameters
    ----------
    change_g
        As predicted.
    log2_fold_g
        Predicted log2 fold change of the expression rate; None for real numbers.
    mean_change_g, additive_g
        What the other groups did on average; the sum of the parts. None where there is no such thing.
    observed_g
        What the group's own treated cells show, where there are any.
    """

    change_g: np.ndarray
    log2_fold_g: np.ndarray | None
    mean_change_g: np.ndarray | None
    additive_g: np.ndarray | None
    observed_g: np.ndarray | None

    def columns(self) -> dict[str, np.ndarray]:
        """Those there are, by name."""
        columns = {
            "change": self.change_g,
            "log2_fold_change": self.log2_fold_g,
            "mean_change": self.mean_change_g,
            "additive": self.additive_g,
            "observed": self.observed_g,
        }
        return {name: column_g for name, column_g in columns.items() if column_g is not None}


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """Cells of a group as they would be.

    Parameters
    ----------
    group, control, treated
        What was asked.
    recipe
        How it was predicted.
    sources
        Groups that were learned from, of each label whose change was used.
    genes
        g modelled genes.
    changes
        What they do.
    cells
        Indices of the control cells that were moved, shape (m,).
    z_mk
        Where they get to, along the canonical axes.
    off_manifold_m
        Share of held-out cells that lie in denser places.
    checks
        The same question of groups whose answer is known; empty where there is none.
    own
        How well the prediction of the group itself did, where it has treated cells.
    carried
        How far the model carries the change over to the group, 1 as in the checked groups, without any the correlation
        with the plain change; None where models that had not seen them were asked, or there is nothing to carry over.
        Far below 1, the prediction is the plain change.
    blocks
        Expected or drawn counts, float32, as consecutive blocks of rows that can be walked through once.
    """

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
    own: Check | None
    carried: float | None
    blocks: Iterator[sp.csr_matrix] | Iterator[np.ndarray]

    @property
    def name(self) -> str:
        """What it is called in the slots."""
        return f"{self.group}_{self.treated}"

    @property
    def in_holes(self) -> float:
        """Share of the cells that lie in a hole."""
        return float((self.off_manifold_m > OFF_MANIFOLD).mean())

    @property
    def tested(self) -> bool:
        """Whether the very treatment was predicted where the answer is known, and not only its parts."""
        return bool(self.checks) and all(check.treated == self.treated for check in self.checks)

    def expected(self, what: str = "predicted") -> Fit | None:
        """Mean agreement over the checked groups, of the prediction or of a baseline."""
        fits = [getattr(check, what) for check in self.checks]
        if not fits or any(fit is None for fit in fits):
            return None
        return Fit(*(float(np.mean(values)) for values in zip(*fits, strict=True)))

    def top_genes(self, n: int) -> np.ndarray:
        """The n genes that change most, most first."""
        return np.argsort(-np.abs(self.changes.change_g), kind="stable")[:n]

    def facts(self) -> dict[str, Any]:
        """What is told of it, as plain values."""
        expected = {what: self.expected(what) for what in ("predicted", "mean_change", "additive")}
        return {
            "group": self.group,
            "control": self.control,
            "treated": self.treated,
            "method": self.recipe.method,
            "plain_share": self.recipe.plain,
            "learned_from": {label: list(groups) for label, groups in self.sources.items()},
            "n_cells": len(self.cells),
            "n_genes": len(self.genes),
            "off_manifold": self.in_holes,
            "carried": self.carried,
            "expected": {what: None if fit is None else fit._asdict() for what, fit in expected.items()},
            "checks": [check.as_dict() for check in self.checks],
            "own": None if self.own is None else self.own.as_dict(),
        }

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes, in a file of its own, but for the cells' names and labels."""
        told: dict[str, Any] = {"group": self.group, "control": self.control, "treated": self.treated}
        told |= {"method": self.recipe.method, "plain_share": self.recipe.plain}
        if self.checks:
            told["checks"] = {
                "group": np.asarray([check.group for check in self.checks], dtype=object),
                "treated": np.asarray([check.treated for check in self.checks], dtype=object),
                "unseen": np.asarray([check.unseen for check in self.checks]),
            } | {
                f"{what}_{part}": np.asarray([getattr(getattr(check, what), part) for check in self.checks])
                for what in ("predicted", "mean_change", "additive")
                if self.expected(what) is not None
                for part in Fit._fields
            }
        return [
            Slot(group="obs", key=names.off_manifold, value=self.off_manifold_m),
            *(
                Slot(group="var", key=names.perturbation_gene(column), value=column_g)
                for column, column_g in self.changes.columns().items()
            ),
            Slot(group="obsm", key=names.embedding, value=self.z_mk),
            Slot(group="uns", key=names.perturbation(self.name), value=told),
        ]
