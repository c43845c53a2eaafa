"""Moderate variances that are estimated from few replicates: shrink the variance of each gene toward a common value.

Each gene's residual variance s² has `df` degrees of freedom. Over the genes, the ratio of s² to a common variance s0²
follows an F distribution with df and df0 degrees of freedom. The moderated variance is the average of s0²
and s², weighted by df0 and df, and has df0 + df degrees of freedom (Smyth 2004, doi:10.2202/1544-6115.1027, "limma").

Letters in array shapes: g genes.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import brentq
from scipy.special import digamma, ndtri_exp, polygamma
from scipy.stats import norm
from scipy.stats import t as student

# Smallest allowed variance as a share of the median variance; smaller variances are raised to this limit, as in limma.
# Genes with few counts can have a variance of zero, and the log of zero would dominate the fit.
_LEAST_OF_MEDIAN = 1e-5
# Number of degrees of freedom above which Student's t distribution is practically a normal distribution.
_MANY = 1e6
_NEAR_ZERO = 1e-4


def moderated(variance_g: np.ndarray, df: float, fitted_to: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the moderated variances, shape (g,), and their degrees of freedom.

    Parameters
    ----------
    variance_g, df
        Residual variance of each gene, and degrees of freedom of these variances.
    fitted_to
        Mask of the genes to which the common variance s0² and its degrees of freedom df0 are fitted, shape (g,).
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
    """Enlarge standard errors, so that a normal distribution gives the p-values of Student's t distribution.

    Shrinkage assumes that the standard errors are known. The enlarged errors account for the uncertainty of standard
    errors that are estimated from few replicates (Lu and Stephens 2019, arXiv:1901.10679).
    """
    t_g = np.abs(estimate_g / error_g)
    # For t near 0, the ratio of the two standard errors is the ratio of the two densities at zero.
    ratio_g = np.full(len(t_g), norm.pdf(0) / student.pdf(0, df))
    far = t_g > _NEAR_ZERO
    # `ndtri_exp` computes a quantile from the log of a probability, which is accurate even far in the tail.
    ratio_g[far] = t_g[far] / -ndtri_exp(student.logsf(t_g[far], df))
    errors_g: np.ndarray = error_g * ratio_g
    return errors_g


def _inverse_trigamma(value: float) -> float:
    """Find the x with trigamma(x) = value; the result is at most `_MANY`."""
    low, high = -15.0, float(np.log(_MANY))
    if value <= polygamma(1, np.exp(high)):
        return _MANY
    if value >= polygamma(1, np.exp(low)):
        return float(np.exp(low))
    return float(np.exp(brentq(lambda log_x: float(polygamma(1, np.exp(log_x))) - value, low, high)))
