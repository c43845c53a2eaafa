"""Many effects estimated with known errors, of which most are nothing: what they are, given each other.

An effect β is exactly zero, or drawn from one of some normals around zero, of widths on a grid; its estimate is
N(β, error²). How often each happens is fitted to all estimates together by expectation maximisation, after Stephens
(2017, doi:10.1093/biostatistics/kxw041, "ash"). Estimates that are as likely noise are then drawn to zero, clear ones
stay, and the probability that an effect exceeds a threshold is one that errors can be counted with.

Where all estimates are moved by something that none of the effects is, that can be fitted with them: `bulk_shift`.

Shapes: g effects, c components of the prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr, logsumexp

# The grid goes up by this factor, from well below the smallest error to about the largest effect.
_STEP = np.sqrt(2.0)
_BELOW_ERRORS = 0.1
# As many imaginary effects that were zero, which lets doubt go to "nothing happened" (the default of ash).
_NULL_COUNTS = 10.0
_MAX_ROUNDS, _TOLERANCE = 2000, 1e-6
# Of the search for a common shift: updates, rounds of the prior's fit between two, and when it has arrived.
_MAX_SHIFTS, _ROUNDS_A_SHIFT, _STILL = 200, 20, 1e-5
_HALVINGS = 40


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """Posterior of g effects.

    Parameters
    ----------
    weight_c, sd_c
        The fitted prior: shares and standard deviations of its components, the first of which is zero itself.
    log_weight_gc, mean_gc, sd_gc
        Each effect's posterior: log shares, means and standard deviations of its components.
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

    def log_within(self, threshold: float) -> np.ndarray:
        """log P(|β| ≤ threshold), shape (g,): accurate where it is minute."""
        return self._log_sum(_log_interval(-threshold, threshold, self.mean_gc, self.sd_gc))

    def beyond(self, threshold: float) -> np.ndarray:
        """P(|β| > threshold), shape (g,)."""
        beyond_g: np.ndarray = -np.expm1(np.minimum(self.log_within(threshold), 0))
        return beyond_g

    def below(self, value_g: np.ndarray | float) -> np.ndarray:
        """P(β < value), shape (g,)."""
        value_g1 = np.broadcast_to(np.asarray(value_g, dtype=float), len(self.mean_gc))[:, None]
        score_gc = np.empty_like(self.mean_gc)
        score_gc[:, 1:] = (value_g1 - self.mean_gc[:, 1:]) / self.sd_gc[:, 1:]
        # Where β is exactly zero, it is below what is above zero.
        score_gc[:, :1] = np.where(value_g1 > 0, np.inf, -np.inf)
        below_g: np.ndarray = np.exp(self._log_sum(log_ndtr(score_gc)))
        return below_g

    def quantile(self, share: float) -> np.ndarray:
        """The value that β is below with a probability, shape (g,); by bisection."""
        reach_g = (np.abs(self.mean_gc) + 10 * self.sd_gc).max(1) + 1e-9
        low_g, high_g = -reach_g, reach_g
        for _ in range(_HALVINGS):
            middle_g = (low_g + high_g) / 2
            beneath_g = self.below(middle_g) < share
            low_g, high_g = np.where(beneath_g, middle_g, low_g), np.where(beneath_g, high_g, middle_g)
        # What is zero with much probability is so exactly.
        quantile_g: np.ndarray = np.where(np.abs(high_g) <= 1e-6 * reach_g, 0.0, (low_g + high_g) / 2)
        return quantile_g

    def false_sign(self) -> np.ndarray:
        """Local false sign rate: probability that β has not the sign it seems to have, zero included; shape (g,)."""
        zero_g = np.exp(self.log_weight_gc[:, 0])
        below_g = self.below(0.0)
        rate_g: np.ndarray = np.clip(np.minimum(below_g + zero_g, 1 - below_g), 0, 1)
        return rate_g

    def _log_sum(self, log_share_gc: np.ndarray) -> np.ndarray:
        total_g: np.ndarray = logsumexp(self.log_weight_gc + log_share_gc, axis=1)
        return total_g


