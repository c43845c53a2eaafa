"""The terms of the log-probability of counts that contain the log gamma function lgΓ, computed in plain torch.

No tensor shape depends on the counts, so a training step on a GPU need not wait for the values of the counts.

Nearly all counts are small. The terms of small counts come from a table, because differences between values of lgΓ
would lose precision by cancellation. For counts beyond the table, the difference from the last row of the table is
computed with Stirling's series in float64.

Letters in array shapes: n cells, g genes, c counts in the table, j steps from one count in the table to the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Largest count in the table of log gamma terms, which has one row per count and one column per gene. For arguments of
# 16 or more, Stirling's series is accurate to 1e-12.
TABLE_COUNTS = 16


def log_gamma_terms(x_ng: Tensor, theta_g: Tensor) -> tuple[Tensor, Tensor]:
    """Compute lgΓ(x+θ) − lgΓ(θ) − lgΓ(x+1) and its derivative with respect to θ, each of shape (n, g).

    At x = 0, the term and its derivative are exactly 0. The counts x are whole numbers, in the same floating-point type
    as θ.
    """
    j_j1 = torch.arange(TABLE_COUNTS, dtype=x_ng.dtype, device=x_ng.device).unsqueeze(1)
    theta_jg = theta_g + j_j1
    small_ng = x_ng.clamp(max=TABLE_COUNTS).long()
    value_ng = _running_sums((theta_jg / (j_j1 + 1)).log()).gather(0, small_ng)
    slope_ng = _running_sums(1 / theta_jg).gather(0, small_ng)

    # For counts in the table, the differences of Stirling's series are differences between equal numbers, so they are
    # exactly 0.
    large_ng, wide_g = x_ng.clamp(min=TABLE_COUNTS).double(), theta_g.double()
    first_ng = torch.full_like(large_ng, TABLE_COUNTS)
    more_ng = _stirling(large_ng + wide_g) - _stirling(first_ng + wide_g)
    more_ng -= _stirling(large_ng + 1) - _stirling(first_ng + 1)
    steeper_ng = _stirling_slope(large_ng + wide_g) - _stirling_slope(first_ng + wide_g)
    return value_ng + more_ng.to(x_ng.dtype), slope_ng + steeper_ng.to(x_ng.dtype)


def _running_sums(term_jg: Tensor) -> Tensor:
    """Compute the running sums of the rows, that is, the sums of the first 0, 1, 2, … rows, shape (c, g)."""
    # The running sums are computed with a mask, because torch's cumulative sum on GPUs has no fixed order of additions.
    n = len(term_jg)
    before_cj = torch.ones(n + 1, n, dtype=term_jg.dtype, device=term_jg.device).tril(-1)
    return (before_cj.unsqueeze(2) * term_jg).sum(1)


def _stirling(y: Tensor) -> Tensor:
    """Compute lgΓ(y) up to a constant, for y ≥ 16 (Abramowitz & Stegun 6.1.41)."""
    square = 1 / (y * y)
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / y
    return (y - 0.5) * y.log() - y + series


def _stirling_slope(y: Tensor) -> Tensor:
    """Compute ψ(y), the derivative of lgΓ(y), for y ≥ 16 (Abramowitz & Stegun 6.3.18)."""
    square = 1 / (y * y)
    return y.log() - 0.5 / y - square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
