"""Scores in one figure: are the p-values believable, does depth decide, and where are the anomalies?

Shapes: n cells, m simulated cells, d stretches of depth.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import OFF, WIDTH, head, place
from scvae_cli.tools.score.scoring import Scores

_HEIGHT, _TOP, _TALL, _WIDE = 2.75, 0.3, 2.0, 1.95
_CELL, _SIMULATED = "#8C8C8C", "#0072B2"
_BINS = 20
_MAX_DOTS = 20_000
# A stretch of depth shows quantiles of at least so many simulated cells.
_PER_STRETCH, _MAX_STRETCHES = 200, 12


def score_figure(scores: Scores, xy_n2: np.ndarray, names: tuple[str, str], fdr: float) -> Figure:
    """Draw scores.

    Parameters
    ----------
    scores
        Of n cells.
    xy_n2
        The cells in a plane.
    names
        Of its axes.
    fdr
        False discovery rate at which cells are called anomalies.

    Returns
    -------
    A figure of three parts, for `save_figure`; pyplot does not know of it.
    """
    called_n = scores.anomalies(fdr)
    with house_style():
        figure = Figure((WIDTH, _HEIGHT))
        lefts = (0.42, 3.0, 5.45)
        # Real numbers have no depth: all are 1.
        has_depth = bool((scores.library != 1).any())
        by = "Score by depth" if has_depth else "Score by reconstruction"
        titles = ("p-values", by, "Anomalies among the cells")
        parts = []
        for letter, left, title in zip("abc", lefts, titles, strict=True):
            head(figure, left - 0.32, 0.14, letter, title)
            parts.append(place(figure, left, _TOP, _WIDE, _TALL))
            parts[-1].set_label(title)
        _draw_p_values(parts[0], scores)
        if has_depth:
            _draw_depth(parts[1], scores, called_n)
        else:
            _dots(parts[1], np.column_stack([scores.reconstruction, scores.anomaly_score]), called_n)
            parts[1].set(xlabel="E[log p(x|z)], nats", ylabel="standard deviations worse than expected")
        _draw_plane(parts[2], xy_n2, names, called_n, fdr)
    return figure


def depth_quantiles(library_m: np.ndarray, score_m: np.ndarray, shares: tuple[float, ...]) -> tuple[np.ndarray, ...]:
    """Quantiles of simulated scores in stretches of depth that hold as many simulated cells each.

    Returns
    -------
    Median depth of each stretch, shape (d,), and its quantiles, shape (d, number of shares).
    """
    order = np.argsort(library_m, kind="stable")
    parts = np.array_split(order, int(np.clip(len(order) // _PER_STRETCH, 1, _MAX_STRETCHES)))
    depth_d = np.asarray([np.median(library_m[part]) for part in parts])
    return depth_d, np.asarray([np.quantile(score_m[part], shares) for part in parts])


def _draw_p_values(axes: Axes, scores: Scores) -> None:
    edges = np.linspace(0, 1, _BINS + 1)
    for mask_n, colour, label in (
        (~scores.heldout, _CELL, "other cells" if scores.heldout.any() else "cells"),
        (scores.heldout, OFF, "held-out cells"),
    ):
        if mask_n.any():
            share = np.histogram(scores.anomaly_p[mask_n], edges)[0] / mask_n.sum() * _BINS
            axes.stairs(share, edges, color=colour, linewidth=1.1, label=f"{label} ({mask_n.sum():,})")
    axes.axhline(1, color=_SIMULATED, linewidth=0.9, linestyle="--", label="cells of the model")
    axes.set(xlim=(0, 1), ylim=(0, None), xlabel="p-value", ylabel="density")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
    axes.legend(frameon=False, loc="upper left", handlelength=1.4, borderaxespad=0.1)


def _draw_depth(axes: Axes, scores: Scores, called_n: np.ndarray) -> None:
    _dots(axes, np.column_stack([scores.library, scores.anomaly_score]), called_n)
    depth_d, quantile_d3 = depth_quantiles(scores.simulated_library, scores.simulated_score, (0.05, 0.5, 0.95))
    for quantile_d, style in zip(quantile_d3.T, (":", "-", ":"), strict=True):
        axes.plot(depth_d, quantile_d, color=_SIMULATED, linewidth=1.1, linestyle=style, zorder=4)
    handles = axes.plot([], [], color=_SIMULATED, linewidth=1.1) + axes.plot(
        [], [], color=_SIMULATED, linewidth=1.1, linestyle=":"
    )
    axes.set(xscale="log", xlabel="counts of the cell", ylabel="standard deviations worse than expected")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.25 * (high - low))
    labels = ["simulated: median", "5% and 95%"]
    axes.legend(handles, labels, frameon=False, loc="upper left", handlelength=1.4, borderaxespad=0.1)


def _draw_plane(axes: Axes, xy_n2: np.ndarray, names: tuple[str, str], called_n: np.ndarray, fdr: float) -> None:
    _dots(axes, xy_n2, called_n)
    axes.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[])
    axes.plot([], [], color=OFF, marker="o", markersize=3, linestyle="", label=f"{called_n.sum():,} at FDR {fdr:g}")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * (high - low))
    axes.legend(frameon=False, loc="upper left", handlelength=0.8, borderaxespad=0.1)


def _dots(axes: Axes, xy_n2: np.ndarray, called_n: np.ndarray) -> None:
    """Cells in grey, an even selection of very many, and all the called ones above them."""
    usual = xy_n2[~called_n]
    usual = usual[:: -(-len(usual) // _MAX_DOTS) or 1]
    axes.scatter(usual[:, 0], usual[:, 1], s=3, color=_CELL, alpha=0.5, linewidth=0, rasterized=True, zorder=2)
    axes.scatter(xy_n2[called_n, 0], xy_n2[called_n, 1], s=7, color=OFF, linewidth=0, rasterized=True, zorder=3)
