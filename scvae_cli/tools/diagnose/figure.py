"""The figure of a diagnosis, with panels of the latent axes, the gaps, the genes, prior samples and the embedding.

The panels of the latent axes show how much each axis is used, and the correlations between axes. A gap is a difference
between two bounds on log p(x). The panels of the genes compare observed and simulated zero fractions and variances. The
panel of the embedding compares the embedding with PCA and Harmony.

Letters in array shapes: k latent dimensions, g genes, b bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import NO_GROUP, OFF, WIDTH, head, place, write
from scvae_cli.tools.diagnose.diagnosis import Diagnosis
from scvae_cli.tools.diagnose.embedding_quality import EMBEDDING, HARMONY, PCA, EmbeddingQuality
from scvae_cli.tools.diagnose.latent_use import AggregatedPosterior, LatentUse
from scvae_cli.tools.diagnose.predictive import GeneStatistic
from scvae_cli.tools.diagnose.verdict import LEVELS

_ACTIVE, _AMORTIZATION, _VARIATIONAL = "#0072B2", "#0072B2", "#E69F00"
_LEFTS, _WIDE, _TALL = (0.5, 3.05, 5.65), 1.7, 1.7
_TITLE_LINE, _FIRST, _SECOND, _THIRD, _BOTTOM, _TITLE = 0.14, 0.42, 2.85, 5.28, 0.45, 0.2
_COMPARED, _LOW = 4.75, 1.2
_COLORS = {EMBEDDING: "#0072B2", PCA: "#E69F00", HARMONY: "#009E73"}
# Titles of the scores, in the order in which they are drawn.
SCORES = {
    "vote_accuracy": "vote of\nneighbors",
    "ari": "clusters,\nARI",
    "nmi": "clusters,\nNMI",
    "silhouette": "silhouette\nof labels",
    "ilisi": "mixing,\niLISI",
    "kbet": "mixing,\nkBET",
}


def diagnosis_figure(result: Diagnosis) -> Figure:
    """Draw a diagnosis in six panels. If the data have labels or batches, a seventh panel shows the embedding."""
    check, quality = result.check, result.quality
    compared = quality.by_labels or quality.by_batches
    with house_style():
        above = _THIRD + _TITLE + _LOW if compared else _SECOND + _TITLE + _TALL
        figure = Figure((WIDTH, above + _BOTTOM))
        cells = "held-out cells" if result.heldout else "cells"
        levels = [verdict.level for verdict in result.verdicts]
        counted = ", ".join(f"{levels.count(level)} {level}" for level in LEVELS if level in levels)
        write(figure, 0.1, _TITLE_LINE, f"Diagnosis on {result.n_evaluated:,} {cells}: {counted}", size=9)
        axes = []
        titles = ("Use of the axes", "Correlation of the axes", "Gaps", "Zeros of genes", "Variances of genes")
        for i, title in enumerate((*titles, "Prior samples")):
            left, top = _LEFTS[i % 3], (_FIRST, _SECOND)[i // 3]
            head(figure, left - 0.35, top, "abcdef"[i], title)
            axes.append(place(figure, left, top + _TITLE, _WIDE, _TALL))
            axes[-1].set_label(title)
        _draw_use(axes[0], result.use)
        _draw_correlations(figure, axes[1], result.aggregate)
        _draw_gaps(axes[2], result)
        if check.zeros is None:
            axes[3].set_axis_off()
            axes[3].text(0.5, 0.5, "not evaluated:\nthe data are not counts", ha="center", va="center")
        else:
            _draw_genes(axes[3], check.zeros, "fraction of zeros", logged=False)
        _draw_genes(axes[4], check.variances, "variance", logged=True)
        _draw_prior(axes[5], result.aggregate)
        if compared:
            title = "Embedding, PCA and Harmony" if quality.of(HARMONY) else "Embedding and PCA"
            head(figure, _LEFTS[0] - 0.35, _THIRD, "g", title)
            panel = place(figure, _LEFTS[0], _THIRD + _TITLE, _COMPARED * len(_shown(quality)) / len(SCORES), _LOW)
            panel.set_label(title)
            _draw_comparison(panel, quality)
    return figure


def _draw_use(axes: Axes, use: LatentUse) -> None:
    """Draw the KL to the prior along every latent axis of the encoder, in descending order."""
    order = np.argsort(-use.kl_k, kind="stable")
    colors = [_ACTIVE if use.active_k[d] else NO_GROUP for d in order]
    at = np.arange(len(order))
    axes.bar(at, use.kl_k[order], width=0.8, color=colors, linewidth=0)
    every = -(-len(order) // 20)
    many: dict[str, Any] = {"size": 5, "rotation": 90} if len(order) > 10 else {}
    axes.set_xticks(at[::every], [str(d + 1) for d in order[::every]], **many)
    axes.set(xlabel="training axis", ylabel="mean KL, nats", xlim=(-0.6, len(order) - 0.4))
    handles = [Patch(color=_ACTIVE, label=f"active ({use.n_active})")]
    handles += [Patch(color=NO_GROUP, label="not active")] if use.n_active < len(order) else []
    axes.legend(handles=handles, frameon=False, loc="upper right", handlelength=0.8, handleheight=0.8)


def _draw_correlations(figure: Figure, axes: Axes, aggregate: AggregatedPosterior) -> None:
    """Draw the correlations of the active axes, or of all axes if fewer than two are active."""
    active = np.flatnonzero(aggregate.active_k)
    active = active if len(active) > 1 else np.arange(len(aggregate.active_k))
    among = aggregate.correlation_kk[np.ix_(active, active)].copy()
    # The correlation of an axis with itself is always 1, so it is not drawn.
    np.fill_diagonal(among, np.nan)
    image = axes.imshow(among, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    every = -(-len(active) // 16)
    ticks = np.arange(len(active))[::every]
    names, small = [str(d + 1) for d in active[::every]], 5 if len(active) > 10 else None
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
    """Draw the gaps as a stack from the encoder's ELBO up to the importance-weighted bound."""
    amortization, variational = result.gaps.amortization, result.gaps.variational
    error: dict[str, Any] = {"ecolor": "black", "capsize": 2, "error_kw": {"linewidth": 0.6}}
    look: dict[str, Any] = {"width": 0.5, "linewidth": 0} | error
    axes.bar(0, amortization.mean, color=_AMORTIZATION, yerr=amortization.error, label="amortization", **look)
    look |= {"bottom": amortization.mean, "color": _VARIATIONAL}
    axes.bar(0, variational.mean, yerr=variational.error, label="variational", **look)
    bounds = result.gaps.values()
    heights = (0.0, amortization.mean, amortization.mean + variational.mean)
    top = max(*heights, 1e-3) * 1.35
    # Labels of similar heights are moved apart.
    apart, at = 0.14 * top, -np.inf
    names = {"elbo": "ELBO", "refined_elbo": "refined ELBO", "bound": "importance bound"}
    line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.5"}
    font: dict[str, Any] = {"va": "center", "size": 6.5, "linespacing": 1.0}
    for height, (key, name) in zip(heights, names.items(), strict=True):
        at = max(height, at + apart)
        text = f"{name}\n{bounds[key]:,.2f}".replace("-", "−")
        axes.annotate(text, (0.27, height), (0.42, at), arrowprops=line, annotation_clip=False, **font)
    axes.set(xlim=(-0.4, 1.3), ylim=(min(0.0, *heights) - 0.05 * top, top))
    axes.set(xticks=[], ylabel="nats per cell above the ELBO")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.spines["bottom"].set_visible(False)
    axes.legend(frameon=False, loc="upper left", handlelength=0.8, handleheight=0.8, borderaxespad=0.0)


