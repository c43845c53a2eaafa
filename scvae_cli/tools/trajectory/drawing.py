"""The figure of a trajectory: collects what `path_figure` draws from the cells and the model."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from scvae_cli.latent.decoding import decode
from scvae_cli.latent.expected_counts import library_size
from scvae_cli.session import Session
from scvae_cli.tools.trajectory.figure import Backdrop, path_figure, steps_in_plane
from scvae_cli.tools.trajectory.result import Trajectory

UMAP = "X_umap"
_CURVES = 12


def trajectory_figure(session: Session, trajectory: Trajectory, groups_n: np.ndarray | None) -> Figure:
    """Draw a trajectory over the UMAP of the data, or over the first two latent axes if there is none.

    Parameters
    ----------
    session
        The n cells and the model.
    trajectory
        What is drawn.
    groups_n
        Group of each cell, or None.
    """
    chosen = trajectory.top_genes(_CURVES)
    size = library_size(session.model, trajectory.library, usual="median")
    assert size is not None, "a trajectory is decoded at one library size"
    counts = session.counts
    expression_nc = counts.matrix[:, chosen].toarray() / counts.library_n[:, None] * size
    return path_figure(
        trajectory,
        backdrop=_backdrop(session, trajectory, groups_n),
        expression_nc=expression_nc,
        chosen=chosen,
        inflation_tc=_inflation(session, trajectory, chosen),
    )


def _inflation(session: Session, trajectory: Trajectory, chosen: np.ndarray) -> np.ndarray | None:
    """Compute factors that apply zero inflation to the decoded counts, for comparison with cells; None without counts.

    Decoded counts add up to the library size before zero inflation, the counts of cells after it.
    """
    if not trajectory.of_counts:
        return None
    z_tk = session.model.axes.in_training_frame(torch.as_tensor(trajectory.z_tk)).numpy()
    shown_tg = decode(session.model, z_tk, trajectory.library, trajectory.batch_as, with_zero_inflation=True)
    shown_tg *= trajectory.mean_tg.sum(1, keepdims=True) / shown_tg.sum(1, keepdims=True)
    factor_tc: np.ndarray = shown_tg[:, chosen] / np.maximum(trajectory.mean_tg[:, chosen], 1e-30)
    return factor_tc


def _backdrop(session: Session, trajectory: Trajectory, groups_n: np.ndarray | None) -> Backdrop:
    umap = session.store.obsm(UMAP)
    if umap is not None and umap.ndim == 2 and umap.shape[1] >= 2:
        xy_n2 = np.asarray(umap[session.kept, :2], dtype=np.float64)
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
    """Return the first two latent coordinates; the second is zero if there is only one."""
    if z.shape[-1] == 1:
        z = np.concatenate([z, np.zeros_like(z)], axis=-1)
    return np.asarray(z[..., :2], dtype=np.float64)
