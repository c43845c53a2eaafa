"""Comparison of groups by replicates, such as donors: each replicate is one sample, regardless of its number of cells.

Cells of one replicate are more similar than cells of different replicates, so cells are not independent. The unit of
the comparison is therefore the mean y = R · X/M of all cells of a replicate in one group (R, X and M are defined in
`group_means`). The relative variance of the mean y is τ² + σ²: τ² is the variance between replicates, and σ² is the
sampling variance of cells and molecules under the model's count distribution. At first, the variance τ² is the same for
all genes, and the weight of a replicate is 1 / (τ² + σ²). Replicates have nearly equal weights for genes with many
counts. For genes with few counts, the weight of a replicate grows with its number of counts. The residual variance of
each gene is then divided by τ² + σ², and the ratio is shrunk toward a value common to all genes (`moderation`). The
more a gene varies between replicates, the larger is the standard error of its change.

If at least half of the replicates are in both groups, the comparison is paired: each difference between the groups
within one replicate is one observation. In a paired comparison, for example, the cells of each
donor are compared before and after a treatment. In a comparison that is not paired, each replicate in a group is one
observation. A comparison that is not paired is adjusted for the batches of the model, if every replicate is in one
batch and every batch contains both groups.

The means of the replicates are compared on the log scale. The ratio ρ is the mean y of a replicate divided by the mean
of the group. The log of ρ is computed as log((½ + Eρ) / (½ + E)), where E = 1/σ² is the effective number of counts of
the replicate. The ½ is added as in voom (Law et al. 2014, doi:10.1186/gb-2014-15-2-r29). The log is used because donors
differ in the expression of a gene by a factor rather than by a constant amount. In simulations, ratios without the log
gave more false discoveries than expected, because a few ratios were very large.

Letters in array shapes: g genes, s samples, i observations, p columns of the design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import chi2

from scvae_cli.tools.de.group_means import SampleSums, correction, least_variance
from scvae_cli.tools.de.moderation import moderated, normal_errors

# Upper limit of the search for τ², in squared natural logs.
_LARGEST_SPREAD = 25.0
# τ² and the moderation are fitted to genes with at least about this number of effective counts in a sample, because the
# residuals of genes with fewer counts are far from normal. If fewer than `_MIN_FITTED` genes have so many counts, all
# genes with counts are used.
_FITTED_COUNTS, _MIN_FITTED = 3.0, 10
# Number that is added to the effective counts of a sample before the log, as in voom.
_HALF_COUNT = 0.5
# Smallest number of degrees of freedom that must be left after terms for batches are added.
_LEAST_FREEDOM = 2


@dataclass(frozen=True, kw_only=True)
class ReplicateDesign:
    """The samples of a comparison between replicates.

    Parameters
    ----------
    cells, reference_cells
        Indices of the cells of each sample, for the group and for the reference. If `paired` is True, samples at the
        same position belong to the same replicate.
    paired
        Whether the same replicates are in both groups, so that the groups are compared within each replicate.
    left_out
        Labels of the replicates that are left out of a paired comparison, because they are in only one group.
    batch_s
        Batch of each sample, first for the samples of the group and then for those of the reference; None if the
        comparison has no terms for batches.
    """

    cells: tuple[np.ndarray, ...]
    reference_cells: tuple[np.ndarray, ...]
    paired: bool
    left_out: tuple[str, ...]
    batch_s: np.ndarray | None


class Comparison(NamedTuple):
    """Log means of both groups, the difference of the log means, and the spread τ between replicates (natural logs)."""

    log_mean_g: np.ndarray
    reference_log_mean_g: np.ndarray
    estimate_g: np.ndarray
    error_g: np.ndarray
    spread: float


def design_of(
    cells: np.ndarray, reference_cells: np.ndarray, replicate_n: np.ndarray, batch_n: np.ndarray | None
) -> ReplicateDesign:
    """Split both groups by replicate, and decide whether the replicates are paired.

    Cells without a replicate belong to no sample. If the replicates are paired, replicates in only one group are left
    out. `replicate_n` and `batch_n` have a value for every cell of the data.
    """
    sides = [_by_label(cells, replicate_n), _by_label(reference_cells, replicate_n)]
    both = [name for name in sides[0] if name in sides[1]]
    every = sides[0].keys() | sides[1].keys()
    paired = 2 * len(both) >= len(every)
    if paired:
        sides = [{name: side[name] for name in both} for side in sides]
    group, reference = sides
    samples = [*group.values(), *reference.values()]
    return ReplicateDesign(
        cells=tuple(group.values()),
        reference_cells=tuple(reference.values()),
        paired=paired,
        left_out=tuple(sorted(every - set(both))) if paired else (),
        batch_s=None if paired or batch_n is None else _batch_term(samples, len(group), batch_n),
    )


def between_replicates(
    group: Sequence[SampleSums], reference: Sequence[SampleSums], design: ReplicateDesign
) -> Comparison:
    """Estimate the change of each gene; the standard error comes from the spread between replicates."""
    sides = (_Side.of(group), _Side.of(reference))
    design_ip = _columns(len(group), len(reference), design)
    df = len(design_ip) - design_ip.shape[1]
    variance_sg = np.concatenate([side.variance_sg for side in sides])
    has_counts = sum(sample.n_counts_g for sample in (*group, *reference)) > 0
    effective_g = np.where(has_counts, 1 / np.median(variance_sg, axis=0), 0.0)
    fitted_to = effective_g >= _FITTED_COUNTS
    if fitted_to.sum() < _MIN_FITTED:
        fitted_to = effective_g > 0
    some = tuple(side.genes(fitted_to) for side in sides)
    target: float = float(chi2.median(df)) / df

    def excess(spread2: float) -> float:
        median = float(np.median(_fit(some, design_ip, spread2, paired=design.paired).residual_g))
        return median - target

    spread2 = 0.0
    if excess(0.0) > 0:
        spread2 = brentq(excess, 0.0, _LARGEST_SPREAD, xtol=1e-5) if excess(_LARGEST_SPREAD) < 0 else _LARGEST_SPREAD
    fit = _fit(sides, design_ip, spread2, paired=design.paired)
    scale_g, df_total = moderated(fit.residual_g, df, fitted_to)
    error_g = normal_errors(fit.estimate_g, np.sqrt(fit.variance_g * scale_g), df_total)
    return Comparison(
        fit.log_mean_2g[0],
        fit.log_mean_2g[1],
        fit.estimate_g,
        np.maximum(error_g, np.sqrt(fit.least_variance_g)),
        float(np.sqrt(spread2)),
    )


class _Side(NamedTuple):
    """The samples of one group. Each sample has sums (see `SampleSums`) and the relative sampling variance σ²."""

    r_sg: np.ndarray
    counted_sg: np.ndarray
    predicted_sg: np.ndarray
    poisson_sg: np.ndarray
    model_sg: np.ndarray
    variance_sg: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[SampleSums]) -> _Side:
        r_sg, counted_sg, predicted_sg = (np.stack([sample.sum_3g[k] for sample in samples]) for k in range(3))
        poisson_sg, model_sg = (np.stack([getattr(s, name) for s in samples]) for name in ("poisson_g", "model_g"))
        # All samples share one correction, so that the variance of a sample does not depend on the sample's own counts.
        n_s1 = np.asarray([sample.n_cells for sample in samples], dtype=float)[:, None]
        n_s1 /= n_s1.sum()
        predicted_g, counted_g = (n_s1 * predicted_sg).sum(0), (n_s1 * counted_sg).sum(0)
        factor_g, _ = correction(counted_g / predicted_g, predicted_g**2 / (n_s1**2 * poisson_sg).sum(0))
        variance_sg = (poisson_sg / factor_g + model_sg - poisson_sg) / predicted_sg**2
        return cls(r_sg, counted_sg, predicted_sg, poisson_sg, model_sg, variance_sg)

    def genes(self, mask: np.ndarray) -> _Side:
        return _Side(*(values_sg[:, mask] for values_sg in self))

    def mean(self, weight_sg: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the group's log mean, the samples' log ratios to this mean, and the variance due to counting alone."""
        share_sg = weight_sg / weight_sg.sum(0)
        r_g, predicted_g = (share_sg * self.r_sg).sum(0), (share_sg * self.predicted_sg).sum(0)
        counted_g, model_g = (share_sg * self.counted_sg).sum(0), (share_sg**2 * self.model_sg).sum(0)
        y_sg = self.r_sg * self.counted_sg / self.predicted_sg
        y_g = (share_sg * y_sg).sum(0)
        factor_g, _ = correction(y_g / r_g, predicted_g**2 / (share_sg**2 * self.poisson_sg).sum(0))
        effective_sg = 1 / self.variance_sg
        relative_sg = np.log((_HALF_COUNT + effective_sg * y_sg / (r_g * factor_g)) / (_HALF_COUNT + effective_sg))
        relative_g = (share_sg * relative_sg).sum(0)
        log_mean_g = np.log(r_g * factor_g) + relative_g
        return log_mean_g, relative_sg - relative_g, least_variance(predicted_g / model_g * counted_g)


