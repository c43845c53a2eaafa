"""The picture of scores: puts together what `score_figure` draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from scvae_cli.latent.posteriors import posteriors
from scvae_cli.report.figure_file import save_figure
from scvae_cli.session import Session
from scvae_cli.tools.score.figure import score_figure
from scvae_cli.tools.score.scoring import Scores


def draw_scores(session: Session, scores: Scores, fdr: float, file: Path) -> None:
    """Draw scores; the anomalies over the first two latent axes.

    Parameters
    ----------
    session
        The cells and the model.
    fdr
        False discovery rate at which cells are called anomalies.
    file
        Written whole or not at all.
    """
    mean_nk = session.model.axes.position(posteriors(session.model, session.counts).mean_nk).numpy()
    if mean_nk.shape[1] == 1:
        mean_nk = np.column_stack([mean_nk, np.zeros(len(mean_nk))])
    save_figure(score_figure(scores, mean_nk[:, :2], ("latent axis 1", "latent axis 2"), fdr), file)
