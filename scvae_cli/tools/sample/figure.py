"""The figure of sampled and real cells: latent positions of the cells, and statistics of the genes.

The off-manifold score of a sampled cell is the share of the held-out cells' posterior samples that lie at a higher
latent density. A sampled cell with a score above 0.95 lies in a hole of latent space.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from scvae_cli.amounts import amount
from scvae_cli.data.counts import Counts
from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.latent.gene_moments import GeneMoments
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import NO_GROUP, OFF, WIDTH, head, place, write
from scvae_cli.tools.sample.result import Sampled

_MAX_DOTS = 4000
_SAMPLED = "#0072B2"
_TITLE_LINE, _TOP, _TITLE = 0.14, 0.42, 0.2
_PLANE_LEFT, _PLANE_WIDTH, _PLANE_HEIGHT = 0.3, 3.0, 3.0
_PANEL_LEFT, _PANEL, _BETWEEN_PANELS, _BETWEEN_ROWS = 3.95, 1.28, 0.6, 0.58
_BOTTOM = 0.5


@dataclass(frozen=True, kw_only=True)
class Points:
    """Positions of cells along the first two canonical axes, and which sampled cells lie in a hole of latent space."""

    real_n2: np.ndarray
    sampled_n2: np.ndarray
    in_hole_n: np.ndarray

    @classmethod
    def of(cls, model: Model, real: Counts, result: Sampled, *, seed: int) -> Points:
        """Choose at most `_MAX_DOTS` sampled cells and as many real cells, at regular intervals of the rows."""
        posterior = posteriors(model, real.cells(even(np.arange(real.n_cells), _MAX_DOTS)))
        # Sampled cells should cover the posterior samples of real cells, which spread wider than their posterior means.
        noise_nk = torch.randn(posterior.mean_nk.shape, generator=torch.Generator().manual_seed(seed))
        shown = even(np.arange(len(result.z_nk)), _MAX_DOTS)
        return cls(
            real_n2=_plane(model.axes.position(posterior.sample(noise_nk)).numpy()),
            sampled_n2=_plane(result.z_nk[shown]),
            in_hole_n=result.off_manifold_n[shown] > OFF_MANIFOLD,
        )


def sample_figure(points: Points, result: Sampled, real: GeneMoments, sampled: GeneMoments) -> Figure:
    """Draw a figure of cells and genes; the figure is not registered with pyplot, so save it with `save_figure`."""
    with house_style():
        figure = Figure((WIDTH, _TOP + _TITLE + _PLANE_HEIGHT + _BOTTOM))
        write(figure, 0.1, _TITLE_LINE, _title(result), size=9, weight="bold")
        _draw_plane(figure, points, result, real.n_cells)
        right = _PANEL_LEFT + _PANEL + _BETWEEN_PANELS
        lower = _TOP + _TITLE + _PANEL + _BETWEEN_ROWS
        head(figure, _PANEL_LEFT - 0.35, _TOP, "b", f"{amount(len(real.mean_g), 'gene')}, one dot per gene")
        # Real numbers have no library size, may be negative, and are hardly ever zero.
        of_counts = result.library_n is not None
        limits = None if of_counts else _around(real.mean_g, sampled.mean_g)
        panel = partial(place, figure, width=_PANEL, height=_PANEL)
        _draw_genes(panel(_PANEL_LEFT, _TOP + _TITLE), "mean", real.mean_g, sampled.mean_g, limits)
        _draw_genes(panel(right, _TOP + _TITLE), "variance", real.variance_g, sampled.variance_g)
        if of_counts:
            _draw_genes(panel(_PANEL_LEFT, lower), "zero fraction", real.zero_g, sampled.zero_g, (-0.02, 1.02))
        _draw_scores(panel(right, lower), result)
    return figure


def _title(result: Sampled) -> str:
    source = {"prior": "the prior", "density": "the density of the training cells"}.get(result.source)
    if source is None:
        assert result.group is not None, "a group has a name"
        source = " ".join(result.group[1].split())
        source = source if len(source) <= 50 else f"{source[:49]}…"
    return f"{amount(len(result.z_nk), 'cell')} drawn from {source}"


def _draw_plane(figure: Figure, points: Points, result: Sampled, n_real: int) -> None:
    head(figure, 0.1, _TOP, "a", f"New cells and {amount(n_real, 'real cell')} along the first two latent axes")
    axes = place(figure, _PLANE_LEFT, _TOP + _TITLE, _PLANE_WIDTH, _PLANE_HEIGHT)
    axes.set_label("plane")
    axes.set(xticks=[], yticks=[], xlabel="latent axis 1", ylabel="latent axis 2")
    look: dict[str, Any] = {"linewidths": 0, "rasterized": True}
    for xy_n2, color, alpha, name in (
        (points.real_n2, NO_GROUP, 0.9, "real"),
        (points.sampled_n2[~points.in_hole_n], _SAMPLED, 0.5, "sampled"),
        (points.sampled_n2[points.in_hole_n], OFF, 0.8, "holes"),
    ):
        size = float(np.clip(200 / np.sqrt(max(len(xy_n2), 1)), 2, 10))
        axes.scatter(xy_n2[:, 0], xy_n2[:, 1], s=size, c=color, alpha=alpha, gid=name, **look)
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "markeredgewidth": 0}
    handles = [Line2D([], [], color=color, **dot) for color in (NO_GROUP, _SAMPLED, OFF)]
    names = ["real (one posterior sample each)", "sampled", f"in a hole ({result.in_holes:.1%})"]
    below = {"loc": "upper left", "bbox_to_anchor": (0, -0.07), "ncols": 3, "frameon": False, "borderaxespad": 0}
    axes.legend(handles, names, handletextpad=0.2, columnspacing=1.0, handlelength=1.0, borderpad=0, **below)


def _around(real_g: np.ndarray, sampled_g: np.ndarray) -> tuple[float, float]:
    """Compute axis limits that include all values."""
    both = np.concatenate([real_g, sampled_g])
    margin = 0.05 * float(np.ptp(both)) + 1e-6
    return float(both.min()) - margin, float(both.max()) + margin


def _name(axes: Axes, label: str, title: str, x: str, y: str) -> None:
    axes.set_title(title, pad=3)
    axes.set(label=label, xlabel=x, ylabel=y)
    axes.xaxis.labelpad = axes.yaxis.labelpad = 1


def _draw_genes(
    axes: Axes, name: str, real_g: np.ndarray, sampled_g: np.ndarray, limits: tuple[float, float] | None = None
) -> None:
    """Draw one dot per gene. If no limits are given, both axes are logarithmic."""
    _name(axes, name, name, "real cells", "sampled cells")
    if limits is None:
        # A gene that is zero in the real or in the sampled cells has no logarithm, so its dot is drawn at the edge.
        shown = np.concatenate([real_g[real_g > 0], sampled_g[sampled_g > 0], [1e-3]])
        low, high = float(shown.min()) / 1.5, max(float(shown.max()) * 1.5, 1e-2)
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(numticks=4))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        real_g, sampled_g = np.maximum(real_g, low), np.maximum(sampled_g, low)
    else:
        low, high = limits
    axes.plot([low, high], [low, high], color="black", linewidth=0.6, zorder=3)
    axes.scatter(real_g, sampled_g, s=2, c=_SAMPLED, alpha=0.4, linewidths=0, rasterized=True, gid="genes")
    axes.set(xlim=(low, high), ylim=(low, high))


def _draw_scores(axes: Axes, result: Sampled) -> None:
    """Draw a histogram of the off-manifold scores, and a line for the uniform distribution of real cells' scores."""
    _name(axes, "scores", "off-manifold score", "score (line: real cells)", "share of sampled cells")
    edges = np.linspace(0, 1, 21)
    share_b = np.histogram(result.off_manifold_n, edges)[0] / len(result.z_nk)
    axes.bar(edges[:-1], share_b, width=0.05, align="edge", color=[_SAMPLED] * 19 + [OFF], linewidth=0)
    axes.axhline(0.05, color="black", linewidth=0.6)
    axes.set(xlim=(0, 1), xticks=[0, 0.5, 1])


def _plane(z_nk: np.ndarray) -> np.ndarray:
    """Return the first two coordinates, shape (n, 2); with a single latent dimension, the second coordinate is 0."""
    return np.pad(z_nk, ((0, 0), (0, max(0, 2 - z_nk.shape[1]))))[:, :2]
