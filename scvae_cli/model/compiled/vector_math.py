"""Logarithm and exponential in single precision, in a form that a compiler can vectorize.

The functions are compiled with numba. A vectorized loop processes several numbers at once. A loop that calls a function
of the C library is not vectorized, so it processes one number at a time. The functions of this module are plain
arithmetic without branches, so loops that call them are vectorized. Logarithm and exponential are approximated by the
polynomials of FreeBSD's `logf` and Cephes' `expf`. The relative error of the results is at most 2.4e-7 (2 units in the
last place).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy import float32, int32, uint32

from scvae_cli.model.compiled.mended_cache import mended

F = TypeVar("F", bound=Callable[..., Any])


def compiled(*, parallel: bool = False, any_order: bool = False, inline: bool = False) -> Callable[[F], F]:
    """Return a decorator that compiles a function with numba.

    The compiled function releases Python's global interpreter lock and is cached on disk. The compiled function does
    not check for division by zero, because a loop with checks is not vectorized.

    Parameters
    ----------
    parallel
        Whether `prange` loops run in parallel.
    any_order
        Whether sums may be computed in any order. A sum is vectorized only if its order may change. Functions that
        correct rounding errors rely on the order of the terms and must not set `any_order`.
    inline
        Whether the function is inlined where it is called.
    """
    flags: bool | set[str] = True if any_order else {"contract", "nnan", "ninf", "nsz"}
    options: dict[str, Any] = {
        "parallel": parallel,
        "fastmath": flags,
        "inline": "always" if inline else "never",
        "nogil": True,
        "error_model": "numpy",
    }

    def decorate(function: F) -> F:
        try:
            result: F = mended(numba.njit(cache=True, **options)(function))
        except RuntimeError:
            # If neither the package folder nor the user's cache folder is writable, the function is compiled in every
            # run.
            result = numba.njit(**options)(function)
        return result

    return decorate


_LOG2_E = float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = float32(6.9313812256e-01), float32(9.0580006145e-06)
_ZERO, _HALF, _ONE, _TWO = float32(0.0), float32(0.5), float32(1.0), float32(2.0)
_L1, _L2, _L3, _L4 = (float32(v) for v in (0.66666662693, 0.40000972152, 0.28498786688, 0.24279078841))
_E0, _E1, _E2, _E3, _E4, _E5 = (
    float32(v)
    for v in (5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)
# Bounds to which arguments of `exp` are clipped. Beyond the bounds, the result would be infinite or a denormal number.
_LOWEST, _HIGHEST = float32(-87.0), float32(88.0)
_EXPONENT_BIAS, _MANTISSA_BITS, _MANTISSA = int32(127), uint32(23), uint32(0x007FFFFF)
# Number of products that are computed in parallel, and number of factors in each product. Each factor lies between ½
# and 2, so a product lies between 2⁻¹⁰⁰ and 2¹⁰⁰, well within the range of float32.
LANES, _FACTORS = 64, 100
# The bits of √½, and the bits of 1 minus the bits of √½. Mantissas are normalized to lie between √½ and √2.
_SQRT_HALF, _ONE_MINUS_SQRT_HALF = uint32(0x3F3504F3), uint32(0x3F800000 - 0x3F3504F3)


@compiled(inline=True)
def exp(x: Any) -> Any:
    """Compute eˣ, after clipping x to the range from −87 to 88."""
    x = min(max(x, _LOWEST), _HIGHEST)
    n = np.rint(x * _LOG2_E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _E0 + r * (_E1 + r * (_E2 + r * (_E3 + r * (_E4 + r * _E5))))
    power_of_two = int32((int32(n) + _EXPONENT_BIAS) << _MANTISSA_BITS).view(float32)
    return (p * r * r + r + _ONE) * power_of_two


@compiled(inline=True)
def log(x: Any) -> Any:
    """Compute the natural logarithm of a positive number."""
    return _log(x, _ZERO)


@compiled(inline=True)
def log1p(x: Any) -> Any:
    """Compute log(1 + x) of a nonnegative number x accurately, even if x is close to zero."""
    return log1p_given(x, _ONE / (_ONE + x))


@compiled(inline=True)
def log1p_given(x: Any, per_1x: Any) -> Any:
    """Compute log(1 + x) from x and 1 / (1 + x)."""
    u = _ONE + x
    # The second argument of `_log` corrects the rounding error of 1 + x.
    return _log(u, (x - (u - _ONE)) * per_1x)


@compiled(inline=True)
def _log(x: Any, correction: Any) -> Any:
    # Every result is cast back to 32 bits, because numba widens integers to 64 bits, and a vector register holds only
    # half as many 64-bit integers.
    bits = uint32(float32(x).view(uint32) + _ONE_MINUS_SQRT_HALF)
    exponent = int32(uint32(bits >> _MANTISSA_BITS)) - _EXPONENT_BIAS
    f = uint32(uint32(bits & _MANTISSA) + _SQRT_HALF).view(float32) - _ONE
    k = float32(exponent)
    s = f / (_TWO + f)
    z = s * s
    w = z * z
    series = z * (_L1 + w * _L3) + w * (_L2 + w * _L4)
    half_square = _HALF * f * f
    return s * (half_square + series) + (k * _LN2_LOW + correction) - half_square + f + k * _LN2_HIGH


# The order of the terms in sums, dot products and maxima does not matter, so these functions can be vectorized.
@compiled(any_order=True)
def total(values: Any) -> Any:
    """Compute the sum of an array of numbers."""
    result = _ZERO
    for i in range(len(values)):
        result += values[i]
    return result


@compiled(any_order=True)
def dot(a: Any, b: Any) -> Any:
    """Compute the dot product of two vectors."""
    result = _ZERO
    for i in range(len(a)):
        result += a[i] * b[i]
    return result


@compiled(any_order=True)
def sum_of_logs(values: Any) -> Any:
    """Compute the sum of the natural logarithms of numbers between ½ and 2.

    The number of values must be a multiple of `LANES`.
    """
    result = _ZERO
    product = np.empty(LANES, float32)
    for first in range(0, len(values), LANES * _FACTORS):
        for j in range(LANES):
            product[j] = _ONE
        for start in range(first, min(first + LANES * _FACTORS, len(values)), LANES):
            for j in range(LANES):
                product[j] *= values[start + j]
        for j in range(LANES):
            result += log(product[j])
    return result


@compiled(any_order=True)
def largest(values: Any) -> Any:
    """Return the largest number of an array, or −inf if the array is empty."""
    # There are eight running maxima, because the compiler does not vectorize a single running maximum.
    a = b = c = d = e = f = g = h = float32(-np.inf)
    whole = len(values) // 8 * 8
    for i in range(0, whole, 8):
        a, b, c, d = max(a, values[i]), max(b, values[i + 1]), max(c, values[i + 2]), max(d, values[i + 3])
        e, f, g, h = max(e, values[i + 4]), max(f, values[i + 5]), max(g, values[i + 6]), max(h, values[i + 7])
    for i in range(whole, len(values)):
        a = max(a, values[i])
    return max(max(max(a, b), max(c, d)), max(max(e, f), max(g, h)))
