"""Exact draws of zero-inflated negative binomial counts.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

# NB counts with a mean up to this number are drawn by inversion, which is faster for small means. Other NB counts are
# drawn from a Poisson distribution whose mean is drawn from a gamma distribution.
_INVERSION_MEAN = 3.0
# Inversion tries the counts 0, 1, 2, … up to this number. Larger counts, which occur for small θ, are drawn by scipy.
_STEPS = 256


def draw_zinb(
    mu_ng: FloatArray, theta_g: FloatArray, zero_inflation: FloatArray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Draw zero-inflated negative binomial (NB) counts x from their exact distribution, n × g, float32.

    One uniform number u in [0, 1) is drawn for each count. If u/(1 − π) ≥ 1, where π is the zero-inflation probability,
    the count is zero. Otherwise, u/(1 − π) is again uniform in [0, 1). The probability of a nonzero count is at most (1
    − π)μ, so a count whose number u is at least (1 − π)μ is set to zero without further computation. If the mean μ is
    small, each remaining count is drawn by inversion of the distribution function of the NB. If the mean μ is large,
    each remaining count is drawn from a Poisson distribution with a gamma-distributed mean.

    Parameters
    ----------
    mu_ng, theta_g
        Means μ of the NB, shape (n, g), and inverse dispersions θ > 0 of the NB, shape (g,).
    zero_inflation
        Zero-inflation probabilities π, shape (g,) or (n, g).
    """
    n_cells, n_genes = mu_ng.shape
    mu_ng = np.asarray(mu_ng, np.float32)
    keep = 1.0 - np.asarray(zero_inflation, np.float64)
    # The bound is slightly larger than (1 − π)μ, so that rounding to float32 never makes the bound on P(x > 0) too
    # small.
    bound_ng = mu_ng * (keep * (1 + 1e-6)).astype(np.float32)
    coarse_ng = rng.random((n_cells, n_genes), dtype=np.float32)
    maybe = np.flatnonzero(coarse_ng < bound_ng)
    row, gene = np.divmod(maybe.astype(np.int32) if mu_ng.size < 2**31 else maybe, n_genes)
    mu = mu_ng.ravel()[maybe].astype(np.float64)
    # The uniform float32 numbers are multiples of 2⁻²⁴. A second uniform number fills the gaps, down to 2⁻⁷⁷.
    u = coarse_ng.ravel()[maybe] + rng.random(maybe.size) * 2.0**-24
    u /= keep[gene] if keep.ndim == 1 else keep.ravel()[maybe]
    theta = np.asarray(theta_g, np.float64)[gene]

    counts = np.zeros(maybe.size, np.float32)
    low = np.flatnonzero(mu <= _INVERSION_MEAN)
    counts[low] = _invert_nb(u[low], mu[low], theta[low])
    high = np.flatnonzero((mu > _INVERSION_MEAN) & (u < 1))
    counts[high] = rng.poisson(rng.standard_gamma(theta[high]) * (mu[high] / theta[high]))

    found = np.flatnonzero(counts)
    indptr = np.zeros(n_cells + 1, np.int32 if found.size < 2**31 else np.int64)
    np.cumsum(np.bincount(row[found], minlength=n_cells), out=indptr[1:])
    return sp.csr_matrix((counts[found], gene[found].astype(np.int32), indptr), shape=(n_cells, n_genes))


def _invert_nb(u: FloatArray, mu: FloatArray, theta: FloatArray) -> IntArray:
    """Draw NB(μ, θ) counts by inversion: for each uniform number u, count the integers k ≥ 0 with P(NB(μ, θ) > k) >
    u.
    """
    log_zero = -theta * np.log1p(mu / theta)
    counts = np.zeros(u.size, np.int64)
    alive = np.flatnonzero(u < -np.expm1(log_zero))
    u, mu, theta = u[alive], mu[alive], theta[alive]
    ratio = mu / (mu + theta)
    pmf = np.exp(log_zero[alive])
    tail = -np.expm1(log_zero[alive])
    k = 0
    while alive.size:
        counts[alive] = k + 1
        pmf *= ratio * (k + theta) / (k + 1)
        tail -= pmf
        k += 1
        # Because of rounding, the tail may never reach u ≈ 0; the loop then ends when the probabilities are negligible.
        on = np.flatnonzero((u < tail) & (pmf > 1e-18))
        alive, u, theta, ratio, pmf, tail = alive[on], u[on], theta[on], ratio[on], pmf[on], tail[on]
        if k == _STEPS and alive.size:
            from scipy.stats import nbinom

            counts[alive] = nbinom.isf(u, theta, 1 - ratio)
            break
    return counts