class _Fit(NamedTuple):
    """A weighted least-squares fit; the variance of each change is `variance_g` times the residual variance."""

    log_mean_2g: np.ndarray
    estimate_g: np.ndarray
    variance_g: np.ndarray
    residual_g: np.ndarray
    least_variance_g: np.ndarray


def _fit(sides: tuple[_Side, ...], design_ip: np.ndarray, spread2: float, *, paired: bool) -> _Fit:
    group, reference = sides
    if paired:
        weight_ig = 1 / (spread2 + group.variance_sg + reference.variance_sg)
        weights = (weight_ig, weight_ig)
    else:
        weights = (1 / (spread2 + group.variance_sg), 1 / (spread2 + reference.variance_sg))
        weight_ig = np.concatenate(weights)
    means = [side.mean(weight_sg) for side, weight_sg in zip(sides, weights, strict=True)]
    (log_g, value_sg, least_g), (reference_log_g, reference_value_sg, reference_least_g) = means
    observed = (log_g + value_sg, reference_log_g + reference_value_sg)
    z_ig = observed[0] - observed[1] if paired else np.concatenate(observed)
    normal_gpq = np.einsum("ip,ig,iq->gpq", design_ip, weight_ig, design_ip)
    inverse_gpq = np.linalg.inv(normal_gpq)
    coefficient_gp = np.einsum("gpq,iq,ig->gp", inverse_gpq, design_ip, weight_ig * z_ig)
    residual_ig = z_ig - design_ip @ coefficient_gp.T
    df = len(design_ip) - design_ip.shape[1]
    return _Fit(
        log_mean_2g=np.stack([log_g, reference_log_g]),
        estimate_g=coefficient_gp[:, 0],
        variance_g=inverse_gpq[:, 0, 0],
        residual_g=(weight_ig * residual_ig**2).sum(0) / df,
        least_variance_g=least_g + reference_least_g,
    )


