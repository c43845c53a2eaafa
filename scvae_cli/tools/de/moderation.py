"""Variances of many genes from few replicates, moderated by each other.

Each gene's residual variance s² has `df` degrees of freedom. Over the genes, s² is distributed as s0² · F(df, df0).
The moderated variance is the average of s0² and s², weighted by df0 and df, and has df0 + df degrees of freedom (Smyth
2004, doi:10.2202/1544-6115.1027, "limma").

Shapes: g genes.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, ndtri_exp, polygamma
from scipy.stats import norm
from scipy.stats import t as student

# Variances below this share of the median are raised to this share, as in limma. Variances of zero come from few
# counts, and the log of zero would dominate the fit.
_LEAST_OF_MEDIAN = 1e-5
# With more degrees of freedom than this, Student's t distribution is practically a normal distribution.
_MANY = 1e6
_NEAR_ZERO = 1e-4


def moderated(variance_g: np.ndarray, df: float, fitted_to: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the moderated variances, shape (g,), and their degrees of freedom.

    Parameters
    ----------
    variance_g, df
        Residual variance of each gene, and degrees of freedom of these variances.
    fitted_to
        Mask of the genes to which s0² and df0 are fitted, shape (g,).
    """
    known = variance_g[fitted_to]
    log_known = np.log(np.maximum(known, max(_LEAST_OF_MEDIAN * float(np.median(known)), np.finfo(float).tiny)))
    excess = float(log_known.var(ddof=1)) - float(polygamma(1, df / 2))
    center = float(log_known.mean()) - float(digamma(df / 2)) + np.log(df / 2)
    df0 = 2 * _inverse_trigamma(excess) if excess > 0 else _MANY
    typical = np.exp(center + float(digamma(df0 / 2)) - np.log(df0 / 2))
    # The moderated degrees of freedom cannot exceed the sum of the degrees of freedom of all genes.
    total = min(df + df0, df * len(known))
    return (df0 * typical + df * variance_g) / (df0 + df), max(total, df)


def normal_errors(estimate_g: np.ndarray, error_g: np.ndarray, df: float) -> np.ndarray:
    """Return the errors with which a normal distribution gives each estimate the p-value that Student's t gives it.

    A shrinkage that assumes known errors then also accounts for the uncertainty of estimated errors (Lu and Stephens
    2019, arXiv:1901.10679).
    """
    t_g = np.abs(estimate_g / error_g)
    # In the limit of small t, the ratio is that of the two densities at zero.
    ratio_g = np.full(len(t_g), norm.pdf(0) / student.pdf(0, df))
    far = t_g > _NEAR_ZERO
    # The quantile of the log of a probability is accurate far in the tail.
    ratio_g[far] = t_g[far] / -ndtri_exp(student.logsf(t_g[far], df))
    errors_g: np.ndarray = error_g * ratio_g
    return errors_g


def _inverse_trigamma(value: float) -> float:
    """Find the x for which trigamma(x) is the given value, at most `_MANY`."""
    low, high = -15.0, float(np.log(_MANY))
    if value <= polygamma(1, np.exp(high)):
        return _MANY
    if value >= polygamma(1, np.exp(low)):
        return float(np.exp(low))
    return float(np.exp(brentq(lambda log_x: float(polygamma(1, np.exp(log_x))) - value, low, high)))
