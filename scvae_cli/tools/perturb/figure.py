"""Figure of a perturbation: changes of the genes, latent positions of the cells, and accuracy in other groups.

Letters in array shapes: n cells, m predicted cells, g genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scvae_cli.latent.selection import even
from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import (
    NO_GROUP,
    OTHER_GROUPS,
    WIDTH,
    fitted,
    head,
    place,
    shortened,
    text_width,
    write,
)
from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.result import Check, Perturbation

_MAX_DOTS = 3000
_NAMED = 12
_CONTROL, _PREDICTED, _TREATED = "#56B4E9", "#D55E00", "#009E73"
_TITLE_LINE, _TOP, _TITLE, _PANEL = 0.14, 0.42, 0.2, 2.75
_LEFT, _RIGHT = 0.45, 4.3
_GENES_WIDE = _PANEL + 0.35
# Size of the names of genes, and distance between a dot and its name as a fraction of the width of the axes.
_NAME_SIZE, _ASIDE = 5.5, 0.025
# Size of other names in points. Width in inches of a symbol of the legend, and least and largest width of the names
# beside the bars.
_SIZE, _SYMBOL, _ROW_NAMES = 6.5, 0.25, (1.0, 2.4)
_LEGEND, _BAR_ROW, _BARS_BELOW = 0.75, 0.26, 0.5
_COMPARED = {"predicted": ("predicted", _PREDICTED), "mean_change": ("others' mean", OTHER_GROUPS)}
_COMPARED |= {"additive": ("sum of the parts", "#0072B2")}


def perturbation_figure(result: Perturbation, z_nk: np.ndarray, design: Design) -> Figure:
    """Draw genes, cells and accuracies; the figure is not registered with pyplot, so save it with `save_figure`.

    `z_nk` are positions of all cells along the latent axes, and `design` has the groups and labels of the cells.
    """
    checks = result.all_checks
    bars = _TITLE + _BAR_ROW * max(len(checks) + (len(result.checks) > 1), 1) + _BARS_BELOW
    height = _TOP + _TITLE + _PANEL + _LEGEND + bars
    with house_style():
        figure = Figure((WIDTH, height))
        title = f"{shortened(result.group, 30)}: {shortened(result.control, 20)} → {shortened(result.treated, 20)}"
        title += "" if result.changed else " (no change detected, and none predicted)"
        write(figure, 0.1, _TITLE_LINE, title, size=9, weight="bold")
        _draw_genes(figure, result)
        _draw_cells(figure, result, z_nk, design)
        _draw_checks(figure, result, checks, _TOP + _TITLE + _PANEL + _LEGEND)
    return figure


def _draw_genes(figure: Figure, result: Perturbation) -> None:
    changes = result.changes
    reference_g, name = next(
        (column_g, name)
        for column_g, name in (
            (changes.observed_g, "observed change"),
            (changes.mean_change_g, "mean change of the other groups"),
            (changes.additive_g, "sum of the parts"),
            (changes.change_g, "predicted change"),
        )
        if column_g is not None
    )
    title = "Predicted change" if reference_g is changes.change_g else f"Predicted change and {name}"
    head(figure, 0.1, _TOP, "a", f"{title} of each gene" if len(title) < 40 else title)
    axes = place(figure, _LEFT, _TOP + _TITLE, _GENES_WIDE, _PANEL)
    axes.set_label("genes")
    both = np.concatenate([reference_g, changes.change_g])
    top = result.top_genes(_NAMED if result.changed else 0)
    names = [shortened(result.genes[g], 14) for g in top]
    limits = _limits(both, reference_g[top], changes.change_g[top], names)
    axes.axhline(0, color=NO_GROUP, linewidth=0.5, zorder=0)
    axes.axvline(0, color=NO_GROUP, linewidth=0.5, zorder=0)
    axes.plot(limits, limits, color="black", linewidth=0.6, zorder=1)
    axes.scatter(
        reference_g, changes.change_g, s=4, c=OTHER_GROUPS, alpha=0.5, linewidths=0, rasterized=True, gid="genes"
    )
    axes.scatter(reference_g[top], changes.change_g[top], s=7, c=_PREDICTED, linewidths=0, gid="top")
    axes.set(xlim=limits, ylim=limits, xlabel=name, ylabel="predicted change")
    axes.xaxis.labelpad = axes.yaxis.labelpad = 1
    _name(axes, reference_g[top], changes.change_g[top], names, limits)


def _limits(values: np.ndarray, x_t: np.ndarray, y_t: np.ndarray, names: list[str]) -> tuple[float, float]:
    """Compute limits of both axes that leave space for the names beside the dots."""
    margin = 0.1 * float(np.ptp(values)) + 1e-6
    lowest, highest = low, high = float(values.min()) - margin, float(values.max()) + margin
    wide_t = np.asarray([text_width([name], _NAME_SIZE) / _GENES_WIDE + _ASIDE for name in names])
    sign_t = np.where(y_t >= x_t, -1, 1)  # names are to the left of dots above the diagonal
    for _ in range(6):  # wider limits make names narrower in units of the axes
        ends_t = x_t + sign_t * wide_t * (high - low)
        low, high = min([lowest, *ends_t]), max([highest, *ends_t])
    return low, high


def _name(axes: Axes, x_t: np.ndarray, y_t: np.ndarray, names: list[str], limits: tuple[float, float]) -> None:
    """Write names beside dots; overlapping names move up if the dots are above the diagonal, and otherwise down."""
    low, high = limits
    least, aside = 0.036 * (high - low), _ASIDE * (high - low)
    line = {"arrowstyle": "-", "linewidth": 0.3, "color": OTHER_GROUPS, "shrinkA": 0, "shrinkB": 1}
    for sign, alignment in ((1, "right"), (-1, "left")):
        side = np.flatnonzero((y_t >= x_t) == (sign > 0))
        before = -np.inf
        for t in side[np.argsort(sign * y_t[side])]:
            # Each name is at least one line beyond the previous name, in the direction in which names move.
            before = max(sign * float(y_t[t]), before + least)
            axes.annotate(
                names[t], (x_t[t], y_t[t]), (x_t[t] - sign * aside, sign * before), size=_NAME_SIZE,
                ha=alignment, va="center", arrowprops=line, annotation_clip=False,
            )  # fmt: skip


def _draw_cells(figure: Figure, result: Perturbation, z_nk: np.ndarray, design: Design) -> None:
    def of(groups: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        rows = [design.rows(group, label) for group in groups for label in labels]
        return np.concatenate([np.empty(0, dtype=int), *rows])

    others = sorted({group for groups in result.sources.values() for group in groups} - {design.group})
    title = f"The {len(result.cells):,} cells before and after the change"
    head(figure, _RIGHT - 0.25, _TOP, "b", title)
    axes = place(figure, _RIGHT, _TOP + _TITLE, WIDTH - _RIGHT - 0.15, _PANEL)
    axes.set_label("plane")
    axes.set(xticks=[], yticks=[], xlabel="latent axis 1", ylabel="latent axis 2")
    wide = (WIDTH - _RIGHT) / 2 - _SYMBOL

    def name(groups: str, labels: str, how: str = "") -> str:
        return fitted(f"{groups}, {labels}", wide - text_width([how], _SIZE), _SIZE) + how

    group = result.group
    shown: list[tuple[np.ndarray, str, str]] = [
        (z_nk[of(others, [design.control])], NO_GROUP, name("other groups", result.control)),
        (z_nk[of(others, list(result.sources))], OTHER_GROUPS, name("other groups", " or ".join(result.sources))),
        (z_nk[of([design.group], [design.control])], _CONTROL, name(group, result.control)),
        (z_nk[of([design.group], [design.treated])], _TREATED, name(group, result.treated, ": observed")),
        (result.z_mk, _PREDICTED, name(group, result.treated, ": predicted")),
    ]
    shown = [part for part in shown if len(part[0])]
    for all_nk, color, title in shown:
        some_nk = all_nk[even(np.arange(len(all_nk)), _MAX_DOTS)]
        # With a single latent dimension, the second coordinate is 0.
        xy_n2 = np.pad(some_nk, ((0, 0), (0, max(0, 2 - some_nk.shape[1]))))[:, :2]
        size = float(np.clip(150 / np.sqrt(len(xy_n2)), 2.5, 10))
        style: dict[str, Any] = {"s": size, "c": color, "alpha": 0.7, "linewidths": 0, "rasterized": True}
        axes.scatter(xy_n2[:, 0], xy_n2[:, 1], gid=title, **style)
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "markeredgewidth": 0}
    handles = [Line2D([], [], color=color, **dot) for _, color, _ in shown]
    below = {"loc": "upper left", "bbox_to_anchor": (0, -0.06), "ncols": 2, "frameon": False, "borderaxespad": 0}
    names = [title for _, _, title in shown]
    axes.legend(handles, names, handletextpad=0.2, columnspacing=0.8, handlelength=1.0, borderpad=0, **below)


def _draw_checks(figure: Figure, result: Perturbation, checks: Sequence[Check], top: float) -> None:
    held_out = bool(checks) and all(check.held_out for check in checks)
    by = "models trained without them" if held_out else "a model trained on them"
    head(figure, 0.1, top, "c", f"Treated cells of each group, predicted by {by}: correlation with the observed change")
    if not checks:
        text = "no other group has treated cells that can be predicted without using them"
        text = text if result.changed else "no accuracy is measured, because no change was detected"
        write(figure, _LEFT, top + _TITLE + 0.1, text, size=7)
        return
    single = len({check.treated for check in checks}) == 1
    rows: list[tuple[str, dict[str, Any]]] = [
        (
            _row_name(check.group if single else f"{check.group}, {check.treated}", check is result.group_check),
            {what: getattr(check, what) for what in _COMPARED},
        )
        for check in checks
    ]
    if len(result.checks) > 1:
        rows.append(("mean of the other groups", {what: result.mean_accuracy(what) for what in _COMPARED}))
    there = [what for what in _COMPARED if any(found[what] is not None for _, found in rows)]
    left = 0.2 + max(_ROW_NAMES[0], text_width([name for name, _ in rows], _SIZE))
    width = (WIDTH - left - 0.15 - 0.25) / 2
    for panel, (part, title) in enumerate(
        (("correlation", "all genes"), ("top_correlation", "the 50 most significant genes"))
    ):
        axes = place(figure, left + panel * (width + 0.25), top + _TITLE + 0.12, width, _BAR_ROW * len(rows))
        axes.set_label(part)
        axes.set_title(title, pad=2)
        thick = 0.8 / len(there)
        for i, what in enumerate(there):
            values = [np.nan if found[what] is None else getattr(found[what], part) for _, found in rows]
            y_r = np.arange(len(rows)) + (i - (len(there) - 1) / 2) * thick
            axes.barh(y_r, values, height=0.9 * thick, color=_COMPARED[what][1], linewidth=0, gid=what)
            for y, value in zip(y_r, values, strict=True):
                if np.isfinite(value):
                    axes.text(max(value, 0) + 0.01, y, f"{value:.2f}", size=5, va="center", gid="value")
        lowest = min((getattr(one, part) for _, found in rows for one in found.values() if one is not None), default=0)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(min(0, lowest * 1.05), 1.08), xticks=[0, 0.5, 1])
        axes.set_yticks(range(len(rows)), [name for name, _ in rows] if panel == 0 else [])
        axes.tick_params(axis="y", length=0)
    bar: dict[str, Any] = {"linestyle": "", "marker": "s", "markersize": 4, "markeredgewidth": 0}
    handles = [Line2D([], [], color=_COMPARED[what][1], **bar) for what in there]
    names = [_COMPARED[what][0] for what in there]
    below = {"loc": "upper right", "bbox_to_anchor": (1, -0.14 / _BAR_ROW / len(rows) * 1.3), "ncols": 3}
    axes.legend(handles, names, frameon=False, borderaxespad=0, handletextpad=0.2, columnspacing=1.0, **below)


def _row_name(name: str, to_predict: bool) -> str:
    end = " (to predict)" if to_predict else ""
    return fitted(name, _ROW_NAMES[1] - text_width([end], _SIZE), _SIZE) + end
