"""The likelihood of counts on a CPU: one pass over the genes of a cell computes the likelihood and its gradients.

The formulas are those of `model/count_nll.py`. The compiled code processes one cell at a time, so that all values of
the cell stay in the processor's cache. The code first evaluates all genes as if every count were zero, and then
corrects the result for the sparse nonzero counts. Cells are divided among as many threads as torch uses.

Letters in array shapes: n cells, g genes, m nonzeros, p parts of the cells, one for each thread.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch
from numpy import float32, float64, int32, int64, uint16, uint32
from torch import Tensor

from scvae_cli.data.minibatches import Nonzeros
from scvae_cli.model.compiled.vector_math import (
    LANES,
    compiled,
    dot,
    exp,
    largest,
    log,
    log1p_given,
    sum_of_logs,
    total,
)
from scvae_cli.model.gradients import Gradients
from scvae_cli.model.log_gamma import TABLE_COUNTS
from scvae_cli.parallel import array, by_address, use_threads

_POISSON, _NB, _ZINB = range(3)
_ZERO, _ONE = float32(0), float32(1)
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def fused_nll(
    raw_ng: Tensor, bias_g: Tensor, log_theta_g: Tensor | None, library_n: Tensor, nonzeros: Nonzeros,
    *, with_gradient: bool, narrow: bool = False,
) -> tuple[Tensor, Gradients | None]:  # fmt: skip
    """Compute the same results as `model.count_nll.dense_nll` from the nonzero counts only, in float32 on the CPU.

    With `narrow`, the gradient with respect to the raw outputs is in bfloat16 (16 bits).
    """
    n_cells, n_outputs = raw_ng.shape
    raw, bias = array(raw_ng), array(bias_g)
    if log_theta_g is None:
        kind, log_theta = _POISSON, np.zeros(n_outputs, float32)
    else:
        kind, log_theta = (_NB if n_outputs == len(log_theta_g) else _ZINB), array(log_theta_g)
    nll_n = np.empty(n_cells)
    n_parts = use_threads()
    d_bias, d_log_theta = np.zeros((n_parts, n_outputs), float32), np.zeros((n_parts, len(log_theta)), float32)
    row_start, gene = (array(indices, torch.int32) for indices in (nonzeros.row_start, nonzeros.gene))
    value = array(nonzeros.value)
    # numba has no bfloat16, and compiles a function again for every type of its arguments. There is thus one array for
    # each precision, and the array that is not needed is empty.
    d_wide, d_narrow = np.empty((n_cells, 0), float32), np.empty((n_cells, 0), uint16)
    shape = raw_ng.shape if with_gradient else (n_cells, 0)
    d_raw_ng = torch.empty(shape, dtype=torch.bfloat16 if narrow else torch.float32)
    if narrow:
        d_narrow = d_raw_ng.view(torch.uint16).numpy()
    else:
        d_wide = d_raw_ng.numpy()
    n_counts = min(TABLE_COUNTS, int(value.max(initial=0))) + 1
    table, slopes = np.zeros((2, n_counts, len(log_theta)), float32)
    _fill_tables(kind, log_theta, table, slopes)
    _all_rows(
        _rows_at(), n_parts, kind, with_gradient, raw, bias, log_theta, array(library_n), row_start, gene,
        value, table, slopes, nll_n, d_wide, d_narrow, d_bias, d_log_theta,
    )  # fmt: skip
    if not with_gradient:
        return torch.from_numpy(nll_n), None
    d_log_theta_g = None if kind == _POISSON else torch.from_numpy(d_log_theta.sum(0))
    return torch.from_numpy(nll_n), (d_raw_ng, torch.from_numpy(d_bias.sum(0)), d_log_theta_g)


@compiled()
def _rows(
    part: int, n_parts: int, kind: int, with_gradient: bool, raw_ng: Any, bias_g: Any, log_theta_g: Any,
    library_n: Any, row_start: Any, gene_m: Any, value_m: Any, table: Any, slopes: Any, nll_n: Any, d_wide_ng: Any,
    d_narrow_ng: Any, d_bias_pg: Any, d_log_theta_pg: Any,
) -> None:  # fmt: skip
    """Compute the likelihood and its gradients for one part of the cells.

    Gradients that are sums over cells are added to row `part` of `d_bias_pg` and `d_log_theta_pg`.
    """
    n_cells, n_genes, last_row = len(raw_ng), len(log_theta_g), float32(len(table) - 1)
    weight = float32(1.0 / n_cells)
    bias, zero_bias = bias_g[:n_genes], bias_g[n_genes:]
    d_bias, d_zero_bias = d_bias_pg[part, :n_genes], d_bias_pg[part, n_genes:]
    d_log_theta_g = d_log_theta_pg[part]
    theta, inverse_theta = _filled(n_genes, _ONE), _filled(n_genes, _ONE)
    if kind != _POISSON:
        for g in range(n_genes):
            theta[g] = exp(log_theta_g[g])
            inverse_theta[g] = exp(-log_theta_g[g])
    # The arrays are allocated separately, and no loop writes to more than two of the arrays. If arrays were allocated
    # together, the compiler would not detect that the arrays do not overlap, and would not vectorize the loops.
    logits, mu, log1p_r = np.empty(n_genes, float32), np.empty(n_genes, float32), _filled(n_genes, _ZERO)
    per_1r, d_eta = _filled(n_genes, _ONE), np.empty(n_genes, float32)
    from_nb, kept, per_1h = _filled(n_genes, _ONE), np.empty(n_genes, float32), np.empty(n_genes, float32)
    ratio = _filled(-(-n_genes // LANES) * LANES, _ONE)

    for i in range(part * n_cells // n_parts, (part + 1) * n_cells // n_parts):
        raw, zero_raw = raw_ng[i, :n_genes], raw_ng[i, n_genes:]
        for g in range(n_genes):
            logits[g] = raw[g] + bias[g]
        stored = slice(row_start[i], row_start[i + 1])
        gene, value = gene_m[stored], value_m[stored]
        top = largest(logits)
        for g in range(n_genes):
            mu[g] = exp(logits[g] - top)
        scale = float32(library_n[i] / total(mu))
        shift = float32(np.log(scale)) - top  # η = logit + shift
        for g in range(n_genes):
            mu[g] *= scale
        if kind == _POISSON:
            nll = float64(total(mu))
        else:
            for g in range(n_genes):
                per_1r[g] = _ONE / (_ONE + mu[g] * inverse_theta[g])
            for g in range(n_genes):
                log1p_r[g] = log1p_given(mu[g] * inverse_theta[g], per_1r[g])
            nll = float64(dot(theta, log1p_r))
        if kind == _ZINB:
            # softplus(a) − softplus(h) is max(a, 0) − max(h, 0) plus the logarithm of a ratio. The ratios of many genes
            # are multiplied before the logarithm is taken, so very few logarithms are needed.
            for g in range(n_genes):
                h = zero_raw[g] + zero_bias[g] + theta[g] * log1p_r[g]
                e_h = exp(-abs(h))
                per_1h[g] = _ONE / (_ONE + e_h)
                from_nb[g] = (e_h if h > _ZERO else _ONE) * per_1h[g]  # σ(−h)
            for g in range(n_genes):
                a = zero_raw[g] + zero_bias[g]
                e_a = exp(-abs(a))
                ratio[g] = (_ONE + e_a) * per_1h[g]
                kept[g] = (e_a if a > _ZERO else _ONE) / (_ONE + e_a)  # σ(−a)
            nll += _positive_parts(zero_raw, zero_bias, theta, log1p_r)
            for j in range(len(gene)):
                g = gene[j]
                nll += max(zero_raw[g] + zero_bias[g] + theta[g] * log1p_r[g], _ZERO)
                ratio[g] /= per_1h[g]
                from_nb[g] = _ONE
            nll += sum_of_logs(ratio)
        for j in range(len(gene)):
            g, x = gene[j], value[j]
            nll -= x * (logits[g] + shift - log_theta_g[g] - log1p_r[g]) + table[int32(min(x, last_row)), g]
        has_large = len(value) > 0 and largest(value) > TABLE_COUNTS
        if has_large:
            for j in range(len(gene)):
                if value[j] > TABLE_COUNTS:
                    nll -= _log_gamma_beyond(value[j], log_theta_g[gene[j]], kind)
        nll_n[i] = nll
        if not with_gradient:
            continue

        if kind == _POISSON:
            for g in range(n_genes):
                d_eta[g] = -mu[g]
            for j in range(len(gene)):
                d_eta[gene[j]] += value[j]
        else:
            for g in range(n_genes):
                d_eta[g] = -from_nb[g] * mu[g] * per_1r[g]
            for j in range(len(gene)):
                g = gene[j]
                d_eta[g] += value[j] * per_1r[g]
            for g in range(n_genes):
                d_log_theta_g[g] += (d_eta[g] + from_nb[g] * theta[g] * log1p_r[g]) * weight
            for j in range(len(gene)):
                g = gene[j]
                d_log_theta_g[g] -= theta[g] * slopes[int32(min(value[j], last_row)), g] * weight
            if has_large:
                for j in range(len(gene)):
                    if value[j] > TABLE_COUNTS:
                        g = gene[j]
                        d_log_theta_g[g] -= theta[g] * _slope_beyond(value[j], theta[g]) * weight
        total_share = float32(total(d_eta) / library_n[i])
        for g in range(n_genes):
            d_eta[g] = (mu[g] * total_share - d_eta[g]) * weight
            d_bias[g] += d_eta[g]
        if kind == _ZINB:
            for g in range(n_genes):
                kept[g] = (from_nb[g] - kept[g]) * weight
                d_zero_bias[g] += kept[g]
        _store(d_eta, kept, d_wide_ng[i], d_narrow_ng[i])


_N, _NG = numba.float32[::1], numba.float32[:, ::1]
_rows_at, _call_rows = by_address(
    _rows,
    (
        numba.int64, numba.int64, numba.int64, numba.boolean, _NG, _N, _N, _N, numba.int32[::1], numba.int32[::1], _N,
        _NG, _NG, numba.float64[::1], _NG, numba.uint16[:, ::1], _NG, _NG,
    ),
)  # fmt: skip


@compiled(parallel=True)
def _all_rows(
    rows_at: int, n_parts: int, kind: int, with_gradient: bool, raw_ng: Any, bias_g: Any, log_theta_g: Any,
    library_n: Any, row_start: Any, gene_m: Any, value_m: Any, table: Any, slopes: Any, nll_n: Any, d_wide_ng: Any,
    d_narrow_ng: Any, d_bias_pg: Any, d_log_theta_pg: Any,
) -> None:  # fmt: skip
    for p in numba.prange(n_parts):
        _call_rows(
            rows_at, int64(p), n_parts, kind, with_gradient, raw_ng, bias_g, log_theta_g, library_n, row_start, gene_m,
            value_m, table, slopes, nll_n, d_wide_ng, d_narrow_ng, d_bias_pg, d_log_theta_pg,
        )  # fmt: skip


@compiled()
def _filled(n: int, value: Any) -> Any:
    """Return an array filled with one number. numba compiles this loop faster than `np.full`."""
    made = np.empty(n, float32)
    for i in range(n):
        made[i] = value
    return made


@compiled()
def _store(values: Any, others: Any, wide: Any, narrow: Any) -> None:
    """Write `values`, and then `others`, to the array that is not empty.

    The array `wide` is in float32, and `narrow` is in bfloat16.
    """
    n = len(values)
    for i in range(min(n, len(narrow))):
        narrow[i] = _bfloat16(values[i])
    rest = narrow[n:]
    for i in range(len(rest)):
        rest[i] = _bfloat16(others[i])
    for i in range(min(n, len(wide))):
        wide[i] = values[i]
    rest_wide = wide[n:]
    for i in range(len(rest_wide)):
        rest_wide[i] = others[i]


@compiled(inline=True)
def _bfloat16(x: Any) -> Any:
    # The number is rounded to the nearest bfloat16 number; ties go to the even number.
    bits = float32(x).view(uint32)
    odd = uint32(uint32(bits >> uint32(16)) & uint32(1))
    return uint16(uint32(bits + uint32(uint32(0x7FFF) + odd)) >> uint32(16))


@compiled(any_order=True)
def _positive_parts(zero_raw: Any, zero_bias: Any, theta: Any, log1p_r: Any) -> Any:
    """Compute the sum of max(a, 0) − max(h, 0) over genes. `model/count_nll.py` defines a and h."""
    result = _ZERO
    for g in range(len(theta)):
        a = zero_raw[g] + zero_bias[g]
        result += max(a, _ZERO) - max(a + theta[g] * log1p_r[g], _ZERO)
    return result


@compiled()
def _fill_tables(kind: int, log_theta_g: Any, table: Any, slopes: Any) -> None:
    """Fill two tables with terms of the log-probability. Each table has shape (counts, g), and contains zeros at first.

    Row x of `table` becomes t = lgΓ(x+θ) − lgΓ(θ) − lgΓ(x+1), and row x of `slopes` becomes the derivative dt/dθ. For a
    Poisson distribution, row x of `table` becomes −lgΓ(x+1), and `slopes` is not used.
    """
    n_genes = len(log_theta_g)
    theta, sums, slope_sums = _filled(n_genes, _ONE), _filled(n_genes, _ZERO), _filled(n_genes, _ZERO)
    if kind != _POISSON:
        for g in range(n_genes):
            theta[g] = exp(log_theta_g[g])
    for j in range(len(table) - 1):
        for g in range(n_genes):
            theta_j = _ONE if kind == _POISSON else theta[g] + float32(j)
            sums[g] += log(theta_j / float32(j + 1))
            slope_sums[g] += _ONE / theta_j
        # The numbers are assigned in a loop, because numba takes seconds to compile an assignment to a slice.
        for g in range(n_genes):
            table[j + 1, g] = sums[g]
            slopes[j + 1, g] = slope_sums[g]


@compiled()
def _log_gamma_beyond(x: Any, log_theta: Any, kind: int) -> Any:
    """Compute by how much the log gamma term of a count x exceeds the last entry of the table."""
    last = float64(TABLE_COUNTS)
    more = _stirling(last + 1.0) - _stirling(x + 1.0)
    if kind != _POISSON:
        theta = np.exp(float64(log_theta))
        more += _stirling(x + theta) - _stirling(last + theta)
    return more


@compiled()
def _slope_beyond(x: Any, theta: Any) -> Any:
    """Compute the derivative of `_log_gamma_beyond` with respect to θ."""
    return _stirling_slope(x + float64(theta)) - _stirling_slope(float64(TABLE_COUNTS) + theta)


@compiled()
def _stirling(y: Any) -> Any:
    """Compute lgΓ(y) for y ≥ 16, where Stirling's series is accurate to 1e-12 (Abramowitz & Stegun 6.1.41)."""
    square = 1.0 / (y * y)
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / y
    return (y - 0.5) * np.log(y) - y + _HALF_LOG_2PI + series


@compiled()
def _stirling_slope(y: Any) -> Any:
    """Compute ψ(y), the derivative of lgΓ(y), for y ≥ 16 (Abramowitz & Stegun 6.3.18)."""
    square = 1.0 / (y * y)
    return np.log(y) - 0.5 / y - square * (1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240)))
