"""Stirling's series for lgΓ and its derivative, for numbers of at least 16, where it is accurate to 1e-12."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scvae_cli.model.compiled.vector_math import compiled

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@compiled()
def stirling(y: Any) -> Any:
    """Compute lgΓ(y) for y ≥ 16 (Abramowitz & Stegun 6.1.41)."""
    square = 1.0 / (y * y)
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / y
    return (y - 0.5) * np.log(y) - y + _HALF_LOG_2PI + series


@compiled()
def stirling_slope(y: Any) -> Any:
    """Compute ψ(y) for y ≥ 16 (Abramowitz & Stegun 6.3.18)."""
    square = 1.0 / (y * y)
    return np.log(y) - 0.5 / y - square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
