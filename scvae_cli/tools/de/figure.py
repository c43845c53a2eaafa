"""The figure of a comparison: a volcano plot, 90% intervals of the top genes, and false discovery rates.

Letters in array shapes: g genes, t tested genes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import OFF, WIDTH, fitted, head, place, shortened, text_width
from scvae_cli.tools.de.result import DifferentialExpression

_HEIGHT, _TOP, _PANEL = 3.3, 0.3, 2.55
_LEFTS, _WIDTHS = (0.5, 3.75, 6.1), (2.5, 1.5, 1.25)
_GENE, _UP, _DOWN, _LINE = "#B0B0B0", OFF, "#0072B2", "#D9D9D9"
_MOST_LABELS, _N_INTERVALS, _NAME, _NAME_SIZE = 30, 20, 14, 6.0
# Largest widths of names in inches: of the two groups in the title, and of a gene beside its interval.
_NAME_IN_TITLE, _NAME_ASIDE = 1.0, 0.66
# Distance between a dot and the name of its gene, as a fraction of the width of the axes.
_ASIDE = 0.015
_INTERVALS = {"bound": "Largest certain changes", "probability": "Most certain changes", "change": "Largest changes"}


def de_figure(result: DifferentialExpression) -> Figure:
    """Draw a figure with three panels; the figure is not registered with pyplot, so save it with `save_figure`."""
    contrast = result.contrast
    title = " against ".join(fitted(name, _NAME_IN_TITLE, 7) for name in (contrast.group, contrast.reference))
    with house_style():
        figure = Figure((WIDTH, _HEIGHT))
        panels = []
        for letter, left, width, text in zip(
            "abc", _LEFTS, _WIDTHS, (title, _INTERVALS[result.options.sort], "Calls and false discoveries"), strict=True
        ):
            head(figure, left - (0.95 if letter == "b" else 0.4), 0.14, letter, text)
            panels.append(place(figure, left, _TOP, width, _PANEL))
            panels[-1].set_label(text)
        _draw_volcano(panels[0], result)
        _draw_intervals(panels[1], result)
        _draw_calls(panels[2], result)
    return figure


def _draw_volcano(axes: Axes, result: DifferentialExpression) -> None:
    order = result.order
    change_t, height_t = result.change_g[order], result.certainty_g[order]
    called_t = result.called[order]
    for mask_t, color, size in (
        (~called_t, _GENE, 4),
        (called_t & (change_t < 0), _DOWN, 8),
        (called_t & (change_t > 0), _UP, 8),
    ):
        axes.scatter(change_t[mask_t], height_t[mask_t], s=size, color=color, linewidth=0, rasterized=True, zorder=3)
    of = "relative to most genes" if result.centre == "bulk" else "of the share of all counts"
    axes.set_xlabel(f"change (log2) {of}")
    axes.set_ylabel(f"−log10 P(|change| ≤ {result.options.threshold:g})")
    # The axis has a square-root scale. On a linear scale, a few very certain genes would press all others to the
    # bottom.
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    top = max(float(height_t.max(initial=0)), 1.5)
    axes.set_ylim(0, top * 1.12)
    ticks = [tick for tick in (0, 1, 3, 10, 30, 100, 300, 1000) if tick <= top]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    named = [g for g in result.ranked if result.called[g]][:_MOST_LABELS]
    # Leave space for the names of genes on both sides.
    least = max(2 * result.options.threshold, 0.5)
    left, right = (max(float((side * change_t).max(initial=0)), least) for side in (-1, 1))
    before, after = (
        text_width([_short(result, g) for g in named if (result.change_g[g] > 0) == up], _NAME_SIZE) / _WIDTHS[0]
        for up in (False, True)
    )
    before, after = max(before + 2 * _ASIDE, 0.12), max(after + 2 * _ASIDE, 0.12)
    span = (left + right) / (1 - before - after)
    axes.set_xlim(-left - before * span, right + after * span)
    for side in (-1, 1) if result.options.threshold else ():
        axes.axvline(side * result.options.threshold, color=_LINE, linewidth=0.8, zorder=1)
    _label(axes, result, named)


def _short(result: DifferentialExpression, gene: int) -> str:
    return shortened(result.genes[gene], _NAME)


def _label(axes: Axes, result: DifferentialExpression, genes: list[int]) -> None:
    """Write the names of `genes` beside their dots; omit a name that would overlap the name of an earlier gene."""
    (left, right), (_, top) = axes.get_xlim(), axes.get_ylim()
    # Height of a line, as a share of the axes.
    line = 0.036
    placed: list[tuple[float, float, float]] = []
    for g in genes:
        name = _short(result, g)
        side = 1 if result.change_g[g] > 0 else -1
        start = (result.change_g[g] - left) / (right - left) + _ASIDE * side
        y = math.sqrt(result.certainty_g[g] / top)
        begin, end = sorted((start, start + side * text_width([name], _NAME_SIZE) / _WIDTHS[0]))
        if any(abs(y - row) < line and begin < until and since < end for row, since, until in placed):
            continue
        placed.append((y, begin, end))
        font: dict[str, Any] = {"ha": "left" if side > 0 else "right", "va": "center_baseline", "zorder": 4}
        axes.text(start, y, name, transform=axes.transAxes, size=_NAME_SIZE, **font)


def _draw_intervals(axes: Axes, result: DifferentialExpression) -> None:
    genes = result.ranked[:_N_INTERVALS]
    for row, g in enumerate(genes):
        color = (_UP if result.change_g[g] > 0 else _DOWN) if result.called[g] else "#606060"
        axes.plot([result.low_g[g], result.high_g[g]], [row, row], color=color, linewidth=1.4, zorder=3)
        axes.plot(result.change_g[g], row, "o", color=color, markersize=3, zorder=4)
        axes.plot(result.raw_g[g], row, "|", color="black", markersize=5, zorder=5)
    axes.axvline(0, color=_LINE, linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(genes)), [fitted(result.genes[g], _NAME_ASIDE, _NAME_SIZE) for g in genes])
    axes.tick_params(axis="y", length=0, labelsize=_NAME_SIZE)
    axes.set(ylim=(len(genes) + 0.9, -0.7), xlabel="change (log2), 90% interval")
    axes.plot([], [], "|", color="black", markersize=5, label="raw ratio")
    axes.legend(frameon=False, loc="lower right", handlelength=0.8, borderaxespad=0)


def _draw_calls(axes: Axes, result: DifferentialExpression) -> None:
    fdr_t = result.expected_fdr_g[result.order]
    number_t = np.arange(1, len(fdr_t) + 1)
    axes.plot(number_t, fdr_t, color="black", linewidth=1)
    n_called = int(result.called.sum())
    axes.axhline(result.options.fdr, color=_LINE, linewidth=0.8, zorder=1)
    if n_called:
        axes.plot(n_called, fdr_t[n_called - 1], "o", color=_UP, markersize=4, clip_on=False, zorder=4)
    axes.text(
        0.03, 0.97, f"{n_called:,} called\nat FDR {result.options.fdr:g}", transform=axes.transAxes, va="top", color=_UP
    )
    axes.set(
        xlim=(0, min(len(fdr_t), max(4 * n_called, _MOST_LABELS))),
        ylim=(0, 1),
        xlabel="number of genes called",
        ylabel="expected false discovery rate",
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