def _columns(n_group: int, n_reference: int, design: ReplicateDesign) -> np.ndarray:
    """Return the design matrix, shape (i, p); the first coefficient is the change between the groups."""
    if design.paired:
        return np.ones((n_group, 1))
    in_group_i = np.repeat([1.0, 0.0], [n_group, n_reference])
    others_ip = np.ones((len(in_group_i), 1))
    if design.batch_s is not None:
        # Each column marks the samples of one batch. The sum of the batch columns is the intercept.
        others_ip = (design.batch_s[:, None] == np.unique(design.batch_s)).astype(float)
    return np.column_stack([in_group_i, others_ip])


def _batch_term(samples: Sequence[np.ndarray], n_group: int, batch_n: np.ndarray) -> np.ndarray | None:
    """Return the batch of each sample, or None if the comparison cannot be adjusted for batches."""
    batches = [np.unique(batch_n[cells]) for cells in samples]
    if any(len(of_sample) > 1 for of_sample in batches):
        return None
    batch_s = np.concatenate(batches)
    in_group_s = np.arange(len(samples)) < n_group
    shared = all(len(set(in_group_s[batch_s == batch])) == 2 for batch in set(batch_s))
    freedom = len(samples) - 1 - len(set(batch_s))
    return batch_s if shared and len(set(batch_s)) > 1 and freedom >= _LEAST_FREEDOM else None


def _by_label(cells: np.ndarray, replicate_n: np.ndarray) -> dict[str, np.ndarray]:
    labels = replicate_n[cells]
    return {name: cells[labels == name] for name in sorted(set(labels) - {None})}
