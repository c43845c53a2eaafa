"""Permutation test of the hypothesis that a perturbation changes no gene.

In each group, the labels of the control and of the treated cells are permuted. If the perturbation has no effect, all
permutations are as likely as the observed labels, whatever the distribution of the counts and the correlation of the
genes. Labels are permuted only among cells of the same batch. The mean of a logarithm depends on the library size, so
treated cells that were sequenced more deeply than the control cells would look changed. Counts are therefore first
thinned at random until treated and control cells have the same distribution of library sizes.

For each gene, the differences of mean log expression between treated and control cells are averaged over the groups.
The weight of a difference is its precision. A gene's z-score is the averaged difference divided by its standard error.
The test uses two statistics: the largest absolute z-score over the genes, for strong changes of a few genes, and the
sum of the squared z-scores, for weak changes of many genes. Each statistic has a p-value, and the smaller of the two
p-values is computed for the observed labels and for every permutation. The p-value of the test follows from the rank of
the observed labels among all permutations (Westfall & Young 1993). A gene counts as changed if at most 5% of the
labelings (the observed labels and all permutations) have a gene with an equal or larger absolute z-score. The
probability that any unchanged gene counts as changed is then at most 5%.

Letters in array shapes: n cells, g genes, b labelings (the observed labels and their permutations).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.stats import rankdata

from scvae_cli.latent.selection import even
from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.observed_change import Observed, log_expression
from scvae_cli.tools.perturb.tested_change import GENE_LEVEL, Tested

N_PERMUTATIONS = 999
# Largest number of cells of a group under each label; more cells would change the result little.
_MOST_CELLS = 500


class _Permuted(NamedTuple):
    """Difference of means (treated − control) and squared standard error of the difference, shape (b, g)."""

    difference_bg: np.ndarray
    variance_bg: np.ndarray


def permutation_test(
    observed: Observed, design: Design, label: str, groups: Sequence[str], *, batch_n: np.ndarray | None, seed: int
) -> Tested:
    """Test whether cells under a label differ from the control cells of the same groups.

    `batch_n` holds the batch of every cell, or is None if the batches are unknown.
    """
    random = np.random.default_rng(seed)
    by_group = {group: _permuted(observed, design, group, label, batch_n, random) for group in groups}
    p, changed_g = _p_value(list(by_group.values()))
    return Tested(
        label=label,
        p=p,
        group_p={group: _p_value([one])[0] for group, one in by_group.items()} if len(by_group) > 1 else {groups[0]: p},
        n_changed=int(changed_g.sum()),
    )


def _permuted(
    observed: Observed,
    design: Design,
    group: str,
    label: str,
    batch_n: np.ndarray | None,
    random: np.random.Generator,
) -> _Permuted:
    sides = [even(design.rows(group, of), _MOST_CELLS) for of in (design.control, label)]
    rows = np.concatenate(sides)
    treated_n = np.repeat([False, True], [len(side) for side in sides])
    batch_n = np.zeros(len(rows), dtype=int) if batch_n is None else np.unique(batch_n[rows], return_inverse=True)[1]
    x_ng = sp.csr_matrix(observed.counts.matrix[rows], dtype=np.float64)
    if not observed.counts.real:
        kept_n = _kept(observed.library_n[rows], treated_n, batch_n)
        x_ng.data = random.binomial(x_ng.data.astype(np.int64), np.repeat(kept_n, np.diff(x_ng.indptr))).astype(float)
        x_ng = log_expression(x_ng, kept_n * observed.library_n[rows])
    labels_bn = np.concatenate([treated_n[None], _permutations(treated_n, batch_n, random)])
    n, n_treated = len(rows), int(treated_n.sum())
    total_g = np.asarray(x_ng.sum(0)).ravel()
    squares_g = np.asarray(x_ng.multiply(x_ng).sum(0)).ravel() - total_g**2 / n
    treated_bg = (x_ng.T.tocsr() @ labels_bn.T.astype(np.float64)).T
    difference_bg = treated_bg / n_treated - (total_g - treated_bg) / (n - n_treated)
    # The sum of squares within labels is the total sum of squares minus the sum of squares between labels.
    balance = n_treated * (n - n_treated) / n
    within_bg = np.maximum(squares_g - balance * difference_bg**2, 1e-12 * squares_g)
    return _Permuted(difference_bg, within_bg / (n - 2) / balance)


def _kept(library_n: np.ndarray, treated_n: np.ndarray, batch_n: np.ndarray) -> np.ndarray:
    """Compute the fraction of each cell's molecules to keep, shape (n,).

    Within each batch, the library sizes of treated and of control cells are compared quantile by quantile. Treated and
    control cells at the same quantile are thinned to the smaller of their two library sizes.
    """
    kept_n = np.ones(len(library_n))
    for batch in np.unique(batch_n):
        sides = [np.flatnonzero((batch_n == batch) & (treated_n == label)) for label in (False, True)]
        if not all(len(side) for side in sides):
            continue
        for side in sides:
            quantile_m = (rankdata(library_n[side], method="ordinal") - 0.5) / len(side)
            least_m = np.min([np.quantile(library_n[each], quantile_m) for each in sides], axis=0)
            kept_n[side] = np.minimum(least_m / library_n[side], 1)
    return kept_n


def _permutations(treated_n: np.ndarray, batch_n: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Permute labels within batches, shape (permutations, n)."""
    sorted_n = treated_n[np.argsort(batch_n, kind="stable")]
    key_bn = batch_n + random.random((N_PERMUTATIONS, len(treated_n)))
    result_bn = np.empty(key_bn.shape, dtype=bool)
    np.put_along_axis(result_bn, np.argsort(key_bn, axis=1), np.broadcast_to(sorted_n, key_bn.shape), axis=1)
    return result_bn


def _p_value(groups: Sequence[_Permuted]) -> tuple[float, np.ndarray]:
    """Compute the p-value of the test, and a mask of the changed genes, shape (g,)."""
    weighted_bg = np.zeros_like(groups[0].difference_bg)
    precision_bg = np.zeros_like(weighted_bg)
    for one in groups:
        # A group in which a gene does not vary does not contribute to the change of this gene.
        weight_bg = np.divide(1.0, one.variance_bg, out=np.zeros_like(weighted_bg), where=one.variance_bg > 0)
        weighted_bg += weight_bg * one.difference_bg
        precision_bg += weight_bg
    square_bg = np.divide(weighted_bg**2, precision_bg, out=np.zeros_like(weighted_bg), where=precision_bg > 0)
    largest_b = square_bg.max(1)
    smaller_b = np.minimum(_ranked(largest_b), _ranked(square_bg.sum(1)))
    p = float((smaller_b <= smaller_b[0]).mean())
    changed_g = (largest_b[:, None] >= square_bg[0]).mean(0) <= GENE_LEVEL
    return p, changed_g


def _ranked(statistic_b: np.ndarray) -> np.ndarray:
    """Compute the p-value of every labeling: the fraction of all labelings whose statistic is at least as large."""
    result: np.ndarray = rankdata(-statistic_b, method="max") / len(statistic_b)
    return result
