"""The picture of a perturbation in silico: what the genes do, where the cells go, how well it does where that is known.

Shapes: n cells, m predicted cells, g genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scvae_cli.latent.selection import even
from scvae_cli.report.figure_file import house_style, save_figure
from scvae_cli.report.page import NO_GROUP, OTHER_GROUPS, WIDTH, head, place, shortened, write
from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.prediction import Predictor
from scvae_cli.tools.perturb.result import Check, Perturbation

_MAX_DOTS = 3000
_NAMED = 12
_CONTROL, _PREDICTED, _TREATED = "#56B4E9", "#D55E00", "#009E73"
_TITLE_LINE, _TOP, _TITLE, _PANEL = 0.14, 0.42, 0.2, 2.75
_LEFT, _RIGHT = 0.45, 4.3
_LEGEND, _BAR_ROW, _BARS_BELOW = 0.75, 0.26, 0.5
_BASELINES = {"predicted": ("predicted", _PREDICTED), "mean_change": ("others' mean", OTHER_GROUPS)}
_BASELINES |= {"additive": ("sum of its parts", "#0072B2")}


@dataclass(frozen=True, kw_only=True)
class CellPlane:
    """Cells over the first two canonical axes, each of shape (n, 2).

    Parameters
    ----------
    control, predicted
        Of the group asked about.
    treated
        Its own treated cells; none where there are none.
    others_control, others_treated
        Of the groups that were learned from.
    """

    control: np.ndarray
    predicted: np.ndarray
    treated: np.ndarray
    others_control: np.ndarray
    others_treated: np.ndarray


def draw_perturbation(result: Perturbation, predictor: Predictor, design: Design, file: Path) -> None:
    """Draw a perturbation.

    Parameters
    ----------
    result
        What was predicted.
    predictor, design
        Where all cells lie, and which is which.
    file
        Written whole or not at all.
    """
    z_nk = predictor.model.axes.position(predictor.moves.mean_nk).numpy()

    def of(groups: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        rows = [design.rows(group, label) for group in groups for label in labels]
        return _plane(z_nk[even(np.concatenate([np.empty(0, dtype=int), *rows]), _MAX_DOTS)])

    sources = sorted({group for groups in result.sources.values() for group in groups} - {design.group})
    places = CellPlane(
        control=of([design.group], [design.control]),
        predicted=_plane(result.z_mk[even(np.arange(len(result.z_mk)), _MAX_DOTS)]),
        treated=of([design.group], [design.treated]),
        others_control=of(sources, [design.control]),
        others_treated=of(sources, list(result.sources)),
    )
    save_figure(perturbation_figure(result, places), file)


def perturbation_figure(result: Perturbation, places: CellPlane) -> Figure:
    """Genes, cells and accuracies; for `save_figure`, pyplot does not know of it."""
    checks = [*result.checks, *([result.own] if result.own is not None else [])]
    bars = _TITLE + _BAR_ROW * max(len(checks) + (len(result.checks) > 1), 1) + _BARS_BELOW
    height = _TOP + _TITLE + _PANEL + _LEGEND + bars
    with house_style():
        figure = Figure((WIDTH, height))
        title = f"{shortened(result.group, 30)}: {shortened(result.control, 20)} → {shortened(result.treated, 20)}"
        write(figure, 0.1, _TITLE_LINE, title, size=9, weight="bold")
        _draw_genes(figure, result)
        _draw_places(figure, result, places)
        _draw_checks(figure, result, checks, _TOP + _TITLE + _PANEL + _LEGEND)
    return figure


def _draw_genes(figure: Figure, result: Perturbation) -> None:
    changes = result.changes
    beside, name = next(
        (column_g, name)
        for column_g, name in (
            (changes.observed_g, "observed change"),
            (changes.mean_change_g, "mean change of the other groups"),
            (changes.additive_g, "sum of what the parts do"),
            (changes.change_g, "predicted change"),
        )
        if column_g is not None
    )
    head(figure, 0.1, _TOP, "a", f"Predicted beside the {name}, a dot a gene")
    axes = place(figure, _LEFT, _TOP + _TITLE, _PANEL + 0.35, _PANEL)
    axes.set_label("genes")
    both = np.concatenate([beside, changes.change_g])
    margin = 0.1 * float(np.ptp(both)) + 1e-6
    limits = (float(both.min()) - margin, float(both.max()) + margin)
    axes.axhline(0, color=NO_GROUP, linewidth=0.5, zorder=0)
    axes.axvline(0, color=NO_GROUP, linewidth=0.5, zorder=0)
    axes.plot(limits, limits, color="black", linewidth=0.6, zorder=1)
    top = result.top_genes(_NAMED)
    axes.scatter(beside, changes.change_g, s=4, c=OTHER_GROUPS, alpha=0.5, linewidths=0, rasterized=True, gid="genes")
    axes.scatter(beside[top], changes.change_g[top], s=7, c=_PREDICTED, linewidths=0, gid="top")
    axes.set(xlim=limits, ylim=limits, xlabel=name, ylabel="predicted change")
    axes.xaxis.labelpad = axes.yaxis.labelpad = 1
    _name(axes, beside[top], changes.change_g[top], [result.genes[g] for g in top], limits)


def _name(axes: Axes, x_t: np.ndarray, y_t: np.ndarray, names: list[str], limits: tuple[float, float]) -> None:
    """Names beside the dots, away from the diagonal, and apart: upwards of those above it, else downwards."""
    low, high = limits
    least, aside = 0.036 * (high - low), 0.025 * (high - low)
    line = {"arrowstyle": "-", "linewidth": 0.3, "color": OTHER_GROUPS, "shrinkA": 0, "shrinkB": 1}
    for sign, alignment in ((1, "right"), (-1, "left")):
        side = np.flatnonzero((y_t >= x_t) == (sign > 0))
        before = -np.inf
        for t in side[np.argsort(sign * y_t[side])]:
            # The next name begins where the one before ends, counted in the direction they give way.
            before = max(sign * float(y_t[t]), before + least)
            axes.annotate(
                shortened(names[t], 14),
                (x_t[t], y_t[t]),
                (x_t[t] - sign * aside, sign * before),
                size=5.5,
                ha=alignment,
                va="center",
                arrowprops=line,
                annotation_clip=False,
            )


def _draw_places(figure: Figure, result: Perturbation, places: CellPlane) -> None:
    head(figure, _RIGHT - 0.25, _TOP, "b", f"Where the {len(result.cells):,} cells go, over the first two latent axes")
    axes = place(figure, _RIGHT, _TOP + _TITLE, WIDTH - _RIGHT - 0.15, _PANEL)
    axes.set_label("plane")
    axes.set(xticks=[], yticks=[], xlabel="latent axis 1", ylabel="latent axis 2")
    shown: list[tuple[np.ndarray, str, str]] = [
        (places.others_control, NO_GROUP, f"others, {result.control}"),
        (places.others_treated, OTHER_GROUPS, f"others, {' or '.join(result.sources)}"),
        (places.control, _CONTROL, f"{result.group}, {result.control}"),
        (places.treated, _TREATED, f"{result.group}, {result.treated}: observed"),
        (places.predicted, _PREDICTED, f"{result.group}, {result.treated}: predicted"),
    ]
    shown = [part for part in shown if len(part[0])]
    for xy_n2, colour, name in shown:
        size = float(np.clip(150 / np.sqrt(len(xy_n2)), 2.5, 10))
        look: dict[str, Any] = {"s": size, "c": colour, "alpha": 0.7, "linewidths": 0, "rasterized": True}
        axes.scatter(xy_n2[:, 0], xy_n2[:, 1], gid=name, **look)
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "markeredgewidth": 0}
    signs = [Line2D([], [], color=colour, **dot) for _, colour, _ in shown]
    below = {"loc": "upper left", "bbox_to_anchor": (0, -0.06), "ncols": 2, "frameon": False, "borderaxespad": 0}
    names = [shortened(name, 32) for _, _, name in shown]
    axes.legend(signs, names, handletextpad=0.2, columnspacing=0.8, handlelength=1.0, borderpad=0, **below)


def _draw_checks(figure: Figure, result: Perturbation, checks: Sequence[Check], top: float) -> None:
    unseen = bool(checks) and all(check.unseen for check in checks)
    seen = "models trained without them" if unseen else "by a model that had seen them"
    head(figure, 0.1, top, "c", f"Treated cells left out and predicted, {seen}: correlation with the observed change")
    if not checks:
        write(figure, _LEFT, top + _TITLE + 0.1, "no group's answer can be found without looking at it", size=7)
        return
    single = len({check.treated for check in checks}) == 1
    rows: list[tuple[str, dict[str, Any]]] = [
        (
            shortened(check.group if single else f"{check.group}, {check.treated}", 26)
            + (" (asked for)" if check is result.own else ""),
            {what: getattr(check, what) for what in _BASELINES},
        )
        for check in checks
    ]
    if len(result.checks) > 1:
        rows.append(("mean of those left out", {what: result.expected(what) for what in _BASELINES}))
    there = [what for what in _BASELINES if any(fits[what] is not None for _, fits in rows)]
    left, width = 1.75, (WIDTH - 1.75 - 0.15 - 0.25) / 2
    for panel, (part, title) in enumerate((("correlation", "all genes"), ("top_correlation", "the 50 surest genes"))):
        axes = place(figure, left + panel * (width + 0.25), top + _TITLE + 0.12, width, _BAR_ROW * len(rows))
        axes.set_label(part)
        axes.set_title(title, pad=2)
        thick = 0.8 / len(there)
        for i, what in enumerate(there):
            values = [np.nan if fits[what] is None else getattr(fits[what], part) for _, fits in rows]
            y_r = np.arange(len(rows)) + (i - (len(there) - 1) / 2) * thick
            axes.barh(y_r, values, height=0.9 * thick, color=_BASELINES[what][1], linewidth=0, gid=what)
            for y, value in zip(y_r, values, strict=True):
                if np.isfinite(value):
                    axes.text(max(value, 0) + 0.01, y, f"{value:.2f}", size=5, va="center", gid="value")
        lowest = min((getattr(fit, part) for _, fits in rows for fit in fits.values() if fit is not None), default=0)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(min(0, lowest * 1.05), 1.08), xticks=[0, 0.5, 1])
        axes.set_yticks(range(len(rows)), [name for name, _ in rows] if panel == 0 else [])
        axes.tick_params(axis="y", length=0)
    bar: dict[str, Any] = {"linestyle": "", "marker": "s", "markersize": 4, "markeredgewidth": 0}
    signs = [Line2D([], [], color=_BASELINES[what][1], **bar) for what in there]
    names = [_BASELINES[what][0] for what in there]
    below = {"loc": "upper right", "bbox_to_anchor": (1, -0.14 / _BAR_ROW / len(rows) * 1.3), "ncols": 3}
    axes.legend(signs, names, frameon=False, borderaxespad=0, handletextpad=0.2, columnspacing=1.0, **below)


def _plane(z_nk: np.ndarray) -> np.ndarray:
    """The first two coordinates; a lone one stands over zeros."""
    return np.pad(z_nk, ((0, 0), (0, max(0, 2 - z_nk.shape[1]))))[:, :2]
