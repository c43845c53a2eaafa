"""A diagnosis on one page: use of the axes, their correlations, gaps, zeros, variances, and where the prior falls.

Shapes: k latent dimensions, g genes, b bins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from scvae_cli.report.figure_file import house_style, save_figure
from scvae_cli.report.page import NO_GROUP, OFF, WIDTH, head, place, write
from scvae_cli.tools.diagnose.diagnosis import Diagnosis
from scvae_cli.tools.diagnose.health import Shape, Usage
from scvae_cli.tools.diagnose.predictive import GeneStatistic

_ACTIVE, _AMORTIZATION, _VARIATIONAL = "#0072B2", "#0072B2", "#E69F00"
_LEFTS, _WIDE, _TALL = (0.5, 3.05, 5.65), 1.7, 1.7
_TITLE_LINE, _FIRST, _SECOND, _BOTTOM = 0.14, 0.42, 2.85, 0.45
_TITLE = 0.2


def draw_diagnosis(result: Diagnosis, file: Path) -> None:
    """Draw a diagnosis into a file, which is written whole or not at all."""
    save_figure(diagnosis_figure(result), file)


def diagnosis_figure(result: Diagnosis) -> Figure:
    """Draw a diagnosis: six parts, for `save_figure`; pyplot does not know of it."""
    check = result.check
    with house_style():
        figure = Figure((WIDTH, _SECOND + _TITLE + _TALL + _BOTTOM))
        which = "held-out cells" if result.heldout else "cells"
        write(figure, 0.1, _TITLE_LINE, f"Diagnosis on {result.n_judged:,} {which}: {_levels(result)}", size=9)
        axes = []
        titles = ("Use of the axes", "Correlation of the axes", "Gaps", "Zeros of genes", "Variances of genes")
        for i, title in enumerate((*titles, "Prior samples")):
            left, top = _LEFTS[i % 3], (_FIRST, _SECOND)[i // 3]
            head(figure, left - 0.35, top, "abcdef"[i], title)
            axes.append(place(figure, left, top + _TITLE, _WIDE, _TALL))
            axes[-1].set_label(title)
        _draw_usage(axes[0], result.usage)
        _draw_correlations(figure, axes[1], result.shape)
        _draw_gaps(axes[2], result)
        if check.zeros is None:
            axes[3].set_axis_off()
            axes[3].text(0.5, 0.5, "no counts, no zeros", ha="center", va="center")
        else:
            _draw_genes(axes[3], check.zeros, "share of cells without a count", logged=False)
        _draw_genes(axes[4], check.variances, "variance", logged=True)
        _draw_prior(axes[5], result.shape)
    return figure


def _levels(result: Diagnosis) -> str:
    levels = [verdict.level for verdict in result.verdicts]
    return ", ".join(f"{levels.count(level)} {level}" for level in ("good", "watch", "poor") if level in levels)


def _draw_usage(axes: Axes, usage: Usage) -> None:
    """KL of every axis, the largest first, under its number in the frame of the training."""
    order = np.argsort(-usage.kl_k, kind="stable")
    colours = [_ACTIVE if usage.active_k[d] else NO_GROUP for d in order]
    at = np.arange(len(order))
    axes.bar(at, usage.kl_k[order], width=0.8, color=colours, linewidth=0)
    every = -(-len(order) // 20)
    many: dict[str, Any] = {"size": 5, "rotation": 90} if len(order) > 10 else {}
    axes.set_xticks(at[::every], [str(d + 1) for d in order[::every]], **many)
    axes.set(xlabel="training axis", ylabel="mean KL, nats", xlim=(-0.6, len(order) - 0.4))
    signs = [Patch(color=_ACTIVE, label=f"active ({usage.n_active})")]
    signs += [Patch(color=NO_GROUP, label="not active")] if usage.n_active < len(order) else []
    axes.legend(handles=signs, frameon=False, loc="upper right", handlelength=0.8, handleheight=0.8)


def _draw_correlations(figure: Figure, axes: Axes, shape: Shape) -> None:
    """Among the active axes; all of them where fewer than two are."""
    active = np.flatnonzero(shape.active_k)
    active = active if len(active) > 1 else np.arange(len(shape.active_k))
    among = shape.correlation_kk[np.ix_(active, active)].copy()
    # An axis' correlation with itself says nothing.
    np.fill_diagonal(among, np.nan)
    image = axes.imshow(among, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    every = -(-len(active) // 16)
    ticks = np.arange(len(active))[::every]
    names = [str(d + 1) for d in active[::every]]
    small = 5 if len(active) > 10 else None
    axes.set_xticks(ticks, names, size=small)
    axes.set_yticks(ticks, names, size=small)
    axes.set(xlabel="active training axis")
    left, bottom, width, height = axes.get_position().bounds
    bar = figure.add_axes((left + width * 1.03, bottom, width * 0.04, height))
    figure.colorbar(image, cax=bar, ticks=[-1, 0, 1])
    bar.set_label("correlation bar")
    bar.tick_params(length=1.5, pad=1)
    bar.spines["outline"].set_visible(False)


def _draw_gaps(axes: Axes, result: Diagnosis) -> None:
    """From the encoder's ELBO up to the importance bound."""
    amortization, variational = result.gaps.amortization, result.gaps.variational
    error: dict[str, Any] = {"ecolor": "black", "capsize": 2, "error_kw": {"linewidth": 0.6}}
    look: dict[str, Any] = {"width": 0.5, "linewidth": 0}
    axes.bar(0, amortization.mean, color=_AMORTIZATION, yerr=amortization.error, label="amortization", **look, **error)
    axes.bar(
        0,
        variational.mean,
        bottom=amortization.mean,
        color=_VARIATIONAL,
        yerr=variational.error,
        label="variational",
        **look,
        **error,
    )
    bounds = result.gaps.values()
    heights = (0.0, amortization.mean, amortization.mean + variational.mean)
    top = max(*heights, 1e-3) * 1.35
    # Names of levels that are close to each other are moved apart.
    apart, at = 0.14 * top, -np.inf
    for height, key, name in zip(
        heights, ("elbo", "refined_elbo", "bound"), ("ELBO", "refined", "importance bound"), strict=True
    ):
        at = max(height, at + apart)
        axes.annotate(
            f"{name}\n{bounds[key]:,.2f}".replace("-", "−"),
            (0.27, height),
            (0.42, at),
            va="center",
            size=6.5,
            linespacing=1.0,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.5"},
            annotation_clip=False,
        )
    axes.set(
        xlim=(-0.4, 1.3), ylim=(min(0.0, *heights) - 0.05 * top, top), xticks=[], ylabel="nats a cell above the ELBO"
    )
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.spines["bottom"].set_visible(False)
    axes.legend(frameon=False, loc="upper left", handlelength=0.8, handleheight=0.8, borderaxespad=0.0)


