"""Expected log-normalized counts under the likelihood of the counts.

Changes of expression are differences of the mean of log(1 + 10⁴·x/library), the usual scale of single-cell analyses,
where x is a count and library is the library size of the cell. The mean of a logarithm is not the logarithm of a mean:
for a gene with at most one count in a cell, the mean of the logarithm is nearly proportional to the probability of that
count. The logarithm is therefore averaged over the distribution of the counts.

Letters in array shapes: n cells, g genes, t pairs of a cell and a gene in which large counts are likely.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TARGET_SUM = 1e4
# The terms of counts below `_COUNTS` are summed one by one. The sum over larger counts is replaced by an integral over
# their logarithm (Gauss–Legendre quadrature with `_POINTS` points). The integral spans `_DEVIATIONS` standard
# deviations on both sides of the mean. The upper limit of the integral is raised by `_BEYOND` times the ratio of
# variance to mean, because gamma distributions have long upper tails. The relative error of the result is at most 2 in
# 10,000.
_COUNTS, _POINTS, _DEVIATIONS, _BEYOND = 32, 20, 4.5, 7.0
# If the probability of all counts of `_COUNTS` or more is below this share of the sum over smaller counts, log(1 + s·x)
# of these counts is replaced by its value at x = `_COUNTS`.
_LEAST_TAIL = 1e-4


def mean_log1p(mean_ng: Tensor, theta_g: Tensor | None, keep_ng: Tensor, scale_n: Tensor) -> Tensor:
    """Compute E[log(1 + s·x)] of zero-inflated negative binomial counts x, shape (n, g).

    The arguments are the means μ (float64), the genes' inverse dispersions, the probabilities that a count is not a
    technical zero, and the scale s of each cell. The inverse dispersions are None for Poisson counts.

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> round(float(mean_log1p(0.001 * one, None, one, one[0])), 6)  # 0.001·log 2, nearly
    0.000693
    """
    scale_n1 = scale_n[:, None]
    if theta_g is None:
        pmf_ng = torch.exp(-mean_ng)
    else:
        pmf_ng = torch.exp(-theta_g * torch.log1p(mean_ng / theta_g))
        ratio_ng = mean_ng / (mean_ng + theta_g)
    mass_ng, result_ng = pmf_ng.clone(), torch.zeros_like(mean_ng)
    for x in range(1, _COUNTS):
        pmf_ng = pmf_ng * (mean_ng / x if theta_g is None else ratio_ng * ((x - 1 + theta_g) / x))
        mass_ng += pmf_ng
        result_ng += pmf_ng * torch.log1p(scale_n1 * x)
    rest_ng = (1 - mass_ng).clamp(min=0)
    log_ng = torch.log1p(scale_n1 * _COUNTS).expand_as(mean_ng).clone()
    n, g = torch.nonzero(rest_ng > _LEAST_TAIL * result_ng, as_tuple=True)
    log_ng[n, g] = _mean_of_tail(mean_ng[n, g], None if theta_g is None else theta_g[g], scale_n[n])
    result_ng += rest_ng * log_ng
    return result_ng * keep_ng


def _mean_of_tail(mean_t: Tensor, theta_t: Tensor | None, scale_t: Tensor) -> Tensor:
    """Compute the mean of log(1 + s·x) given that the count x is at least `_COUNTS`, shape (t,)."""
    # Ratio of variance to mean, with which the width of the distribution grows.
    dispersion_t = torch.ones_like(mean_t) if theta_t is None else 1 + mean_t / theta_t
    reach_t = _DEVIATIONS * (mean_t * dispersion_t).sqrt()
    # An integral that replaces a sum over counts starts half a count lower.
    low_t = (mean_t - reach_t).clamp(min=_COUNTS - 0.5).log()
    high_t = (mean_t + reach_t + _BEYOND * dispersion_t).clamp(min=1.5 * _COUNTS).log()
    mass_t, sum_t = torch.zeros_like(mean_t), torch.zeros_like(mean_t)
    # The constant cancels in the ratio of the two sums, but prevents an overflow of their terms.
    if theta_t is None:
        constant_t, rate_t = -mean_t, -mean_t.log()
    else:
        constant_t = -torch.lgamma(theta_t) - theta_t * torch.log1p(mean_t / theta_t)
        rate_t = torch.log1p(theta_t / mean_t)
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    for point, weight in zip(points.tolist(), weights.tolist(), strict=True):
        log_t = low_t + (high_t - low_t) * (1 + point) / 2
        x_t = log_t.exp()
        # Stirling's series for lgΓ(x + 1), minus log x, because the integral is over log x.
        log_term_t = constant_t - x_t * rate_t - (x_t - 0.5) * log_t + x_t - 1 / (12 * x_t)
        if theta_t is not None:
            y_t = x_t + theta_t
            log_term_t += (y_t - 0.5) * y_t.log() - y_t + 1 / (12 * y_t)
        term_t = weight * log_term_t.exp()
        mass_t += term_t
        sum_t += term_t * torch.log1p(scale_t * x_t)
    # If the tail is almost empty, all terms are 0; then the result is the value at the first count of the tail.
    return torch.where(mass_t > 0, sum_t / mass_t.clamp(min=1e-300), torch.log1p(scale_t * _COUNTS))
