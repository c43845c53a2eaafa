"""What log-normalised counts average to, by the likelihood that the counts come from.

Changes of expression are told, and judged, in means of log(1 + 10⁴·x/library), as biologists look at them. The mean of
a logarithm is not the logarithm of a mean: of a gene that a cell shows once or not at all it is nearly a probability.
So it is summed over the counts that a negative binomial gives.

Shapes: n cells, g genes.
"""

from __future__ import annotations

import torch
from torch import Tensor

TARGET = 1e4
# Counts that are summed over one by one; all larger ones are put at their mean, where the logarithm hardly bends.
_COUNTS = 48


def mean_log1p(mean_ng: Tensor, theta_g: Tensor | None, keep_ng: Tensor, scale_n: Tensor) -> Tensor:
    """E[log(1 + s·x)] of zero-inflated negative binomial counts, shape (n, g).

    Parameters
    ----------
    mean_ng
        μ, float64.
    theta_g
        Inverse dispersions; None for a Poisson.
    keep_ng
        Probability that a count is not a technical zero.
    scale_n
        s of each cell.

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
    mass_ng, first_ng, result_ng = pmf_ng.clone(), torch.zeros_like(mean_ng), torch.zeros_like(mean_ng)
    for x in range(1, _COUNTS):
        pmf_ng = pmf_ng * (mean_ng / x if theta_g is None else ratio_ng * ((x - 1 + theta_g) / x))
        mass_ng += pmf_ng
        first_ng += x * pmf_ng
        result_ng += pmf_ng * torch.log1p(scale_n1 * x)
    rest_ng = (1 - mass_ng).clamp(min=0)
    # Below rounding there is no tail whose mean could be told.
    above_ng = torch.where(rest_ng > 1e-9, (mean_ng - first_ng) / rest_ng.clamp(min=1e-9), mean_ng)
    result_ng += rest_ng * torch.log1p(scale_n1 * above_ng.clamp(min=_COUNTS))
    return result_ng * keep_ng