def _draw_genes(axes: Axes, statistic: GeneStatistic, name: str, *, logged: bool) -> None:
    judged_g, outside_g = statistic.judged_g, statistic.outside_g
    observed_g, predicted_g = statistic.observed_g, statistic.predicted_g
    if logged:
        # A gene without variance has no logarithm; it is drawn at the edge.
        shown = np.concatenate([part[judged_g & (part > 0)] for part in (observed_g, predicted_g)])
        # Real numbers have variances of any size; where there is none to show, the axes are there all the same.
        shown = shown if len(shown) else np.ones(1)
        low, high = float(shown.min()) / 1.5, float(shown.max()) * 1.5
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(numticks=4))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        observed_g, predicted_g = np.maximum(observed_g, low), np.maximum(predicted_g, low)
    else:
        low, high = -0.02, 1.02
    axes.plot([low, high], [low, high], color="black", linewidth=0.6, zorder=4)
    for mask_g, colour, size, label in (
        (judged_g & ~outside_g, _ACTIVE, 2, f"in the 99% band ({int((judged_g & ~outside_g).sum()):,})"),
        (outside_g, OFF, 5, f"outside ({int(outside_g.sum()):,})"),
    ):
        axes.scatter(
            predicted_g[mask_g],
            observed_g[mask_g],
            s=size,
            c=colour,
            alpha=0.5,
            linewidths=0,
            rasterized=True,
            label=label,
        )
    axes.set(xlim=(low, high), ylim=(low, high), xlabel=f"{name}, predicted", ylabel="observed")
    axes.legend(frameon=False, loc="upper left", handletextpad=0.1, borderaxespad=0.0, markerscale=1.5)


def _draw_prior(axes: Axes, shape: Shape) -> None:
    """How the prior samples are spread over places as dense as so many held-out cells' samples."""
    share_b = shape.prior_ranks_b
    wide = 1 / len(share_b)
    left_b = np.arange(len(share_b)) * wide
    look: dict[str, Any] = {"width": wide, "align": "edge", "linewidth": 0}
    axes.bar(left_b, share_b, color=_ACTIVE, **look)
    # Holes are a part of the last bin.
    axes.bar(left_b[-1], min(shape.holes, float(share_b[-1])), color=OFF, **look)
    axes.axhline(wide, color="black", linewidth=0.6)
    axes.text(0.02, 0.97, f"in holes (beyond 99%): {shape.holes:.1%}", transform=axes.transAxes, va="top", color=OFF)
    axes.text(0.02, 0.87, "line: if prior and cells agreed", transform=axes.transAxes, va="top")
    top = max(float(share_b.max()) * 1.25, 3 * wide)
    axes.set(xlim=(0, 1), ylim=(0, top), xticks=[0, 0.5, 1], xlabel="held-out cells in denser places", ylabel="share")
