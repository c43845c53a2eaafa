"""Decoded curves of single genes along a trajectory, compared with the counts of the trajectory's cells.

Letters in array shapes: n cells, t steps, c chosen genes, b bins, q points of a curve.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from scvae_cli.amounts import amount
from scvae_cli.report.page import WIDTH, hatch_off, head, place, shortened, write
from scvae_cli.tools.trajectory.result import Trajectory

N_CURVES = 12
_DECODED, _CELLS = "#0072B2", "#333333"
_BEYOND: dict[str, Any] = {"color": _CELLS, "marker": "s", "markersize": 3, "linestyle": "", "linewidth": 1}
_BEYOND |= {"zorder": 4, "clip_on": False}
_BINS = 400
_MAX_DOTS = 1500
# Means over fewer cells than this number are not shown.
_MIN_CELLS = 5.0

_LEFT, _RIGHT = 0.3, 0.12
_TITLE, _AXIS = 0.22, 0.3
_NAME, _TICKS, _BETWEEN = 0.17, 0.3, 0.14


def smoothed(
    position_n: np.ndarray, value_n: np.ndarray, at_q: np.ndarray, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Smooth values of cells whose positions lie between 0 and 1.

    Returns means and standard errors at the positions `at_q`. Means and errors have shape (q,) and are NaN where there
    are too few cells. The weight of a cell decreases with the distance between the cell and the position in `at_q`, as
    a parabola. Beyond twice `width`, the weight is zero, so that cells on the other side of a gap do not contribute.
    """
    # Cells are first counted in narrow bins, which is fast for a million cells.
    bin_n = np.minimum((position_n * _BINS).astype(int), _BINS - 1)
    n_b, sum_b, squares_b = (
        np.bincount(bin_n, weights=weight_n, minlength=_BINS)
        for weight_n in (np.ones(len(value_n)), value_n, np.square(value_n))
    )
    middle_b = (np.arange(_BINS) + 0.5) / _BINS
    kernel_qb = np.maximum(1 - ((at_q[:, None] - middle_b) / (2 * width)) ** 2, 0)
    total_q = np.maximum(kernel_qb @ n_b, 1e-100)
    mean_q = kernel_qb @ sum_b / total_q
    variance_q = np.maximum(kernel_qb @ squares_b / total_q - mean_q**2, 0)
    # The share is one divided by the effective number of cells.
    share_q = np.square(kernel_qb) @ n_b / np.square(total_q)
    error_q = np.sqrt(variance_q * share_q / np.maximum(1 - share_q, 1e-12))
    few_q = (share_q * _MIN_CELLS > 1) | (kernel_qb @ n_b == 0)
    # Positions with cells on only one side also get NaN.
    few_q |= np.abs(kernel_qb @ (n_b * middle_b) / total_q - at_q) > width
    return np.where(few_q, np.nan, mean_q), np.where(few_q, np.nan, error_q)


