"""The figure of a trajectory: the path among the cells, a heat map of genes, and gene curves compared with cells.

Letters in array shapes: n cells, t steps, g genes, c chosen genes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from scvae_cli.latent.expected_counts import library_size
from scvae_cli.report.column_colors import column_colors
from scvae_cli.report.figure_file import house_style
from scvae_cli.report.page import WIDTH, group_colors, shortened, write
from scvae_cli.session import Session
from scvae_cli.tools.trajectory.gene_curves import N_CURVES, curves_height, draw_curves
from scvae_cli.tools.trajectory.heat_map import draw_heat_map, heat_map_height
from scvae_cli.tools.trajectory.plane import Backdrop, Legend, draw_plane, plane_height, steps_in_plane
from scvae_cli.tools.trajectory.result import Trajectory

_TOP, _BETWEEN, _BOTTOM = 0.42, 0.22, 0.1
_TITLE_LENGTH = 84


def trajectory_figure(
    session: Session, trajectory: Trajectory, groups_n: np.ndarray | None, groups_key: str | None
) -> Figure:
    """Draw a trajectory over the UMAP of the data, or over the first two latent axes if there is no UMAP.

    `groups_n` is the group of each cell, and `groups_key` the column of obs with the groups. Both are None if there are
    no groups.
    """
    chosen = trajectory.top_genes(N_CURVES)
    size = library_size(session.model, trajectory.library, usual="median")
    assert size is not None, "a trajectory is decoded at one library size"
    expression_nc = session.counts.matrix[:, chosen].toarray() / session.counts.library_n[:, None] * size
    return path_figure(
        replace(trajectory, genes=tuple(session.genes.shown(trajectory.genes))),
        backdrop=replace(
            _backdrop(session, trajectory, groups_n),
            colors=None if groups_key is None else column_colors(session.store, groups_key),
        ),
        expression_nc=expression_nc,
        chosen=chosen,
    )


def path_figure(
    trajectory: Trajectory,
    *,
    backdrop: Backdrop,
    expression_nc: np.ndarray,
    chosen: np.ndarray,
) -> Figure:
    """Draw a trajectory in three panels. The figure is not registered with pyplot; `save_figure` saves the figure.

    Parameters
    ----------
    trajectory, backdrop
        The trajectory, and the plane in which the trajectory is drawn.
    expression_nc
        Counts of the genes in `chosen` in the cells, scaled to the library size of the trajectory.
    chosen
        Genes whose curves are drawn, at most twelve, as indices in `trajectory.genes`.
    """
    colors = group_colors(backdrop.groups_n, list(dict.fromkeys(trajectory.steps.groups_passed())), backdrop.colors)
    with house_style():
        legend = Legend(trajectory, backdrop, colors)
        upper = max(plane_height(legend), heat_map_height(trajectory))
        lower = curves_height(len(chosen))
        figure = Figure((WIDTH, _TOP + upper + (_BETWEEN + lower if lower else 0) + _BOTTOM))
        write(figure, 0.1, 0.14, _title(trajectory), size=9, weight="bold")
        draw_plane(figure, trajectory, backdrop, colors, legend, _TOP, upper)
        draw_heat_map(figure, trajectory, colors, _TOP, upper)
        draw_curves(figure, trajectory, chosen, expression_nc, _TOP + upper + _BETWEEN)
    return figure


def _title(trajectory: Trajectory) -> str:
    labels = list(trajectory.labels)
    if len(labels) > 6:
        labels[3:-2] = ["…"]
    fits = sum(map(len, labels)) + 3 * len(labels) <= _TITLE_LENGTH
    length = _TITLE_LENGTH if fits else _TITLE_LENGTH // len(labels) - 3
    return " → ".join(shortened(label, length) for label in labels)


def _backdrop(session: Session, trajectory: Trajectory, groups_n: np.ndarray | None) -> Backdrop:
    xy_n2 = session.umap()
    if xy_n2 is not None:
        xy_t2 = steps_in_plane(trajectory, xy_n2)
        return Backdrop(xy_n2=xy_n2, xy_t2=xy_t2, names=("UMAP 1", "UMAP 2"), groups_n=groups_n)
    bundle = trajectory.bundle_ptk
    return Backdrop(
        xy_n2=session.position_n2,
        xy_t2=_plane(trajectory.z_tk),
        names=("latent axis 1", "latent axis 2"),
        groups_n=groups_n,
        xy_bundle_pt2=None if bundle is None else _plane(bundle),
    )


def _plane(z: np.ndarray) -> np.ndarray:
    """Return the first two latent coordinates; the second coordinate is zero in a latent space with one dimension."""
    return np.concatenate([z, np.zeros_like(z)], axis=-1)[..., :2].astype(np.float64)
