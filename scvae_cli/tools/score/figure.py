"""The figure of scores: p-values of the cells, scores by library size, and positions of the anomalies.

Letters in array shapes: n cells, m simulated cells, d bins of library size.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from scvae_cli.amounts import amount
from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import OFF, WIDTH, head, place, text_width
from scvae_cli.tools.score.result import Scores

_HEIGHT, _TOP, _TALL, _WIDE = 2.75, 0.3, 2.0, 1.95
_GRAY, _BLUE, _ANOMALY = "#8C8C8C", "#0072B2", OFF
_P_BINS = 20
_MAX_DOTS = 20_000
# Minimum number of simulated cells in a bin of library size, so that the quantiles are precise; largest number of bins.
_CELLS_PER_BIN, _MAX_BINS = 200, 12
# Least distance between labels of ticks, in inches.
_BETWEEN_TICKS = 0.12
_SCORE_LABEL = "score (s.d. worse than expected)"


def score_figure(scores: Scores, xy_n2: np.ndarray, names: tuple[str, str], fdr: float) -> Figure:
    """Draw scores in three panels; the figure is not registered with pyplot, so save it with `save_figure`.

    The last panel shows the cells at `xy_n2`, with `names` as axis labels. Anomalies are the cells that are significant
    at the false discovery rate `fdr`.
    """
    is_anomaly_n = scores.anomalies(fdr)
    with house_style():
        figure = Figure((WIDTH, _HEIGHT))
        lefts = (0.42, 3.0, 5.45)
        # Real numbers have no library size: the library size of every cell is 1.
        has_library = bool((scores.library != 1).any())
        titles = ("p-values", f"Score by {'library size' if has_library else 'reconstruction'}", "Anomalies")
        parts = []
        for letter, left, title in zip("abc", lefts, titles, strict=True):
            head(figure, left - 0.32, 0.14, letter, title)
            parts.append(place(figure, left, _TOP, _WIDE, _TALL))
            parts[-1].set_label(title)
        _draw_p_values(parts[0], scores)
        if has_library:
            _draw_by_library(parts[1], scores, is_anomaly_n)
        else:
            _draw_dots(parts[1], np.column_stack([scores.reconstruction, scores.anomaly_score]), is_anomaly_n)
            parts[1].set(xlabel="E[log p(x|z)], nats", ylabel=_SCORE_LABEL)
        _draw_plane(parts[2], xy_n2, names, is_anomaly_n, fdr)
    return figure


def library_quantiles(library_m: np.ndarray, score_m: np.ndarray, shares: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    """Compute the median library size and quantiles of the scores, in bins of equally many simulated cells.

    The median library sizes have shape (d,), and the quantiles have shape (d, number of `shares`).
    """
    order = np.argsort(library_m, kind="stable")
    bins = np.array_split(order, int(np.clip(len(order) // _CELLS_PER_BIN, 1, _MAX_BINS)))
    library_d = np.asarray([np.median(library_m[cells]) for cells in bins])
    return library_d, np.asarray([np.quantile(score_m[cells], shares) for cells in bins])


def _draw_p_values(axes: Axes, scores: Scores) -> None:
    edges = np.linspace(0, 1, _P_BINS + 1)
    for mask_n, color, label in (
        (~scores.heldout, _GRAY, "other cells" if scores.heldout.any() else "cells"),
        (scores.heldout, _ANOMALY, "held-out cells"),
    ):
        if mask_n.any():
            density = np.histogram(scores.anomaly_p[mask_n], edges)[0] / mask_n.sum() * _P_BINS
            axes.stairs(density, edges, color=color, linewidth=1.1, label=f"{label} ({mask_n.sum():,})")
    axes.axhline(1, color=_BLUE, linewidth=0.9, linestyle="--", label="simulated cells (expected)")
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="p-value", ylabel="density")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.legend(frameon=False, loc="upper left", handlelength=1.4, borderaxespad=0.1)


def _draw_by_library(axes: Axes, scores: Scores, is_anomaly_n: np.ndarray) -> None:
    _draw_dots(axes, np.column_stack([scores.library, scores.anomaly_score]), is_anomaly_n)
    library_d, quantile_d3 = library_quantiles(scores.simulated_library, scores.simulated_score, (0.05, 0.5, 0.95))
    for quantile_d, style in zip(quantile_d3.T, (":", "-", ":"), strict=True):
        axes.plot(library_d, quantile_d, color=_BLUE, linewidth=1.1, linestyle=style, zorder=4)
    handles = [axes.plot([], [], color=_BLUE, linewidth=1.1, linestyle=style)[0] for style in ("-", ":")]
    axes.set(xscale="log", xlabel="library size (counts)", ylabel=_SCORE_LABEL)
    axes.xaxis.set_major_locator(FixedLocator(_library_ticks(*axes.get_xlim())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))
    labels = ["simulated cells: median", "5% and 95% quantiles"]
    axes.legend(handles, labels, frameon=False, loc="upper left", handlelength=1.4, borderaxespad=0.1)


def _library_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic axis whose labels do not overlap: 1, 2, 5, 10, …, or any numbers if these are few.

    >>> _library_ticks(300, 40_000), _library_ticks(410, 590)
    ([500.0, 2000.0, 10000.0], [420.0, 460.0, 500.0, 540.0, 580.0])
    """
    ticks: np.ndarray = np.asarray(LogLocator(subs=(1, 2, 5)).tick_values(low, high))
    if np.count_nonzero((ticks >= low) & (ticks <= high)) < 3:
        ticks = np.asarray(MaxNLocator(8).tick_values(low, high))
    chosen: list[float] = []
    for tick in ticks[(ticks >= low) & (ticks <= high)]:
        inches = np.log(tick / chosen[-1]) / np.log(high / low) * _WIDE if chosen else np.inf
        if inches > text_width([f"{tick:,.0f}"], 6.5) + _BETWEEN_TICKS:
            chosen.append(float(tick))
    return chosen


def _draw_plane(axes: Axes, xy_n2: np.ndarray, names: tuple[str, str], is_anomaly_n: np.ndarray, fdr: float) -> None:
    _draw_dots(axes, xy_n2, is_anomaly_n)
    axes.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[])
    label = f"{amount(is_anomaly_n.sum(), 'anomaly')} (FDR {fdr:g})"
    axes.plot([], [], color=_ANOMALY, marker="o", markersize=3, linestyle="", label=label)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * (high - low))
    axes.legend(frameon=False, loc="upper left", handlelength=0.8, borderaxespad=0.1)


def _draw_dots(axes: Axes, xy_n2: np.ndarray, is_anomaly_n: np.ndarray) -> None:
    """Draw the cells in gray, and all anomalies in front of the gray cells.

    If there are very many gray cells, only some are drawn, at regular intervals of the rows.
    """
    others = xy_n2[~is_anomaly_n]
    others = others[:: -(-len(others) // _MAX_DOTS) or 1]
    anomalies = xy_n2[is_anomaly_n]
    axes.scatter(others[:, 0], others[:, 1], s=3, color=_GRAY, alpha=0.5, linewidth=0, rasterized=True, zorder=2)
    axes.scatter(anomalies[:, 0], anomalies[:, 1], s=7, color=_ANOMALY, linewidth=0, rasterized=True, zorder=3)