def _draw_genes(axes: Axes, statistic: GeneStatistic, name: str, *, logged: bool) -> None:
    evaluated_g, outside_g = statistic.evaluated_g, statistic.outside_g
    observed_g, predicted_g = statistic.observed_g, statistic.predicted_g
    if logged:
        # Genes with a variance of 0, whose logarithm is not defined, are drawn at the edge.
        shown = np.concatenate([part[evaluated_g & (part > 0)] for part in (observed_g, predicted_g)])
        # Without evaluated genes the axes are drawn empty.
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
    look: dict[str, Any] = {"alpha": 0.5, "linewidths": 0, "rasterized": True}
    inside_g = evaluated_g & ~outside_g
    for mask_g, color, size, where in ((inside_g, _ACTIVE, 2, "inside the 99% band"), (outside_g, OFF, 5, "outside")):
        label = f"{where} ({int(mask_g.sum()):,})"
        axes.scatter(predicted_g[mask_g], observed_g[mask_g], s=size, c=color, label=label, **look)
    axes.set(xlim=(low, high), ylim=(low, high), xlabel=f"{name}, predicted", ylabel="observed")
    axes.legend(frameon=False, loc="upper left", handletextpad=0.1, borderaxespad=0.0, markerscale=1.5)


def _draw_prior(axes: Axes, aggregate: AggregatedPosterior) -> None:
    """Draw a histogram of prior samples by the fraction of cells that lie at a higher density than the prior sample."""
    share_b = aggregate.prior_ranks_b
    width = 1 / len(share_b)
    left_b = np.arange(len(share_b)) * width
    look: dict[str, Any] = {"width": width, "align": "edge", "linewidth": 0}
    axes.bar(left_b, share_b, color=_ACTIVE, **look)
    # Prior samples in holes, regions with almost no cells, are part of the last bin of the histogram.
    axes.bar(left_b[-1], min(aggregate.holes, float(share_b[-1])), color=OFF, **look)
    axes.axhline(width, color="black", linewidth=0.6)
    axes.text(0.02, 0.97, f"in holes: {aggregate.holes:.1%}", transform=axes.transAxes, va="top", color=OFF)
    axes.text(0.02, 0.87, "line: prior matches the cells", transform=axes.transAxes, va="top")
    top = max(float(share_b.max()) * 1.25, 3 * width)
    axes.set(xlim=(0, 1), ylim=(0, top), xticks=[0, 0.5, 1])
    axes.set(xlabel="fraction of cells at higher density", ylabel="fraction of prior samples")


def _shown(quality: EmbeddingQuality) -> list[str]:
    """Return the names of the scores that were computed."""
    return [name for name in SCORES if getattr(quality.scores[0], name) is not None]


def _draw_comparison(axes: Axes, quality: EmbeddingQuality) -> None:
    """Draw each score as a group of bars, one bar each for the embedding, PCA and Harmony."""
    shown = _shown(quality)
    width = 0.8 / len(quality.scores)
    for i, scores in enumerate(quality.scores):
        at = np.arange(len(shown)) + (i - (len(quality.scores) - 1) / 2) * width
        heights = [getattr(scores, name) for name in shown]
        axes.bar(at, heights, width=0.9 * width, color=_COLORS[scores.name], linewidth=0, label=scores.name)
    lowest = min(0.0, *(scores.silhouette or 0.0 for scores in quality.scores))
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(np.arange(len(shown)), [SCORES[name] for name in shown])
    axes.tick_params(axis="x", length=0)
    axes.set(ylim=(1.05 * lowest, 1), xlim=(-0.5, len(shown) - 0.5), ylabel="score")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=0.8, handleheight=0.8)
