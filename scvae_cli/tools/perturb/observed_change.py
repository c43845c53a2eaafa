"""Observed changes under a perturbation: differences of mean log expression, without a model.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.counts import Counts
from scvae_cli.tools.perturb.design import Design, Term
from scvae_cli.tools.perturb.expected_log import TARGET_SUM
from scvae_cli.tools.perturb.result import TOP_GENES, Accuracy


@dataclass(frozen=True)
class Observed:
    """Observed log expression: log(1 + 10⁴·x/library) for counts x. Real-valued data are not transformed."""

    counts: Counts
    # Results that were already computed: means and variances, and shares with their squared errors.
    _known: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _shares: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @functools.cached_property
    def library_n(self) -> np.ndarray:
        """Library size of each cell."""
        return self.counts.library_n

    def mean(self, design: Design, group: str, label: str) -> np.ndarray:
        """Return the mean log expression of a group's cells under a label, shape (g,), float64."""
        return self._moments(design, group, label)[0]

    def change(self, design: Design) -> np.ndarray:
        """Compute the change of the target group: mean log expression, treated minus control cells, shape (g,)."""
        treated_g, control_g = (self.mean(design, design.group, label) for label in (design.treated, design.control))
        change_g: np.ndarray = treated_g - control_g
        return change_g

    def mean_change(self, design: Design) -> np.ndarray | None:
        """Compute the mean change of the other groups, with equal weights.

        The result is None if no other group has treated cells.
        """
        return self._mean_of(design, Term(1, design.treated, design.sources)) if design.sources else None

    def additive(self, design: Design) -> np.ndarray | None:
        """Add up the changes under the parts of a combination.

        The result is None for a single perturbation, or if the change under a part is unknown.
        """
        terms = design.additive_terms
        if not terms or not all(term.groups for term in terms):
            return None
        total_g: np.ndarray = np.sum([self._mean_of(design, term) for term in terms], axis=0)
        return total_g

    def most_significant(self, design: Design) -> np.ndarray:
        """Return the genes with the largest absolute Welch's t between the target's treated and control cells.

        The genes are given by index.
        """
        moments = [self._moments(design, design.group, label) for label in (design.treated, design.control)]
        sizes = [len(design.rows(design.group, label)) for label in (design.treated, design.control)]
        error_g = np.sqrt(moments[0][1] / sizes[0] + moments[1][1] / sizes[1])
        t_g = np.abs(moments[0][0] - moments[1][0]) / np.where(error_g > 0, error_g, np.inf)
        order: np.ndarray = np.argsort(-t_g, kind="stable")[:TOP_GENES]
        return order

    def shares(self, design: Design, group: str, label: str) -> tuple[np.ndarray, np.ndarray]:
        """Compute each gene's mean share of a cell's counts, and the squared standard error of this mean.

        The mean is taken over the cells of a group that have a given label. For real-valued data, the values of a gene
        are averaged instead of the shares. Both results have shape (g,).
        """
        if (group, label) not in self._shares:
            rows = design.rows(group, label)
            share_ng = sp.csr_matrix(sp.diags(1 / self.library_n[rows]) @ self.counts.matrix[rows].astype(np.float64))
            mean_g, variance_g = _mean_and_variance(share_ng)
            self._shares[group, label] = mean_g, variance_g / len(rows)
        return self._shares[group, label]

    def effect(self, design: Design, group: str, label: str, *, pseudo: float) -> tuple[np.ndarray, np.ndarray]:
        """Compute the effect of a label on a group, and the squared standard error of the effect, each of shape (g,).

        For counts, a gene's share of a cell's counts is averaged over the cells with the label, and over the control
        cells. `pseudo` is added to both averages, so that neither average is zero. The effect for counts is the log
        ratio of the average over the cells with the label to the average over the control cells. For real-valued data,
        the effect is the mean over the cells with the label minus the mean over the control cells.
        """
        (after_g, after_error_g), (before_g, before_error_g) = (
            self.shares(design, group, of) for of in (label, design.control)
        )
        if self.counts.real:
            return after_g - before_g, after_error_g + before_error_g
        after_g, before_g = after_g + pseudo, before_g + pseudo
        sides = []
        for mean_g, error_g, of in ((after_g, after_error_g, label), (before_g, before_error_g, design.control)):
            # In few cells with few counts, the variance may be zero by chance. The squared error is therefore at least
            # that of Poisson counts.
            library_m = self.library_n[design.rows(group, of)]
            poisson_g = mean_g * (1 / library_m).mean() / len(library_m)
            sides.append(np.maximum(error_g, poisson_g) / mean_g**2)
        return np.log(after_g) - np.log(before_g), sides[0] + sides[1]

    def _mean_of(self, design: Design, term: Term) -> np.ndarray:
        changes = [self.mean(design, g, term.label) - self.mean(design, g, design.control) for g in term.groups]
        mean_g: np.ndarray = np.mean(changes, axis=0)
        return mean_g

    def _moments(self, design: Design, group: str, label: str) -> tuple[np.ndarray, np.ndarray]:
        """Compute the mean and the variance of log expression over a group's cells under a label."""
        if (group, label) not in self._known:
            rows = design.rows(group, label)
            x_ng = sp.csr_matrix(self.counts.matrix[rows], dtype=np.float64)
            x_ng = x_ng if self.counts.real else log_expression(x_ng, self.library_n[rows])
            self._known[group, label] = _mean_and_variance(x_ng)
        return self._known[group, label]


def log_expression(x_ng: sp.csr_matrix, library_n: np.ndarray) -> sp.csr_matrix:
    """Compute log(1 + 10⁴·x/library) of counts, shape (n, g), float64."""
    result_ng = sp.csr_matrix(sp.diags(TARGET_SUM / library_n) @ x_ng)
    result_ng.data = np.log1p(result_ng.data)
    return result_ng


def _mean_and_variance(x_ng: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    n = x_ng.shape[0]
    mean_g: np.ndarray = np.asarray(x_ng.mean(0)).ravel()
    second_g = np.asarray(x_ng.multiply(x_ng).mean(0)).ravel()
    return mean_g, np.maximum(second_g - mean_g**2, 0) * n / max(n - 1, 1)


def accuracy(predicted_g: np.ndarray, true_g: np.ndarray, top: np.ndarray) -> Accuracy:
    """Compute the agreement of a predicted change with the true change; `top` are the most significant genes."""
    tiny = np.finfo(float).tiny
    squared_g = np.square(predicted_g - true_g)
    return Accuracy(
        correlation=pearson(predicted_g, true_g),
        top_correlation=pearson(predicted_g[top], true_g[top]),
        explained=float(1 - squared_g.sum() / max(np.square(true_g).sum(), tiny)),
        top_slope=float(predicted_g[top] @ true_g[top] / max(np.square(true_g[top]).sum(), tiny)),
        rmse=float(np.sqrt(squared_g.mean())),
    )


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the Pearson correlation; it is 0 if one of the arrays is constant, such as the prediction "no change".

    >>> pearson(np.zeros(3), np.arange(3.0))
    0.0
    """
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0
