"""Panel a of the trajectory figure: the cells, colored by group, with the trajectory drawn over the cells.

The cells lie in a plane, such as a UMAP. A bundle is a set of trajectories between paired cells of two groups.

Letters in array shapes: n cells, t steps, p paths of a bundle.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from scvae_cli.amounts import amount
from scvae_cli.report.page import (
    NO_GROUP,
    OFF,
    OTHER_GROUPS,
    head,
    legend_names,
    place,
    segments,
    shortened,
    text_width,
)
from scvae_cli.tools.trajectory.result import Trajectory

_LEFT, _WIDTH = 0.3, 3.75
_LEAST_HEIGHT = 2.7
_TITLE, _AXIS = 0.2, 0.27
_LINE, _GAP = 0.13, 0.05
_NAME_LENGTH, _NAME_SIZE = 26, 6.5
_HALO = withStroke(linewidth=2.5, foreground="white")


@dataclass(frozen=True, kw_only=True)
class Backdrop:
    """The plane in which a trajectory is drawn.

    Parameters
    ----------
    xy_n2, xy_t2, xy_bundle_pt2
        Positions in the plane: of each cell, of each step of the trajectory, and of each step of every trajectory of a
        bundle.
    names
        Names of the two axes.
    groups_n
        Group of each cell, where a cell without a group has None. `groups_n` itself is None if there are no groups.
    colors
        Color of every group. If None, the colors are chosen by `group_colors`.
    """

    xy_n2: np.ndarray
    xy_t2: np.ndarray
    names: tuple[str, str]
    groups_n: np.ndarray | None = None
    colors: dict[str, str] | None = None
    xy_bundle_pt2: np.ndarray | None = None


def steps_in_plane(trajectory: Trajectory, xy_n2: np.ndarray) -> np.ndarray:
    """Compute positions of the steps, shape (t, 2), in a plane where only cells have positions, such as a UMAP.

    The position of a step is the mean position of the cells nearest to the step, with larger weights for nearer cells.
    The positions are then smoothed along the trajectory, except at the two ends.
    """
    nearest_tj = trajectory.steps.nearest_tj
    weight_j = np.arange(nearest_tj.shape[1], 0, -1, dtype=np.float64)
    xy_t2 = np.einsum("j,tjx->tx", weight_j / weight_j.sum(), np.asarray(xy_n2, dtype=np.float64)[nearest_tj])
    half = min(len(xy_t2) - 1, max(1, round(len(xy_t2) / 10)))
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / (half / 2)) ** 2)
    # Point reflection at the ends extends the trajectory, so that smoothing does not move the ends.
    before, after = 2 * xy_t2[0] - xy_t2[half:0:-1], 2 * xy_t2[-1] - xy_t2[-2 : -2 - half : -1]
    extended = np.concatenate([before, xy_t2, after])
    return np.stack([np.convolve(x, kernel / kernel.sum(), mode="valid") for x in extended.T], axis=1)


def waypoint_steps(trajectory: Trajectory, groups_n: np.ndarray | None) -> list[tuple[str, int]]:
    """List each waypoint between the ends, with the step that has the most cells of the waypoint nearby.

    A waypoint is omitted if its cells are unknown, or if no step has cells of the waypoint nearby.
    """
    result = []
    for label in trajectory.labels[1:-1]:
        member_tj = trajectory.nearest_names_tj == label
        if groups_n is not None:
            member_tj = member_tj | (groups_n[trajectory.steps.nearest_tj] == label)
        share_t = member_tj.mean(1)
        if share_t.max() > 0:
            best = np.flatnonzero(share_t == share_t.max())
            result.append((label, int(best[len(best) // 2])))
    return result


class Legend:
    """Legend of the plane: the symbols, then the groups that the trajectory passes, then the other groups."""

    def __init__(self, trajectory: Trajectory, backdrop: Backdrop, colors: dict[str, str]) -> None:
        dot: dict[str, Any] = {"linestyle": "", "markeredgewidth": 0, "markersize": 4.5, "marker": "o"}
        symbols = [
            ("start", Line2D([], [], linestyle="", **_START)),
            ("end", Line2D([], [], linestyle="", **_END)),
            ("trajectory", Line2D([], [], color="black", linewidth=1.5)),
        ]
        if waypoint_steps(trajectory, backdrop.groups_n):
            symbols.insert(1, ("waypoint", Line2D([], [], linestyle="", **_VIA)))
        if backdrop.xy_bundle_pt2 is not None:
            paired = f"{len(backdrop.xy_bundle_pt2)} paired trajectories"
            symbols.append((paired, Line2D([], [], color="black", linewidth=0.5, alpha=0.5)))
        if trajectory.without_cells.any():
            symbols.append(("no cells (hatched in b and c)", Line2D([], [], **_OFF)))
        groups = [(group, Line2D([], [], color=color, **dot)) for group, color in colors.items()]
        labels = set() if backdrop.groups_n is None else set(backdrop.groups_n.tolist())
        others = len(labels - {None} - set(colors))
        if others:
            groups.append((amount(others, "other group"), Line2D([], [], color=OTHER_GROUPS, **dot)))
        if backdrop.groups_n is None or None in labels:
            groups.append(("cells" if not labels else "no group", Line2D([], [], color=NO_GROUP, **dot)))
        symbols_width = sum(text_width([name], _NAME_SIZE) + 0.27 for name, _ in symbols)
        n_first = len(symbols) if symbols_width <= _WIDTH else [name for name, _ in symbols].index("trajectory") + 1
        self._symbol_rows = [row for row in (symbols[:n_first], symbols[n_first:]) if row]
        self._groups = list(
            zip(legend_names([name for name, _ in groups], _NAME_LENGTH), [line for _, line in groups], strict=True)
        )
        widest = text_width([name for name, _ in self._groups], _NAME_SIZE)
        self._columns = int(np.clip(_WIDTH // (widest + 0.3), 1, 4))

    @property
    def height(self) -> float:
        """Height in inches."""
        return len(self._symbol_rows) * _LINE + _GAP + -(-len(self._groups) // self._columns) * _LINE

    def draw(self, figure: Figure, top: float) -> None:
        """Draw the legend with its upper edge at `top` inches."""
        axes = place(figure, _LEFT, top, _WIDTH, self.height)
        axes.set_axis_off()
        look: dict[str, Any] = {"loc": "upper left", "frameon": False, "borderpad": 0, "borderaxespad": 0}
        look |= {"labelspacing": _LINE * 72 / _NAME_SIZE - 1, "columnspacing": 1.0}
        look |= {"handleheight": 1.0, "handletextpad": 0.4}
        down = 0.0
        for row in self._symbol_rows:
            names, lines = zip(*row, strict=True)
            at = (0, 1 - down / self.height)
            axes.add_artist(axes.legend(lines, names, ncols=len(names), handlelength=1.6, bbox_to_anchor=at, **look))
            down += _LINE
        if self._groups:
            names, lines = zip(*self._groups, strict=True)
            at = (0, 1 - (down + _GAP) / self.height)
            axes.legend(lines, names, ncols=self._columns, handlelength=0.8, bbox_to_anchor=at, **look)


def plane_height(legend: Legend) -> float:
    """Return the least height of the panel, in inches."""
    return _TITLE + _LEAST_HEIGHT + _AXIS + legend.height


def draw_plane(
    figure: Figure,
    trajectory: Trajectory,
    backdrop: Backdrop,
    colors: dict[str, str],
    legend: Legend,
    top: float,
    height: float,
) -> None:
    """Draw the panel. `top` is the position of the upper edge; `top` and `height` are in inches."""
    tall = height - _TITLE - _AXIS - legend.height
    head(figure, 0.1, top, "a", f"Trajectory among {amount(len(backdrop.xy_n2), 'cell')}")
    axes = place(figure, _LEFT, top + _TITLE, _WIDTH, tall)
    axes.set_label("plane")
    axes.set(xticks=[], yticks=[], xlabel=backdrop.names[0], ylabel=backdrop.names[1])
    every = [backdrop.xy_n2, backdrop.xy_t2]
    if backdrop.xy_bundle_pt2 is not None:
        every.append(backdrop.xy_bundle_pt2.reshape(-1, 2))
    _set_limits(axes, np.concatenate(every), _WIDTH / tall)
    _draw_cells(axes, backdrop, colors)
    _draw_trajectory(axes, trajectory, backdrop)
    legend.draw(figure, top + _TITLE + tall + _AXIS)


def _set_limits(axes: Axes, xy: np.ndarray, ratio: float) -> None:
    """Set axis limits that contain all points. Both axes have the same scale unless much space would be empty."""
    low, high = np.nanmin(xy, axis=0), np.nanmax(xy, axis=0)
    span = np.maximum(high - low, 1e-9) * 1.06
    box = np.asarray([ratio, 1.0])
    span = np.minimum(box * (span / box).max(), 1.12 * span)
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - span[0] / 2, middle[0] + span[0] / 2)
    axes.set_ylim(middle[1] - span[1] / 2, middle[1] + span[1] / 2)


def _draw_cells(axes: Axes, backdrop: Backdrop, colors: dict[str, str]) -> None:
    xy_n2, n_cells = backdrop.xy_n2, len(backdrop.xy_n2)
    groups_n = np.full(n_cells, None) if backdrop.groups_n is None else backdrop.groups_n
    sizes = Counter(groups_n)
    # Small groups are drawn last, over large ones; cells without a group are drawn first.
    sizes[None] = n_cells + 1
    order = np.argsort([-sizes[group] for group in groups_n], kind="stable")
    rgb = {group: to_rgb(colors.get(group, OTHER_GROUPS) if group is not None else NO_GROUP) for group in sizes}
    axes.scatter(
        xy_n2[order, 0],
        xy_n2[order, 1],
        s=float(np.clip(230 / np.sqrt(max(n_cells, 1)), 0.4, 12)),
        c=np.asarray([rgb[groups_n[i]] for i in order]),
        alpha=0.75 if n_cells < 20_000 else 0.5,
        linewidths=0,
        rasterized=True,
    )


_START: dict[str, Any] = {"marker": "o", "markersize": 6.5, "markerfacecolor": "white", "markeredgecolor": "black"}
_VIA: dict[str, Any] = {"marker": "D", "markersize": 4.5, "markerfacecolor": "white", "markeredgecolor": "black"}
_END: dict[str, Any] = {"marker": "o", "markersize": 6.5, "markerfacecolor": "black", "markeredgecolor": "white"}
_OFF: dict[str, Any] = {"color": OFF, "linewidth": 1.8, "linestyle": (0, (2.2, 1.1))}


def _draw_trajectory(axes: Axes, trajectory: Trajectory, backdrop: Backdrop) -> None:
    xy_t2 = np.asarray(backdrop.xy_t2, dtype=np.float64)
    if backdrop.xy_bundle_pt2 is not None:
        thin = LineCollection(list(backdrop.xy_bundle_pt2), colors="black", linewidths=0.4, alpha=0.4)
        axes.add_collection(thin, autolim=False)
    (line,) = axes.plot(*xy_t2.T, color="black", linewidth=1.5, gid="trajectory")
    line.set_path_effects([withStroke(linewidth=3.2, foreground="white")])
    for first, last in segments(trajectory.without_cells):
        # The line that marks steps without observed cells extends halfway to the neighboring steps.
        begin = (xy_t2[max(first - 1, 0)] + xy_t2[first]) / 2
        end = (xy_t2[min(last + 1, len(xy_t2) - 1)] + xy_t2[last]) / 2
        part = np.concatenate([begin[None], xy_t2[first : last + 1], end[None]])
        axes.plot(*part.T, color="white", linewidth=3.2, solid_capstyle="butt")
        axes.plot(*part.T, gid="off", **_OFF)
    _draw_arrows(axes, xy_t2)
    ends = [(trajectory.labels[0], 0, _START)]
    ends += [(label, step, _VIA) for label, step in waypoint_steps(trajectory, backdrop.groups_n)]
    ends.append((trajectory.labels[-1], len(xy_t2) - 1, _END))
    mark = 0.05 * axes.figure.dpi
    taken = [axes.transData.transform(xy_t2[step]) + np.array([[-mark], [mark]]) for _, step, _ in ends]
    for label, step, look in ends:
        axes.plot(*xy_t2[step], linestyle="", zorder=5, **look)
        _draw_label(axes, shortened(label, 24), xy_t2[step], xy_t2, taken)


def _draw_arrows(axes: Axes, xy_t2: np.ndarray) -> None:
    """Draw arrow heads along the trajectory, at equal distances in the figure."""
    paper_t2 = axes.transData.transform(xy_t2)
    along_t = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(paper_t2, axis=0), axis=1))])
    inches = along_t[-1] / axes.figure.dpi
    for share in (np.arange(3) + 1) / 4 if inches > 1.2 else [0.5]:
        middle, ahead = share * along_t[-1], share * along_t[-1] + 0.03 * axes.figure.dpi
        tail, tip = (
            (np.interp(at, along_t, xy_t2[:, 0]), np.interp(at, along_t, xy_t2[:, 1])) for at in (middle, ahead)
        )
        if inches > 0.3 and not np.allclose(tail, tip):
            look = {"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "color": "black", "linewidth": 0.5}
            axes.annotate("", tip, tail, arrowprops=look | {"shrinkA": 0, "shrinkB": 0})


def _draw_label(axes: Axes, text: str, xy: np.ndarray, xy_t2: np.ndarray, taken: list[np.ndarray]) -> None:
    """Write a label beside a point, on the side where the label hides least of the trajectory and of other labels."""
    size, inch = 7.5, axes.figure.dpi
    half = np.asarray([text_width([text], size) * 1.18, size / 72]) / 2 * inch
    frame = axes.bbox
    at, paper_t2 = axes.transData.transform(xy), axes.transData.transform(xy_t2)
    best, least = at, np.inf
    for angle in np.arange(16) * np.pi / 8:
        away = np.asarray([np.cos(angle), np.sin(angle)])
        center = at + away * 0.09 * inch + half * np.clip(1.5 * away, -1, 1)
        low, high = center - half, center + half
        outside = np.maximum(frame.min - low, 0).sum() + np.maximum(high - frame.max, 0).sum()
        hidden = ((paper_t2 > low - 3) & (paper_t2 < high + 3)).all(1).mean()
        over = sum(bool((low < box[1]).all() and (high > box[0]).all()) for box in taken)
        cost = outside + 100 * over + 50 * hidden
        if cost < least - 1e-9:
            best, least = center, cost
    # A label that extends over the frame is moved inward.
    center = np.clip(best, frame.min + half, np.maximum(frame.max - half, frame.min + half))
    taken.append(np.stack([center - half, center + half]))
    look: dict[str, Any] = {"size": size, "weight": "bold", "ha": "center", "va": "center", "path_effects": [_HALO]}
    axes.annotate(text, (xy[0], xy[1]), (center - at) / inch * 72, textcoords="offset points", zorder=6, **look)