def curves_height(n_genes: int) -> float:
    """Return the height of the panel with the curves, in inches."""
    if n_genes == 0:
        return 0.0
    rows = -(-n_genes // _columns(n_genes))
    return _TITLE + rows * (_NAME + _panel_height(n_genes)) + (rows - 1) * _BETWEEN + _AXIS


def draw_curves(
    figure: Figure,
    trajectory: Trajectory,
    chosen: np.ndarray,
    expression_nc: np.ndarray,
    top: float,
) -> None:
    """Draw the gene curves, with the upper edge of the panel at `top` inches."""
    if len(chosen) == 0:
        return
    near = np.flatnonzero(np.isfinite(trajectory.pseudotime_n))
    cells = f"{amount(len(near), 'cell')}" if len(near) else "no cells"
    head(figure, 0.1, top, "c", f"Decoded {'counts' if trajectory.of_counts else 'values'} and {cells}")
    columns = _columns(len(chosen))
    tall = _panel_height(len(chosen))
    full = (WIDTH - _LEFT - _RIGHT) / columns
    drawn: set[str] = set()
    for i, gene in enumerate(chosen):
        row, column = divmod(i, columns)
        above = top + _TITLE + row * (_NAME + tall + _BETWEEN) + _NAME
        axes = place(figure, _LEFT + column * full + _TICKS, above, full - _TICKS, tall)
        axes.set_label(f"gene {trajectory.genes[gene]}")
        value_n = np.asarray(expression_nc[near, i], dtype=np.float64).ravel()
        drawn |= _draw_gene(axes, trajectory, int(gene), near, value_n)
        lowest = i + columns >= len(chosen)
        axes.set(xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"] if lowest else [])
        if lowest:
            axes.set_xlabel("position along the trajectory", labelpad=2)
    middle = top + (_TITLE + curves_height(len(chosen)) - _AXIS) / 2
    unit = "counts at the same library size" if trajectory.of_counts else "values"
    write(figure, 0.13, middle, unit, rotation=90, ha="center", va="center")
    _draw_legend(figure, top, drawn)


def _columns(n_genes: int) -> int:
    return 3 if n_genes in (3, 5, 6, 9) else min(4, max(2, n_genes))


def _panel_height(n_genes: int) -> float:
    return 1.3 if n_genes <= _columns(n_genes) else 0.88


def _draw_gene(axes: Axes, trajectory: Trajectory, gene: int, near: np.ndarray, value_n: np.ndarray) -> set[str]:
    """Draw the curves of one gene. Returns the kinds of symbols drawn for cells, which the legend then explains."""
    drawn = {"cells"} if len(near) else set()
    at_t = trajectory.steps.position_t
    decoded = (trajectory.mean_tg, trajectory.low_tg, trajectory.high_tg)
    mean_t, low_t, high_t = (value_tg[:, gene] for value_tg in decoded)
    top = float(max(high_t.max(), mean_t.max(), 1e-9))
    if len(near):
        position_n = trajectory.pseudotime_n[near]
        at_q = np.linspace(0, 1, 101)
        # The width follows Silverman's rule, with limits that prevent oversmoothing and means over too few cells.
        width = float(np.clip(0.9 * position_n.std() * len(near) ** -0.2, 0.025, 0.1))
        between = (position_n > 0) & (position_n < 1)
        mean_q, error_q = smoothed(position_n[between], value_n[between], at_q, width)
        drawn |= {"mean"} if np.isfinite(mean_q).any() else set()
        top = float(np.nanmax([top, *(mean_q + error_q)]))
        # Cells before the start or beyond the end have position 0 or 1. The mean of these many cells is drawn
        # separately, because it would distort the curve.
        for end in (0, 1):
            at_end = value_n[position_n == end]
            if len(at_end) >= _MIN_CELLS:
                drawn.add("beyond")
                error = at_end.std(ddof=1) / np.sqrt(len(at_end))
                axes.errorbar(end, at_end.mean(), error, gid="beyond", **_BEYOND)
                top = max(top, float(at_end.mean() + error))
        # The axis may end below the highest counts. Single counts of a rare gene lie far above the mean and would
        # flatten the curves.
        top = max(top, min(float(np.quantile(value_n, 0.98)), 2 * top))
        dots = np.arange(len(near))
        if len(dots) > _MAX_DOTS:
            dots = np.random.default_rng(0).choice(dots, _MAX_DOTS, replace=False)
        faint = float(np.clip(60 / len(dots), 0.12, 0.5))
        axes.scatter(
            position_n[dots], value_n[dots], s=3, c=_CELLS, alpha=faint, linewidths=0, rasterized=True, zorder=1
        )
        axes.fill_between(at_q, mean_q - error_q, mean_q + error_q, color=_CELLS, alpha=0.3, linewidth=0, zorder=2)
        axes.plot(at_q, mean_q, color=_CELLS, linewidth=1.0, linestyle=(0, (3, 1.2)), gid="cells", zorder=4)
    axes.fill_between(at_t, low_t, high_t, color=_DECODED, alpha=0.25, linewidth=0, zorder=2)
    axes.plot(at_t, mean_t, color=_DECODED, linewidth=1.5, gid="decoded", zorder=3)
    hatch_off(axes, trajectory.without_cells, above=False)
    axes.set_xlim(-0.02, 1.02)
    if trajectory.of_counts:  # real numbers may be negative
        axes.set_ylim(0, 1.06 * top)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes.tick_params(pad=1.5)
    axes.set_title(shortened(trajectory.genes[gene], 24), style="italic", pad=3)
    return drawn


def _draw_legend(figure: Figure, top: float, drawn: set[str]) -> None:
    entries: list[tuple[str, Any]] = [
        ("decoded, 5–95% band", (Patch(color=_DECODED, alpha=0.25), Line2D([], [], color=_DECODED, linewidth=1.5)))
    ]
    if "mean" in drawn:
        mean = Line2D([], [], color=_CELLS, linewidth=1.0, linestyle=(0, (3, 1.2)))
        entries.append(("cells' mean ± s.e.", (Patch(color=_CELLS, alpha=0.3, linewidth=0), mean)))
    if "beyond" in drawn:
        entries.append(("cells beyond an end", Line2D([], [], **_BEYOND)))
    if "cells" in drawn:
        look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 2.5, "markeredgewidth": 0, "alpha": 0.5}
        entries.append(("cells", Line2D([], [], color=_CELLS, **look)))
    names, signs = zip(*entries, strict=True)
    axes = place(figure, 0, top - 0.1, WIDTH - _RIGHT, 0.2)
    axes.set_axis_off()
    look = {"frameon": False, "borderpad": 0, "borderaxespad": 0, "handletextpad": 0.5, "columnspacing": 1.2}
    axes.legend(signs, names, loc="center right", ncols=len(names), handlelength=1.7, **look)
