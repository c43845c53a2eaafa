"""Distortion of distances: how well Euclidean distances between cells follow distances in expression.

The distance in expression between two cells is the Fisher–Rao length of the straight line between the two cells in
latent space. The Fisher–Rao length is compared with Euclidean distances in latent space, and with Euclidean distances
in the embedding, which neighbors, clusters and UMAPs use. A second measure of distortion is how unevenly the decoder
scales the directions of the latent space.

The eigenvalues of the Fisher–Rao metric M(z) (`scvae_cli.model.geometry`) are the squared local scale factors of the
decoder. The condition number of M(z) is the ratio of the largest to the smallest eigenvalue; it is 1 where the decoder
scales all directions equally. The condition number over all dimensions is large if some dimensions carry no
information, because the decoded expression hardly changes along these dimensions. The condition number over the active
dimensions shows how much latent distances between cells can be trusted.

Letters in array shapes: n cells, k latent dimensions, p pairs of cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvae_cli.heldout import MIN_HELDOUT
from scvae_cli.latent.selection import even
from scvae_cli.model.geometry import Geometry
from scvae_cli.progress import Progress, silent, tracked
from scvae_cli.tools.trajectory.curves import step_lengths, straight

# Largest number of cells at which the metric is evaluated.
_CELLS = 200
# Number of pairs of cells, and of points on the line between two cells.
_PAIRS, _STEPS = 200, 16
# In float32, eigenvalues below this fraction of the largest one are not significant.
_LEAST_EIGENVALUE = 1e-7


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """Distortion of distances between cells, in latent space and in the embedding.

    Parameters
    ----------
    condition_n, active_condition_n
        Condition number of the Fisher–Rao metric M at the posterior means of n cells, and condition number of M
        restricted to the active dimensions; shape (n,). `active_condition_n` is None if fewer than two dimensions are
        active.
    rank_correlation, embedding_rank_correlation
        Spearman correlations over random pairs of cells, between the Euclidean distance of two cells and the Fisher–Rao
        length of the straight line between them in latent space. `rank_correlation` is for distances in latent space,
        and `embedding_rank_correlation` is for distances in the embedding. A correlation is None if there are fewer
        than ten cells.
    """

    condition_n: np.ndarray
    active_condition_n: np.ndarray | None
    rank_correlation: float | None
    embedding_rank_correlation: float | None

    def values(self) -> dict[str, Any]:
        """Return the condition numbers and rank correlations in a dictionary, without missing values."""
        values: dict[str, Any] = {
            "condition": float(self.condition_n.mean()),
            "median_condition": float(np.median(self.condition_n)),
        }
        if self.active_condition_n is not None:
            values |= {
                "active_condition": float(self.active_condition_n.mean()),
                "median_active_condition": float(np.median(self.active_condition_n)),
                "active_conditions": self.active_condition_n,
            }
        if self.rank_correlation is not None:
            values["rank_correlation"] = self.rank_correlation
        if self.embedding_rank_correlation is not None:
            values["embedding_rank_correlation"] = self.embedding_rank_correlation
        return values


def distortion(
    geometry: Geometry,
    mean_nk: Tensor,
    embedding_nk: np.ndarray,
    active_k: np.ndarray,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Distortion:
    """Measure the distortion of distances between cells.

    Parameters
    ----------
    mean_nk
        Posterior means of the cells along the latent axes of the encoder, shape (n, k). At most 200 cells are used, at
        regular intervals of the rows.
    embedding_nk
        The embedding of the same cells, with any number of coordinates.
    active_k
        Mask of the active dimensions, shape (k,).
    """
    rows = even(np.arange(len(mean_nk)), _CELLS)
    some_nk = mean_nk[torch.as_tensor(rows)]
    metric_nkk = geometry.metric(some_nk.to(geometry.vae.reference_library.device)).double().cpu()
    active = torch.as_tensor(np.flatnonzero(active_k))
    of_latent, of_embedding = _rank_correlations(
        geometry, some_nk, embedding_nk[rows], np.random.default_rng(seed), progress
    )
    return Distortion(
        condition_n=condition_numbers(metric_nkk),
        active_condition_n=condition_numbers(metric_nkk[:, active][:, :, active]) if len(active) > 1 else None,
        rank_correlation=of_latent,
        embedding_rank_correlation=of_embedding,
    )


def condition_numbers(metric_nkk: Tensor) -> np.ndarray:
    """Compute the condition number of each metric: its largest divided by its smallest eigenvalue, shape (n,)."""
    value_nk = torch.linalg.eigvalsh(metric_nkk)
    largest_n = value_nk[:, -1].clamp_min(1e-30)
    condition_n: np.ndarray = (largest_n / value_nk[:, 0].clamp_min(_LEAST_EIGENVALUE * largest_n)).numpy()
    return condition_n


def _rank_correlations(
    geometry: Geometry, mean_nk: Tensor, embedding_nk: np.ndarray, random: np.random.Generator, progress: Progress
) -> tuple[float | None, float | None]:
    """Compute rank correlations of Fisher–Rao lengths with latent distances, and with distances in the embedding."""
    if len(mean_nk) < MIN_HELDOUT:
        return None, None
    pair_p2 = np.stack([random.choice(len(mean_nk), 2, replace=False) for _ in range(_PAIRS)])
    latent_nk = mean_nk.double().cpu().numpy()
    length_p = [
        step_lengths(geometry, straight(ends_2k, _STEPS)).sum()
        for ends_2k in tracked(latent_nk[pair_p2], progress, "Measuring distances", _PAIRS)
    ]
    ranks = [_ranks(_distances(x_nk, pair_p2)) for x_nk in (latent_nk, embedding_nk)]
    of_latent, of_embedding = (float(np.corrcoef(rank_p, _ranks(np.asarray(length_p)))[0, 1]) for rank_p in ranks)
    return of_latent, of_embedding


def _distances(x_nk: np.ndarray, pair_p2: np.ndarray) -> np.ndarray:
    distance_p: np.ndarray = np.linalg.norm(x_nk[pair_p2[:, 1]] - x_nk[pair_p2[:, 0]], axis=1)
    return distance_p


def _ranks(value_p: np.ndarray) -> np.ndarray:
    rank_p: np.ndarray = np.argsort(np.argsort(value_p)).astype(np.float64)
    return rank_p