def shrink(estimate_g: np.ndarray, error_g: np.ndarray) -> Shrunk:
    """Fit the prior to all effects, and tell each one's posterior.

    Parameters
    ----------
    estimate_g, error_g
        Finite, the errors above zero; shape (g,).

    Returns
    -------
    The posterior. It is odd in the estimates: turned signs turn its signs and nothing else.
    """
    sd_c = _grid(estimate_g, error_g)
    variance_gc = error_g[:, None] ** 2 + sd_c**2
    log_fit_gc = _log_fit(estimate_g, variance_gc)
    weight_c = _fitted(log_fit_gc, _MAX_ROUNDS)
    with np.errstate(divide="ignore"):
        log_weight_gc = np.log(weight_c) + log_fit_gc
    log_weight_gc -= logsumexp(log_weight_gc, axis=1, keepdims=True)
    kept_gc = sd_c**2 / variance_gc
    return Shrunk(
        weight_c=weight_c,
        sd_c=sd_c,
        log_weight_gc=log_weight_gc,
        mean_gc=kept_gc * estimate_g[:, None],
        sd_gc=np.sqrt(kept_gc) * error_g[:, None],
    )


def bulk_shift(estimate_g: np.ndarray, error_g: np.ndarray) -> float:
    """What most estimates have in common: the place around which the effects' prior fits them best.

    Alternates between the prior's fit and the shift's, each by expectation maximisation, from the weighted median on.

    Parameters
    ----------
    estimate_g, error_g
        As for `shrink`.
    """
    shift = _weighted_median(estimate_g, 1 / error_g)
    sd_c = _grid(estimate_g - shift, error_g)
    variance_gc = error_g[:, None] ** 2 + sd_c**2
    weight_c: np.ndarray | None = None
    for _ in range(_MAX_SHIFTS):
        log_fit_gc = _log_fit(estimate_g - shift, variance_gc)
        weight_c = _fitted(log_fit_gc, _ROUNDS_A_SHIFT, weight_c)
        share_gc = _relative(log_fit_gc) * weight_c
        share_gc /= share_gc.sum(1, keepdims=True) * variance_gc
        before, shift = shift, float((share_gc.sum(1) * estimate_g).sum() / share_gc.sum())
        if abs(shift - before) < _STILL:
            break
    return shift


def expected_fdr(log_null_g: np.ndarray) -> np.ndarray:
    """Share of false calls expected among each effect and all surer ones, shape (g,).

    Parameters
    ----------
    log_null_g
        Log probability that calling an effect is false.

    >>> expected_fdr(np.log([0.5, 0.1, 0.3])).round(2)
    array([0.3, 0.1, 0.2])
    """
    order = np.argsort(log_null_g, kind="stable")
    fdr_g = np.empty(len(log_null_g))
    fdr_g[order] = np.cumsum(np.exp(log_null_g[order])) / np.arange(1, len(order) + 1)
    return fdr_g


def _grid(estimate_g: np.ndarray, error_g: np.ndarray) -> np.ndarray:
    # What an estimate has beyond its error is at most so wide.
    largest = 2 * np.sqrt(max(float((estimate_g**2 - error_g**2).max(initial=0)), 0.0))
    smallest = _BELOW_ERRORS * float(error_g.min())
    if largest <= smallest:
        largest = 8 * smallest
    n_steps = int(np.ceil(np.log(largest / smallest) / np.log(_STEP)))
    return np.concatenate([[0.0], largest * _STEP ** -np.arange(n_steps, -1, -1.0)])


def _fitted(log_fit_gc: np.ndarray, n_rounds: int, weight_c: np.ndarray | None = None) -> np.ndarray:
    """Shares of the components of greatest penalised likelihood, shape (c,), from some shares or equal ones on."""
    fit_gc = _relative(log_fit_gc)
    counts_c = np.zeros(fit_gc.shape[1])
    counts_c[0] = _NULL_COUNTS
    if weight_c is None:
        weight_c = np.full(fit_gc.shape[1], 1 / fit_gc.shape[1])
    for _ in range(n_rounds):
        # Each effect's shares of the components, summed over the effects.
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
    """Where half of the weight lies on either side; turned signs turn its sign."""
    order = np.argsort(value_g, kind="stable")
    middle_g = np.cumsum(weight_g[order]) - weight_g[order] / 2
    return float(np.interp(weight_g.sum() / 2, middle_g, value_g[order]))


def _log_interval(low: float, high: float, mean_gc: np.ndarray, sd_gc: np.ndarray) -> np.ndarray:
    """log P(low ≤ N(mean, sd²) ≤ high) around zero; a component without width lies at zero, inside."""
    with np.errstate(divide="ignore", invalid="ignore"):
        # By symmetry on the side where the tail is small, so that nothing cancels.
        away_gc = np.abs(mean_gc)
        upper_gc, lower_gc = log_ndtr((high - away_gc) / sd_gc), log_ndtr((low - away_gc) / sd_gc)
        inside_gc = upper_gc + np.log1p(-np.exp(np.minimum(lower_gc - upper_gc, 0)))
    log_inside_gc: np.ndarray = np.where(sd_gc == 0, 0.0, inside_gc)
    return log_inside_gc
