"""Figure of a UMAP: one panel for each column of obs, gene or clustering that colors the cells.

Letters in array shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from scvae_cli.amounts import amount
from scvae_cli.report.column_colors import palette_colors
from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import (
    NO_GROUP,
    PALETTE,
    legend_names,
    place,
    text_width,
    write,
)
from scvae_cli.tools.embed.coloring import Groups, Values

# All lengths are in inches. The width of a panel depends on the number of panels in a row.
_WIDTHS = {1: 4.6, 2: 3.45, 3: 2.25}
_MARGIN, _GAP, _TITLE, _AXIS, _BOTTOM = 0.15, 0.2, 0.25, 0.2, 0.15
_LINE, _BAR = 0.13, 0.07
_NAME_SIZE, _DOT, _MAX_COLUMNS = 6.5, 0.28, 8
# If there are at most `_FEW_GROUPS` groups, their names are shortened to `_LONG_NAME` letters, and otherwise to
# `_SHORT_NAME` letters. Names that are still too wide are shortened further, but not below `_LEAST_NAME` letters.
_LONG_NAME, _SHORT_NAME, _FEW_GROUPS, _LEAST_NAME = 30, 16, 20, 6
# A row of the figure has three panels if no legend has more lines than this number. With taller legends, a row has two
# panels, which are wide enough for legends with several columns.
_MAX_ROWS_OF_THREE = 16
# Largest number of groups with a legend and colors that do not repeat, and largest number of groups whose names are
# written at the cells.
_MAX_GROUPS, _MAX_NAMES_ON_MAP = 102, 100
_COLOR_MAP = "viridis"
_HALO = withStroke(linewidth=1.8, foreground="white")


def umap_figure(umap_n2: np.ndarray, colorings: Sequence[Groups | Values]) -> Figure:
    """Draw the UMAP once for each coloring; with no coloring, all cells have one color.

    If the colors show groups, the cells are drawn in random order, so that no group hides another. If the colors show
    numbers, the cells are drawn in ascending order of the numbers, as in scanpy. The figure is not registered with
    pyplot, so save it with `save_figure`.
    """
    with house_style():
        panels: list[_Panel] = [_panel_of(coloring) for coloring in colorings] or [_OneColor(len(umap_n2))]
        n_columns = min(len(panels), 3)
        if n_columns == 3 and any(panel.key_height(_WIDTHS[3]) > _MAX_ROWS_OF_THREE * _LINE for panel in panels):
            n_columns = 2
        wide = _WIDTHS[n_columns]
        rows = [panels[i : i + n_columns] for i in range(0, len(panels), n_columns)]
        heights = [_TITLE + wide + _AXIS + max(panel.key_height(wide) for panel in row) + _BOTTOM for row in rows]
        figure = Figure((2 * _MARGIN + n_columns * wide + (n_columns - 1) * _GAP, _MARGIN + sum(heights)))
        top = _MARGIN
        for row, height in zip(rows, heights, strict=True):
            for column, panel in enumerate(row):
                _draw_panel(figure, panel, umap_n2, _MARGIN + column * (wide + _GAP), top, wide)
            top += height
    return figure


class _OneColor:
    """A panel in which all cells have the same color."""

    title = ""

    def __init__(self, n_cells: int) -> None:
        self.title = amount(n_cells, "cell")

    def key_height(self, wide: float) -> float:  # noqa: ARG002  # a legend depends on the width
        """Return the height of the legend or of the color scale, in inches."""
        return 0.0

    def draw_cells(self, axes: Axes, umap_n2: np.ndarray, look: dict[str, Any]) -> None:
        """Draw the cells."""
        axes.scatter(*umap_n2.T, color=PALETTE[0], **look)

    def draw_key(self, figure: Figure, left: float, top: float, wide: float) -> None:
        """Draw the legend or the color scale."""


class _GroupPanel(_OneColor):
    """A panel in which the color of a cell shows its group."""

    def __init__(self, groups: Groups) -> None:
        self.groups, self.title = groups, groups.title
        self.colors = groups.colors or palette_colors(groups.order)

    def _names(self, wide: float) -> list[tuple[str, str]]:
        """Return the names and colors of the legend, with names that fit into a panel of the given width in inches."""
        order = self.groups.order
        few = len(order) <= _FEW_GROUPS
        names = [(name, self.colors[group]) for name, group in zip(_fitted(order, wide, few=few), order, strict=True)]
        if len(order) > _MAX_GROUPS:
            names = [(f"{len(order):,} groups; colors repeat", "none")]
        if any(label is None for label in self.groups.label_n):
            names.append(("no value", NO_GROUP))
        return names

    def _columns(self, wide: float) -> int:
        widest = text_width([name for name, _ in self._names(wide)], _NAME_SIZE)
        return int(np.clip(wide // (widest + _DOT), 1, _MAX_COLUMNS))

    def key_height(self, wide: float) -> float:
        return -(-len(self._names(wide)) // self._columns(wide)) * _LINE

    def draw_cells(self, axes: Axes, umap_n2: np.ndarray, look: dict[str, Any]) -> None:
        label_n = self.groups.label_n
        missing_n = np.asarray([label is None for label in label_n], dtype=bool)
        order = np.random.default_rng(0).permutation(len(label_n))
        # Cells without a group are drawn behind all other cells.
        order = np.concatenate([order[missing_n[order]], order[~missing_n[order]]])
        rgb = {group: to_rgb(color) for group, color in self.colors.items()} | {None: to_rgb(NO_GROUP)}
        axes.scatter(umap_n2[order, 0], umap_n2[order, 1], c=np.asarray([rgb[label_n[i]] for i in order]), **look)
        if self.groups.on_map and len(self.groups.order) <= _MAX_NAMES_ON_MAP:
            _write_names(axes, self.groups, umap_n2)

    def draw_key(self, figure: Figure, left: float, top: float, wide: float) -> None:
        _draw_legend(figure, self._names(wide), left, top, wide, self._columns(wide))


class _ValuePanel(_OneColor):
    """A panel in which the color of a cell shows a number."""

    def __init__(self, values: Values) -> None:
        self.values, self.title = values, values.title
        present = values.value_n[~np.isnan(values.value_n)]
        self.scale = Normalize(float(present.min()), float(present.max())) if len(present) else Normalize(0, 1)
        self.missing_n = np.isnan(values.value_n)

    def key_height(self, wide: float) -> float:  # noqa: ARG002  # an argument of every coloring
        return _BAR + 3 * _LINE

    def draw_cells(self, axes: Axes, umap_n2: np.ndarray, look: dict[str, Any]) -> None:
        axes.scatter(umap_n2[self.missing_n, 0], umap_n2[self.missing_n, 1], color=NO_GROUP, **look)
        # Cells of equal value, such as 0, are drawn in random order.
        order = np.random.default_rng(0).permutation(np.flatnonzero(~self.missing_n))
        order = order[np.argsort(self.values.value_n[order], kind="stable")]
        # Dots are opaque, so that a color has the same meaning in the UMAP and on the color scale.
        look = look | {"c": self.values.value_n[order], "cmap": _COLOR_MAP, "norm": self.scale, "alpha": 1}
        self.drawn = axes.scatter(umap_n2[order, 0], umap_n2[order, 1], **look)

    def draw_key(self, figure: Figure, left: float, top: float, wide: float) -> None:
        axes = place(figure, left, top, wide * 0.6, _BAR)
        bar = Colorbar(axes, self.drawn, orientation="horizontal")
        bar.outline.set_linewidth(0.5)
        axes.tick_params(length=2, pad=1.5)
        axes.locator_params(nbins=4)
        axes.set_xlabel(self.values.unit, labelpad=1.5)
        if self.missing_n.any():
            _draw_legend(figure, [(self.values.missing, NO_GROUP)], left + wide * 0.66, top - 0.02, wide * 0.34, 1)


_Panel = _OneColor | _GroupPanel | _ValuePanel


def _panel_of(coloring: Groups | Values) -> _Panel:
    return _GroupPanel(coloring) if isinstance(coloring, Groups) else _ValuePanel(coloring)


def _draw_panel(figure: Figure, panel: _Panel, umap_n2: np.ndarray, left: float, top: float, wide: float) -> None:
    write(figure, left, top + _TITLE / 2 - 0.03, _fitted([panel.title], wide, size=8)[0], size=8)
    axes = place(figure, left, top + _TITLE, wide, wide)
    axes.set_label(panel.title)
    axes.set(xticks=[], yticks=[], xlabel="UMAP 1")
    axes.set_ylabel("UMAP 2", labelpad=2)
    size = float(np.clip(230 / np.sqrt(len(umap_n2)) * (wide / 3.75) ** 2, 0.3, 14))
    alpha = 0.85 if len(umap_n2) < 20_000 else 0.6
    panel.draw_cells(axes, umap_n2, {"s": size, "alpha": alpha, "linewidths": 0, "rasterized": True, "zorder": 2})
    axes.margins(0.04)
    panel.draw_key(figure, left, top + _TITLE + wide + _AXIS, wide)


def _fitted(names: Sequence[str], wide: float, *, few: bool = True, size: float = _NAME_SIZE) -> list[str]:
    """Shorten names so that all are different and fit into a legend of the given width, in inches."""
    for length in range(_LONG_NAME if few else _SHORT_NAME, _LEAST_NAME, -2):
        fitted = legend_names(names, length)
        if text_width(fitted, size) <= wide - _DOT:
            break
    return fitted


def _draw_legend(
    figure: Figure, names: Sequence[tuple[str, str]], left: float, top: float, wide: float, n_columns: int
) -> None:
    """Draw a legend in columns with lines of the exact height `_LINE`, which matplotlib's own legend would round."""
    if not names:
        return
    n_rows = -(-len(names) // n_columns)
    axes = place(figure, left, top, wide, n_rows * _LINE)
    axes.set(xlim=(0, wide), ylim=(n_rows * _LINE, 0), label="legend")
    axes.set_axis_off()
    column = text_width([name for name, _ in names], _NAME_SIZE) + _DOT
    for i, (name, color) in enumerate(names):
        x, y = i // n_rows * column, (i % n_rows + 0.5) * _LINE
        axes.plot(x + 0.05, y, "o", color=color, markersize=4.5, markeredgewidth=0)
        axes.text(x + 0.13, y, name, size=_NAME_SIZE, va="center_baseline")


def _write_names(axes: Axes, groups: Groups, umap_n2: np.ndarray) -> None:
    """Write the name of each group on the group's median cell. The name of a small group stands above the cells."""
    size = 7.5 if len(groups.order) <= 2 * _FEW_GROUPS else 5.5
    line = 1.5 * size / 72 * axes.figure.dpi / axes.bbox.height
    hidden = line * np.ptp(umap_n2, axis=0)
    for group in groups.order:
        members = umap_n2[groups.label_n == group]
        x, y = np.median(members, axis=0)
        above = bool((np.ptp(members, axis=0) < hidden).all())
        look: dict[str, Any] = {"size": size, "ha": "center", "path_effects": [_HALO], "zorder": 4}
        look |= {"xytext": (0, 3 if above else 0), "textcoords": "offset points"}
        look |= {"va": "bottom" if above else "center_baseline"}
        axes.annotate(group, (x, float(members[:, 1].max()) if above else y), **look)
