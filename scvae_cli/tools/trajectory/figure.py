"""The figure of a trajectory: its path among the cells, a heat map of its genes, and curves compared with cells.

Shapes: n cells, t steps, g genes, c chosen genes.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import WIDTH, group_colors, shortened, write
from scvae_cli.tools.trajectory.gene_curves import N_CURVES, curves_height, draw_curves
from scvae_cli.tools.trajectory.heat_map import draw_heat_map, heat_map_height
from scvae_cli.tools.trajectory.plane import Backdrop, Legend, draw_plane, plane_height, steps_in_plane
from scvae_cli.tools.trajectory.result import Trajectory

__all__ = ["Backdrop", "path_figure", "steps_in_plane"]

_TOP, _BETWEEN, _BOTTOM = 0.42, 0.22, 0.1
_TITLE_LENGTH = 84


def path_figure(
    trajectory: Trajectory,
    *,
    backdrop: Backdrop,
    expression_nc: np.ndarray,
    chosen: np.ndarray,
    inflation_tc: np.ndarray | None = None,
) -> Figure:
    """Draw a trajectory.

    Parameters
    ----------
    trajectory
        The trajectory and its genes.
    backdrop
        Positions of the cells and of the trajectory in a plane.
    expression_nc
        Counts of the chosen genes in the cells, scaled to the library size of the trajectory.
    chosen
        Indices in `trajectory.genes`; the first twelve are drawn.
    inflation_tc
        Factors by which zero inflation changes the decoded counts of the chosen genes at the same library size; None
        for no change. The counts of the cells contain technical zeros, so the curves drawn over them must as well.

    Returns
    -------
    A figure with three panels, for `save_figure`; it is not registered with pyplot.
    """
    chosen = np.asarray(chosen, dtype=int)[:N_CURVES]
    passed = list(dict.fromkeys(trajectory.steps.groups_passed()))
    colors = group_colors(backdrop.groups_n, passed)
    with house_style():
        legend = Legend(trajectory, backdrop, colors)
        upper = max(plane_height(legend), heat_map_height(trajectory))
        lower = curves_height(len(chosen))
        figure = Figure((WIDTH, _TOP + upper + (_BETWEEN + lower if lower else 0) + _BOTTOM))
        write(figure, 0.1, 0.14, _title(trajectory), size=9, weight="bold")
        draw_plane(figure, trajectory, backdrop, colors, legend, _TOP, upper)
        draw_heat_map(figure, trajectory, colors, _TOP, upper)
        inflation_tc = np.ones((len(trajectory.z_tk), len(chosen))) if inflation_tc is None else inflation_tc
        draw_curves(figure, trajectory, chosen, expression_nc, inflation_tc, _TOP + upper + _BETWEEN)
    return figure


def _title(trajectory: Trajectory) -> str:
    labels = list(trajectory.labels)
    if len(labels) > 6:
        labels[3:-2] = ["…"]
    fits = sum(map(len, labels)) + 3 * len(labels) <= _TITLE_LENGTH
    length = _TITLE_LENGTH if fits else _TITLE_LENGTH // len(labels) - 3
    return " → ".join(shortened(label, length) for label in labels)
