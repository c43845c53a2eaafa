"""The figure of a sweep in three panels: the rate–distortion curve, the loss, and the number of active dimensions.

Letters in array shapes: r runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import OFF, WIDTH, head, place
from scvae_cli.tools.sweep.result import NAMES, Sweep

_HEIGHT, _TOP, _TALL = 2.75, 0.3, 2.0
_LEFTS, _WIDE = (0.55, 3.3, 5.75), (2.1, 1.75, 1.65)
_LINE, _ISO, _N_ISO = "#0072B2", "#D9D9D9", 14
_RUNS: dict[str, Any] = {
    "color": _LINE, "marker": "o", "markersize": 3.5, "linewidth": 1, "clip_on": False, "zorder": 3
}  # fmt: skip


def sweep_figure(sweep: Sweep) -> Figure:
    """Draw a sweep in three panels; the figure is not registered with pyplot."""
    evaluated = "Withheld molecules" if sweep.criterion == "thinning" else "Held-out cells"
    titles = ("Rate and distortion", evaluated, "Active dimensions")
    with house_style():
        figure = Figure((WIDTH, _HEIGHT))
        drawings = (_draw_curve, _draw_loss, _draw_active)
        for letter, left, wide, title, draw in zip("abc", _LEFTS, _WIDE, titles, drawings, strict=True):
            head(figure, left - 0.45, 0.14, letter, title)
            axes = place(figure, left, _TOP, wide, _TALL)
            axes.set_label(title)
            draw(axes, sweep)
    return figure


def _draw_curve(axes: Axes, sweep: Sweep) -> None:
    rate_r, distortion_r = sweep.column("rate"), sweep.column("distortion")
    axes.plot(rate_r, distortion_r, **_RUNS)
    _mark_suggested(axes, sweep, rate_r, distortion_r)
    for value, x, y in zip(sweep.values, rate_r, distortion_r, strict=True):
        axes.annotate(
            f"{value:g}", (x, y), (4, 4), textcoords="offset points", size=6.5, zorder=5,
            color=OFF if value == sweep.suggested else "black",
        )  # fmt: skip
    low, high = _around(distortion_r)
    axes.set(xlim=(0, max(rate_r.max() * 1.12, 1e-3)), ylim=(low, high))
    axes.set(xlabel="rate: KL to the prior (nats)", ylabel="distortion: −E[log p(x|z)] (nats)")
    _draw_iso_lines(axes)
    axes.plot([], [], color=_LINE, marker="o", markersize=3.5, linewidth=1, label=f"runs, by {NAMES[sweep.varied]}")
    axes.plot([], [], color=OFF, marker="o", markersize=5, linestyle="", label="suggested")
    axes.plot([], [], color=_ISO, linewidth=1, label="equal ELBO")
    axes.legend(frameon=False, loc="upper right", handlelength=1.4, borderaxespad=0.1)


def _draw_iso_lines(axes: Axes) -> None:
    """Draw lines along which the ELBO, and therefore the sum of rate and distortion, is constant."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    for total in MaxNLocator(_N_ISO, steps=[1, 2, 5, 10]).tick_values(left + low, right + high):
        axes.plot([left, right], [total - left, total - right], color=_ISO, linewidth=0.6, zorder=1, scalex=False)
    axes.set(xlim=(left, right), ylim=(low, high))


def _draw_loss(axes: Axes, sweep: Sweep) -> None:
    excess_r, error_r = sweep.column("excess"), sweep.column("excess_se")
    _value_axis(axes, sweep)
    axes.axhline(0, color=_ISO, linewidth=0.8, zorder=1)
    axes.errorbar(sweep.values, excess_r, yerr=error_r, elinewidth=0.8, capsize=2, **_RUNS)
    _mark_suggested(axes, sweep, sweep.values, excess_r)
    what = "Poisson loss" if sweep.criterion == "thinning" else "−importance bound"
    axes.set_ylabel(f"{what} above the best (nats per cell)")


def _draw_active(axes: Axes, sweep: Sweep) -> None:
    active_r = sweep.column("active_units")
    _value_axis(axes, sweep)
    axes.plot(sweep.values, active_r, **_RUNS)
    _mark_suggested(axes, sweep, sweep.values, active_r)
    axes.set(ylim=(0, max(1.0, float(sweep.column("n_latent").max()) * 1.05)), ylabel="active latent dimensions")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if sweep.varied == "n_latent":
        axes.plot(sweep.values, sweep.values, color=_ISO, linewidth=0.8, zorder=1)


def _mark_suggested(axes: Axes, sweep: Sweep, x_r: Sequence[float] | np.ndarray, y_r: np.ndarray) -> None:
    chosen = sweep.values.index(sweep.suggested)
    axes.plot(x_r[chosen], y_r[chosen], color=OFF, marker="o", markersize=5.5, clip_on=False, zorder=4)


def _value_axis(axes: Axes, sweep: Sweep) -> None:
    """Set up the logarithmic x axis; tick labels that would overlap are omitted."""
    axes.set(xscale="log", xlabel=NAMES[sweep.varied])
    values = np.asarray(sweep.values, dtype=float)
    span = np.log(values[-1] / values[0])
    axes.set_xlim(values[0] * np.exp(-0.08 * span), values[-1] * np.exp(0.08 * span))
    shown = [values[0]]
    for value in values[1:]:
        if np.log(value / shown[-1]) > 0.09 * span:
            shown.append(value)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _around(value_r: np.ndarray) -> tuple[float, float]:
    """Compute axis limits: a margin below the lowest value, and space for a legend above the highest value."""
    low, high = float(value_r.min()), float(value_r.max())
    room = 0.12 * (high - low) or 1.0
    return low - room, high + 4 * room
