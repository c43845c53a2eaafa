"""Panel b of the trajectory figure: a heat map of the genes that change most.

Each row is one gene. The colors of a row run from the lowest to the highest value of the gene. Rows are ordered by
kind of change ("down", "peak", "up", "dip"), then by the step at which the gene changes (`GeneChanges.switch_g`).

Letters in array shapes: t steps, r genes shown.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from scvae_cli.report.page import NO_GROUP, OTHER_GROUPS, WIDTH, hatch_off, head, place, shortened, text_width, write
from scvae_cli.tools.trajectory.result import Trajectory

N_GENES = 40
# Order of the kinds of change: genes expressed at the start, in between, at the end, and at both ends.
_KINDS = ("down", "peak", "up", "dip")
_COLORS = "viridis"

_LEFT, _RIGHT = 4.3, 0.15
_TITLE, _STRIP, _GAP, _AXIS = 0.2, 0.11, 0.04, 0.36
_KIND_WIDTH, _BAR_WIDTH = 0.36, 0.42
_NAME_LENGTH, _NAME_SIZE = 18, 6.2
_ROW, _MOST_ROW = 0.115, 0.2


def heat_map_genes(trajectory: Trajectory) -> np.ndarray:
    """Return the indices of the genes that change most, ordered as the rows of the heat map."""
    top = trajectory.top_genes(N_GENES)
    top = top[trajectory.changes.effect_g[top] > 0]
    changes = trajectory.changes
    kind = np.asarray([_KINDS.index(direction) for direction in changes.direction_g[top]], dtype=int)
    rows: np.ndarray = top[np.lexsort((-changes.effect_g[top], changes.switch_g[top], kind))]
    return rows


def heat_map_height(trajectory: Trajectory) -> float:
    """Return the least height of the panel, in inches."""
    return _TITLE + _STRIP + _GAP + len(heat_map_genes(trajectory)) * _ROW + _AXIS


def draw_heat_map(figure: Figure, trajectory: Trajectory, colors: dict[str, str], top: float, height: float) -> None:
    """Draw the heat map. `top` is the position of the upper edge; `top` and `height` are in inches."""
    rows = heat_map_genes(trajectory)
    names = [shortened(trajectory.genes[g], _NAME_LENGTH, tail=_NAME_LENGTH // 2) for g in rows]
    left = _LEFT + text_width(names, _NAME_SIZE) + 0.06
    width = WIDTH - _RIGHT - _BAR_WIDTH - _KIND_WIDTH - left
    above = top + _TITLE
    head(figure, _LEFT - 0.05, top, "b", f"The {len(rows)} genes that change most")
    if trajectory.steps.groups_passed():
        _draw_strip(place(figure, left, above, width, _STRIP), trajectory, colors)
        write(figure, left + width + 0.05, above + _STRIP / 2, "nearest group", size=6.2)
        above += _STRIP + _GAP
    tall = min(top + height - _AXIS - above, max(len(rows), 1) * _MOST_ROW)
    axes = place(figure, left, above, width, tall)
    axes.set_label("heat map")
    axes.set(xlabel="position along the trajectory", xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
    for side in axes.spines.values():
        side.set_visible(False)
    if len(rows) == 0:
        axes.set(yticks=[])
        axes.text(0.5, 0.5, "no gene changes", transform=axes.transAxes, ha="center", va="center")
        return
    _draw_scaled(axes, trajectory, rows)
    axes.set_yticks(np.arange(len(rows)), names, size=_NAME_SIZE)
    axes.tick_params(axis="y", length=0, pad=2)
    hatch_off(axes, trajectory.without_cells, above=True)
    bars = place(figure, WIDTH - _RIGHT - _BAR_WIDTH, above, _BAR_WIDTH, tall)
    bars.set_label("effect")
    bars.barh(np.arange(len(rows)), trajectory.changes.effect_g[rows], height=0.7, color="#7F7F7F")
    bars.set(ylim=axes.get_ylim(), yticks=[], xlabel="range (s.d.)")
    bars.xaxis.set_major_locator(MaxNLocator(2))
    bars.xaxis.set_major_formatter("{x:g}")
    bars.spines["left"].set_visible(False)
    kind_r = trajectory.changes.direction_g[rows]
    first = 0
    for after in range(1, len(rows) + 1):
        if after < len(rows) and kind_r[after] == kind_r[first]:
            continue
        middle = above + (first + after) / 2 / len(rows) * tall
        write(figure, left + width + 0.05, middle, str(kind_r[first]), size=6.2)
        if after < len(rows):
            axes.axhline(after - 0.5, color="white", linewidth=1.5)
            bars.axhline(after - 0.5, color="white", linewidth=1.5)
        first = after
    _draw_scale(figure, WIDTH - _RIGHT, top)


def _draw_strip(axes: Axes, trajectory: Trajectory, colors: dict[str, str]) -> None:
    """Draw a strip with the color of the most frequent group among the nearest cells of each step."""
    axes.set_label("groups")
    axes.set_axis_off()
    shown = [to_rgb(colors.get(group, OTHER_GROUPS) if group else NO_GROUP) for group in trajectory.steps.group_t]
    axes.imshow([shown], aspect="auto", extent=(*_edges(trajectory), 0, 1), interpolation="none")
    hatch_off(axes, trajectory.without_cells, above=True)


def _draw_scaled(axes: Axes, trajectory: Trajectory, rows: np.ndarray) -> None:
    level_rt = trajectory.mean_tg[:, rows].T.astype(np.float64)
    if trajectory.of_counts:
        # The square root of a count has about the same noise at all expression levels.
        level_rt = np.sqrt(np.maximum(trajectory.mean_tg[:, rows].T, 0)).astype(np.float64)
    low_r1, high_r1 = level_rt.min(1, keepdims=True), level_rt.max(1, keepdims=True)
    scaled_rt = (level_rt - low_r1) / np.maximum(high_r1 - low_r1, 1e-12)
    extent = (*_edges(trajectory), len(rows) - 0.5, -0.5)
    axes.imshow(scaled_rt, aspect="auto", extent=extent, cmap=_COLORS, vmin=0, vmax=1, interpolation="none")


def _edges(trajectory: Trajectory) -> tuple[float, float]:
    half = 0.5 / (len(trajectory.steps.position_t) - 1)
    return -half, 1 + half


def _draw_scale(figure: Figure, right: float, middle: float) -> None:
    """Draw the color scale."""
    axes = place(figure, right - 0.95, middle - 0.04, 0.5, 0.08)
    axes.set_label("scale")
    axes.set_axis_off()
    axes.imshow(np.linspace(0, 1, 64)[None], aspect="auto", cmap=_COLORS, interpolation="none")
    write(figure, right - 1.0, middle, "low", size=6.2, ha="right")
    write(figure, right - 0.4, middle, "high", size=6.2)
