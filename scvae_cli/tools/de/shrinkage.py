"""Shrink the estimates of many effects, most of which are zero; the standard errors are known.

The prior of an effect β is a mixture of a point mass at zero and of normal distributions around zero, whose standard
deviations form a grid. The estimate of β is distributed as N(β, error²). The weights of the components are fitted to
all estimates together by expectation maximization, after Stephens (2017, doi:10.1093/biostatistics/kxw041, "ash"). In
the posterior, estimates that may be noise are shrunk toward zero, and clear estimates hardly change. Calibrated error
rates are computed from the probability that the absolute value of each effect exceeds a threshold.

`common_shift` fits a shift that is added to every effect: each estimate is then distributed as N(β + shift, error²).

Letters in array shapes: g effects, c components of the prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, logsumexp

# Ratio of neighboring standard deviations in the grid. The grid reaches from `_BELOW_ERRORS` times the smallest error
# to an upper bound of the effects' standard deviation.
_STEP = np.sqrt(2.0)
_BELOW_ERRORS = 0.1
# Pseudo-counts of the zero component, which favor "no effect" in case of doubt (the default of ash).
_NULL_COUNTS = 10.0
_MAX_ROUNDS, _TOLERANCE = 2000, 1e-6
# Search for a common shift: largest number of updates, rounds of the prior's fit per update, and tolerance.
_MAX_UPDATES, _ROUNDS_PER_UPDATE, _SHIFT_TOLERANCE = 200, 20, 1e-5
_BISECTIONS = 40


@dataclass(frozen=True, kw_only=True)
class ShrunkEffects:
    """Posterior of g effects.

    Parameters
    ----------
    weight_c, sd_c
        Weights and standard deviations of the components of the fitted prior. The first component is a point mass at
        zero.
    log_weight_gc, mean_gc, sd_gc
        Posterior of each effect: log weights, means and standard deviations of the components.
    """

    weight_c: np.ndarray
    sd_c: np.ndarray
    log_weight_gc: np.ndarray
    mean_gc: np.ndarray
    sd_gc: np.ndarray

    @property
    def null_share(self) -> float:
        """Estimated share of effects that are exactly zero."""
        return float(self.weight_c[0])

    @property
    def mean_g(self) -> np.ndarray:
        """Posterior mean, shape (g,)."""
        mean_g: np.ndarray = (np.exp(self.log_weight_gc) * self.mean_gc).sum(1)
        return mean_g

    @property
    def sd_g(self) -> np.ndarray:
        """Posterior standard deviation, shape (g,)."""
        second_g = (np.exp(self.log_weight_gc) * (self.sd_gc**2 + self.mean_gc**2)).sum(1)
        sd_g: np.ndarray = np.sqrt(np.maximum(second_g - self.mean_g**2, 0))
        return sd_g

    def log_probability_within(self, threshold: float) -> np.ndarray:
        """Compute log P(|β| ≤ threshold), shape (g,); the result is accurate even if the probability is tiny."""
        log_share_gc = self.log_weight_gc + _log_within(threshold, self.mean_gc, self.sd_gc)
        log_within_g: np.ndarray = logsumexp(log_share_gc, axis=1)
        return log_within_g

    def probability_beyond(self, threshold: float) -> np.ndarray:
        """Compute P(|β| > threshold), shape (g,)."""
        beyond_g: np.ndarray = -np.expm1(np.minimum(self.log_probability_within(threshold), 0))
        return beyond_g

    def probability_below(self, value_g: np.ndarray | float) -> np.ndarray:
        """Compute P(β < value), shape (g,)."""
        value_g1 = np.broadcast_to(np.asarray(value_g, dtype=float), len(self.mean_gc))[:, None]
        score_gc = np.empty_like(self.mean_gc)
        score_gc[:, 1:] = (value_g1 - self.mean_gc[:, 1:]) / self.sd_gc[:, 1:]
        # The point mass at zero is below every value above zero.
        score_gc[:, :1] = np.where(value_g1 > 0, np.inf, -np.inf)
        below_g: np.ndarray = np.exp(logsumexp(self.log_weight_gc + log_ndtr(score_gc), axis=1))
        return below_g

    def quantile(self, share: float) -> np.ndarray:
        """Find, by bisection, the value below which β lies with probability `share`, shape (g,)."""
        reach_g = (np.abs(self.mean_gc) + 10 * self.sd_gc).max(1) + 1e-9
        low_g, high_g = -reach_g, reach_g
        for _ in range(_BISECTIONS):
            middle_g = (low_g + high_g) / 2
            too_low_g = self.probability_below(middle_g) < share
            low_g, high_g = np.where(too_low_g, middle_g, low_g), np.where(too_low_g, high_g, middle_g)
        # A quantile inside the point mass is exactly zero.
        quantile_g: np.ndarray = np.where(np.abs(high_g) <= 1e-6 * reach_g, 0.0, (low_g + high_g) / 2)
        return quantile_g

    def false_sign_rate(self) -> np.ndarray:
        """Compute the probability that β is 0 or has the less probable of the two signs, shape (g,)."""
        zero_g = np.exp(self.log_weight_gc[:, 0])
        below_g = self.probability_below(0.0)
        rate_g: np.ndarray = np.clip(np.minimum(below_g + zero_g, 1 - below_g), 0, 1)
        return rate_g


def shrink(estimate_g: np.ndarray, error_g: np.ndarray) -> ShrunkEffects:
    """Fit the prior to all estimates, and return the posterior of each effect.

    If the signs of all estimates are flipped, the signs of all effects in the posterior are flipped too.

    Parameters
    ----------
    estimate_g, error_g
        Estimates, and standard errors of the estimates, shape (g,). All values are finite, and the standard errors are
        above zero.
    """
    sd_c = _grid(estimate_g, error_g)
    variance_gc = error_g[:, None] ** 2 + sd_c**2
    log_fit_gc = _log_fit(estimate_g, variance_gc)
    weight_c = _fitted(log_fit_gc, _MAX_ROUNDS)
    with np.errstate(divide="ignore"):
        log_weight_gc = np.log(weight_c) + log_fit_gc
    log_weight_gc -= logsumexp(log_weight_gc, axis=1, keepdims=True)
    shrinkage_gc = sd_c**2 / variance_gc
    return ShrunkEffects(
        weight_c=weight_c,
        sd_c=sd_c,
        log_weight_gc=log_weight_gc,
        mean_gc=shrinkage_gc * estimate_g[:, None],
        sd_gc=np.sqrt(shrinkage_gc) * error_g[:, None],
    )


def common_shift(estimate_g: np.ndarray, error_g: np.ndarray) -> float:
    """Find the shift that most estimates share: the center around which the prior fits the estimates best.

    The parameters are those of `shrink`. The prior and the shift are fitted in turn, both by expectation maximization.
    The first value of the shift is the median of the estimates, weighted by 1/error.
    """
    shift = _weighted_median(estimate_g, 1 / error_g)
    sd_c = _grid(estimate_g - shift, error_g)
    variance_gc = error_g[:, None] ** 2 + sd_c**2
    weight_c: np.ndarray | None = None
    for _ in range(_MAX_UPDATES):
        log_fit_gc = _log_fit(estimate_g - shift, variance_gc)
        weight_c = _fitted(log_fit_gc, _ROUNDS_PER_UPDATE, weight_c)
        share_gc = _relative(log_fit_gc) * weight_c
        share_gc /= share_gc.sum(1, keepdims=True) * variance_gc
        before, shift = shift, float((share_gc.sum(1) * estimate_g).sum() / share_gc.sum())
        if abs(shift - before) < _SHIFT_TOLERANCE:
            break
    return shift


def expected_fdr(log_null_g: np.ndarray) -> np.ndarray:
    """Compute the expected share of false calls if each effect is called together with all more certain effects.

    An effect is called if it is reported as larger than a threshold. `log_null_g`, shape (g,), contains for each effect
    the log probability that its call is false.

    >>> expected_fdr(np.log([0.5, 0.1, 0.3])).round(2)
    array([0.3, 0.1, 0.2])
    """
    order = np.argsort(log_null_g, kind="stable")
    fdr_g = np.empty(len(log_null_g))
    fdr_g[order] = np.cumsum(np.exp(log_null_g[order])) / np.arange(1, len(order) + 1)
    return fdr_g


def _grid(estimate_g: np.ndarray, error_g: np.ndarray) -> np.ndarray:
    # Upper bound of the effects' standard deviation, from the estimate that exceeds its standard error the most.
    largest = 2 * np.sqrt(max(float((estimate_g**2 - error_g**2).max(initial=0)), 0.0))
    smallest = _BELOW_ERRORS * float(error_g.min())
    if largest <= smallest:
        largest = 8 * smallest
    n_steps = int(np.ceil(np.log(largest / smallest) / np.log(_STEP)))
    return np.concatenate([[0.0], largest * _STEP ** -np.arange(n_steps, -1, -1.0)])


def _fitted(log_fit_gc: np.ndarray, n_rounds: int, weight_c: np.ndarray | None = None) -> np.ndarray:
    """Fit the component weights that maximize the penalized likelihood, shape (c,).

    The fit starts from `weight_c`, or from equal weights if `weight_c` is None.
    """
    fit_gc = _relative(log_fit_gc)
    counts_c = np.zeros(fit_gc.shape[1])
    counts_c[0] = _NULL_COUNTS
    if weight_c is None:
        weight_c = np.full(fit_gc.shape[1], 1 / fit_gc.shape[1])
    for _ in range(n_rounds):
        # Responsibilities of the components, summed over the effects.
        total_c = weight_c * ((1 / (fit_gc @ weight_c)) @ fit_gc) + counts_c
        before_c, weight_c = weight_c, total_c / total_c.sum()
        if np.abs(weight_c - before_c).max() < _TOLERANCE:
            break
    return weight_c


def _log_fit(estimate_g: np.ndarray, variance_gc: np.ndarray) -> np.ndarray:
    log_fit_gc: np.ndarray = -0.5 * (np.log(variance_gc) + estimate_g[:, None] ** 2 / variance_gc)
    return log_fit_gc


def _relative(log_fit_gc: np.ndarray) -> np.ndarray:
    fit_gc: np.ndarray = np.exp(log_fit_gc - log_fit_gc.max(1, keepdims=True))
    return fit_gc


def _weighted_median(value_g: np.ndarray, weight_g: np.ndarray) -> float:
    """Compute the weighted median; if the signs of all values are flipped, the sign of the median is flipped too."""
    order = np.argsort(value_g, kind="stable")
    middle_g = np.cumsum(weight_g[order]) - weight_g[order] / 2
    return float(np.interp(weight_g.sum() / 2, middle_g, value_g[order]))


def _log_within(threshold: float, mean_gc: np.ndarray, sd_gc: np.ndarray) -> np.ndarray:
    """Compute log P(|b| ≤ threshold) for b ~ N(mean, sd²); the result is 0 where sd is 0 (the point mass at zero)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # By symmetry, the probability can be computed on the side where the tail is small, to avoid cancellation.
        away_gc = np.abs(mean_gc)
        upper_gc, lower_gc = (log_ndtr((edge - away_gc) / sd_gc) for edge in (threshold, -threshold))
        inside_gc = upper_gc + np.log1p(-np.exp(np.minimum(lower_gc - upper_gc, 0)))
    log_inside_gc: np.ndarray = np.where(sd_gc == 0, 0.0, inside_gc)
    return log_inside_gc
