"""The picture of a walk: puts together what `path_figure` draws, from the cells the walk went through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from scvae_cli.latent.decoding import decode
from scvae_cli.latent.expected_counts import library_size
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.report.figure_file import save_figure
from scvae_cli.session import Session
from scvae_cli.tools.trajectory.figure import Backdrop, path_figure, steps_in_plane
from scvae_cli.tools.trajectory.result import Path as Walk

UMAP = "X_umap"
_CURVES = 12


def draw_walk(session: Session, walk: Walk, groups_n: np.ndarray | None, file: Path) -> None:
    """Draw a walk over the data's UMAP, or over the first two latent axes where it has none.

    Parameters
    ----------
    session
        The cells, n of them, and the model.
    groups_n
        Group of each cell, or None.
    file
        Written whole or not at all.
    """
    chosen = walk.top_genes(_CURVES)
    depth = library_size(session.model, walk.options.library, usual="median")
    assert depth is not None, "a walk is decoded at one depth"
    counts = session.counts
    expression_nc = counts.matrix[:, chosen].toarray() / counts.library_n[:, None] * depth
    figure = path_figure(
        walk,
        backdrop=_backdrop(session, walk, groups_n),
        expression_nc=expression_nc,
        chosen=chosen,
        inflation_tc=_inflation(session, walk, chosen),
    )
    save_figure(figure, file)


def _inflation(session: Session, walk: Walk, chosen: np.ndarray) -> np.ndarray | None:
    """Factors that bring decoded counts to what cells of that depth show after zero inflation; None for real numbers.

    What is decoded adds up to the depth before technical zeros, and the cells' counts do after them.
    """
    if not walk.of_counts:
        return None
    z_tk = session.model.axes.in_training_frame(torch.as_tensor(walk.z_tk)).numpy()
    shown_tg = decode(session.model, z_tk, walk.options.library, walk.options.batch_as, with_zero_inflation=True)
    shown_tg *= walk.mean_tg.sum(1, keepdims=True) / shown_tg.sum(1, keepdims=True)
    factor_tc: np.ndarray = shown_tg[:, chosen] / np.maximum(walk.mean_tg[:, chosen], 1e-30)
    return factor_tc


def _backdrop(session: Session, walk: Walk, groups_n: np.ndarray | None) -> Backdrop:
    umap = session.store.obsm(UMAP)
    if umap is not None and umap.ndim == 2 and umap.shape[1] >= 2:
        xy_n2 = np.asarray(umap[session.kept, :2], dtype=np.float64)
        return Backdrop(xy_n2=xy_n2, xy_t2=steps_in_plane(walk, xy_n2), names=("UMAP 1", "UMAP 2"), groups_n=groups_n)
    mean_nk = session.model.axes.position(posteriors(session.model, session.counts).mean_nk).numpy()
    bundle = walk.bundle_ptk
    return Backdrop(
        xy_n2=_plane(mean_nk),
        xy_t2=_plane(walk.z_tk),
        names=("latent axis 1", "latent axis 2"),
        groups_n=groups_n,
        xy_bundle_pt2=None if bundle is None else _plane(bundle),
    )


def _plane(z: np.ndarray) -> np.ndarray:
    """The first two of k coordinates; a lone one stands over zeros."""
    if z.shape[-1] == 1:
        z = np.concatenate([z, np.zeros_like(z)], axis=-1)
    return np.asarray(z[..., :2], dtype=np.float64)
