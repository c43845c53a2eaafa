"""The figure of an order: the cells colored by pseudotime and by their most probable end, and genes along the order.

Without ends, the cells are colored by group instead, if groups are known.

Letters in array shapes: n cells, e ends, c genes, q points of a curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scvae_cli.report.column_colors import palette_colors
from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import (
    NO_GROUP,
    OTHER_GROUPS,
    WIDTH,
    fitted,
    group_colors,
    head,
    legend_names,
    place,
    shortened,
    text_width,
    write,
)
from scvae_cli.tools.pseudotime.options import UNCOMMITTED
from scvae_cli.tools.pseudotime.result import Pseudotime

# Sizes in inches.
_LEFT, _BETWEEN, _RIGHT = 0.3, 0.45, 0.15
_TOP, _TITLE, _AXIS, _LINE, _GAP = 0.42, 0.2, 0.22, 0.14, 0.22
_PANEL, _GENE, _NAME, _TICKS, _GENE_COLUMNS = 3.3, 1.1, 0.2, 0.38, 4
_BAR_WIDTH, _BAR = 1.6, 0.07
_NAME_LENGTH, _LEGEND_COLUMNS, _TITLE_LENGTH = 26, 2, 84
_ORDER_COLORS, _ALL_CELLS = "viridis", "#333333"
# A point of a curve is a weighted mean over cells. The weights fall with the difference in pseudotime like a normal
# density with the standard deviation `_WIDTH_OF_MEAN`. A mean is not shown if its weights sum to less than
# `_FEWEST_CELLS`, and is shown faintly if they sum to less than `_MANY_CELLS`.
_WIDTH_OF_MEAN, _FEWEST_CELLS, _MANY_CELLS = 0.05, 10, 30
# Share of the weights of the cells between the first and the last position at which a mean is shown.
_SHOWN = 0.99
_FAINT = 0.35
_POINTS = 101


def pseudotime_figure(
    result: Pseudotime,
    xy_n2: np.ndarray,
    axes_names: tuple[str, str],
    *,
    groups_n: np.ndarray | None = None,
    group_color: Mapping[str, str] | None = None,
    genes: Sequence[str] = (),
    count_nc: np.ndarray | None = None,
    unit: str = "counts",
) -> Figure:
    """Draw the order of the cells.

    Parameters
    ----------
    result
        The order of the cells, with the probabilities of the ends.
    xy_n2, axes_names
        Positions of the cells in a plane, and the names of its axes.
    groups_n
        Group of each cell, None for a cell without a group. `groups_n` is None if there are no groups.
    group_color
        Color of every group, which is also the color of an end. If None, the colors of scvae are used.
    genes, count_nc
        Names of the genes whose means along the order are drawn, and their counts in the cells at the same library
        size, or their values in a model of real-valued data.
    unit
        Description of the values of the genes, for the title.
    """
    known = palette_colors(result.ends) if group_color is None else group_color
    colors = {UNCOMMITTED: NO_GROUP} | {end: known[end] for end in result.ends}
    title = "Most probable end" if result.ends else "Groups"
    label_n = result.branch_n if result.ends else groups_n
    if not result.ends:
        colors = group_colors(groups_n, (), group_color)
    key = max(_AXIS, -(-len(colors) // _LEGEND_COLUMNS) * _LINE)
    upper = _TITLE + _PANEL + _AXIS + key + _GAP
    lower = _TITLE + _LINE + -(-len(genes) // _GENE_COLUMNS) * (_NAME + _GENE) + 2 * _AXIS if genes else 0
    with house_style():
        figure = Figure((WIDTH, _TOP + upper + lower))
        write(figure, 0.1, 0.14, _title(result), size=9, weight="bold")
        wide = (WIDTH - _LEFT - _BETWEEN - _RIGHT) / 2
        axes = _plane(figure, _LEFT, "a", f"Pseudotime of {len(xy_n2):,} cells", axes_names, wide)
        _draw_order(figure, axes, xy_n2, result.pseudotime_n, wide)
        if label_n is not None:
            axes = _plane(figure, _LEFT + wide + _BETWEEN, "b", title, axes_names, wide)
            _draw_labels(figure, axes, xy_n2, label_n, colors, key, wide)
        if count_nc is not None and genes:
            weights = "cells weighted by the probability of each end" if result.ends else "all cells"
            letter = "b" if label_n is None else "c"
            head(figure, 0.1, _TOP + upper, letter, f"Mean {unit} along the order, {weights}")
            caption = (
                f"Curves are faint where the weights of the cells sum to less than {_MANY_CELLS}, and are not drawn "
                f"where they sum to less than {_FEWEST_CELLS}."
            )
            write(figure, 0.3, _TOP + upper + _TITLE, caption, size=6.5)
            _draw_genes(figure, result, genes, count_nc, colors, _TOP + upper)
    return figure


def _title(result: Pseudotime) -> str:
    ends = f" → {', '.join(result.ends)}" if result.ends else ""
    if len(result.root + ends) > _TITLE_LENGTH:
        ends = f" → {len(result.ends)} ends"
    return shortened(f"Order from {result.root}{ends}", _TITLE_LENGTH)


def _plane(figure: Figure, left: float, letter: str, title: str, names: tuple[str, str], wide: float) -> Axes:
    head(figure, left - 0.2, _TOP, letter, title)
    axes = place(figure, left, _TOP + _TITLE, wide, _PANEL)
    axes.set_label(title)
    axes.set(xticks=[], yticks=[], xlabel=names[0])
    axes.set_ylabel(names[1], labelpad=2)
    axes.margins(0.04)
    return axes


def _look(n_cells: int) -> dict[str, Any]:
    size = float(np.clip(230 / np.sqrt(max(n_cells, 1)), 0.4, 12))
    return {"s": size, "linewidths": 0, "rasterized": True}


def _draw_order(figure: Figure, axes: Axes, xy_n2: np.ndarray, time_n: np.ndarray, wide: float) -> None:
    # Cells are drawn in random order, so that late cells do not hide early cells.
    order = np.random.default_rng(0).permutation(len(xy_n2))
    x_n, y_n = xy_n2[order].T
    drawn = axes.scatter(x_n, y_n, c=time_n[order], cmap=_ORDER_COLORS, vmin=0, vmax=1, **_look(len(xy_n2)))
    bar_axes = place(figure, _LEFT + (wide - _BAR_WIDTH) / 2, _TOP + _TITLE + _PANEL + _AXIS, _BAR_WIDTH, _BAR)
    bar_axes.set_label("scale")
    bar = Colorbar(bar_axes, drawn, orientation="horizontal")
    bar.outline.set_linewidth(0.5)
    bar_axes.tick_params(length=2, pad=1.5)


def _draw_labels(
    figure: Figure,
    axes: Axes,
    xy_n2: np.ndarray,
    label_n: np.ndarray,
    colors: dict[str, str],
    key: float,
    wide: float,
) -> None:
    rgb = {name: to_rgb(color) for name, color in colors.items()}
    rgb_n = [rgb.get(label, to_rgb(NO_GROUP if label is None else OTHER_GROUPS)) for label in label_n]
    color_n3 = np.asarray(rgb_n).reshape(-1, 3)
    order = np.random.default_rng(0).permutation(len(xy_n2))
    # Cells without an end or a group are drawn first, below the other cells.
    order = order[np.argsort((color_n3[order] != to_rgb(NO_GROUP)).any(1), kind="stable")]
    x_n, y_n = xy_n2[order].T
    axes.scatter(x_n, y_n, c=color_n3[order], **_look(len(xy_n2)))
    sizes = Counter(label_n.tolist())
    legend = place(figure, _LEFT + wide + _BETWEEN, _TOP + _TITLE + _PANEL + _AXIS - 0.03, wide, key)
    legend.set(xlim=(0, wide), ylim=(key, 0), label="legend")
    legend.set_axis_off()
    for i, (name, shown) in enumerate(zip(colors, legend_names(list(colors), _NAME_LENGTH), strict=True)):
        row, column = divmod(i, _LEGEND_COLUMNS)
        x, y = column * wide / _LEGEND_COLUMNS, (row + 0.5) * _LINE
        legend.plot(x + 0.05, y, "o", color=colors[name], markersize=4.5, markeredgewidth=0)
        size = f" ({sizes[name]:,})"
        fits = fitted(shown, wide / _LEGEND_COLUMNS - 0.2 - text_width([size], 6.5), 6.5)
        legend.text(x + 0.13, y, fits + size, size=6.5, va="center_baseline")


def _draw_genes(
    figure: Figure,
    result: Pseudotime,
    genes: Sequence[str],
    count_nc: np.ndarray,
    colors: dict[str, str],
    top: float,
) -> None:
    """Draw the mean of each gene along the order: over all cells, or weighted by the probability of each end."""
    n_columns = min(_GENE_COLUMNS, len(genes))
    wide = (WIDTH - 0.1 - _RIGHT) / n_columns
    at_q = np.linspace(0, 1, _POINTS)
    toward = dict(zip(result.ends, result.probability_ne.T, strict=True))
    for i, gene in enumerate(genes):
        row, column = divmod(i, n_columns)
        above = top + _TITLE + _LINE + row * (_NAME + _GENE) + _NAME
        axes = place(figure, 0.1 + column * wide + _TICKS, above, wide - _TICKS, _GENE - 0.1)
        axes.set_label(f"gene {gene}")
        for end, weight_n in toward.items() or [(None, np.ones(len(count_nc)))]:
            mean_q, cells_q = means_along(result.pseudotime_n, count_nc[:, i], weight_n, at_q)
            color = _ALL_CELLS if end is None else colors[end]
            for least, alpha, part in ((_FEWEST_CELLS, _FAINT, ", few cells"), (_MANY_CELLS, 1.0, "")):
                shown_q = np.where(cells_q >= least, mean_q, np.nan)
                axes.plot(at_q, shown_q, color=color, linewidth=1.3, alpha=alpha, gid=f"{end or 'all'}{part}")
        lowest = i + n_columns >= len(genes)
        axes.set(xlim=(0, 1), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"] if lowest else [])
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.tick_params(pad=1.5)
        axes.set_title(shortened(gene, 24), style="italic", pad=3)
        if lowest:
            axes.set_xlabel("pseudotime", labelpad=2)


def means_along(
    time_n: np.ndarray, value_n: np.ndarray, weight_n: np.ndarray, at_q: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute weighted means of cells at positions along the order, and the sum of their weights, both of shape (q,).

    The sum of the weights is 0 at positions outside the middle 99% of the weights, where the mean would be that of the
    nearest cells.

    >>> means_along(np.zeros(9), np.arange(9.0), np.ones(9), np.array([0.0, 0.01]))[1].round(3)
    array([9., 0.])
    """
    order = np.argsort(time_n)
    share_n = np.cumsum(weight_n[order]) / max(float(weight_n.sum()), 1e-100)
    ends = np.searchsorted(share_n, [(1 - _SHOWN) / 2, (1 + _SHOWN) / 2]).clip(max=len(order) - 1)
    first, last = time_n[order[ends]]
    kernel_qn = np.exp(-0.5 * ((at_q[:, None] - time_n) / _WIDTH_OF_MEAN) ** 2) * weight_n
    total_q = kernel_qn.sum(1)
    mean_q = kernel_qn @ value_n / np.maximum(total_q, 1e-100)
    return mean_q, np.where((at_q >= first) & (at_q <= last), total_q, 0.0)
