"""Does distance in latent space mean anything: how unevenly the decoder stretches it.

The condition number of the Fisher–Rao metric M(z) (`scvae_cli.model.geometry`) is the largest over the smallest squared
stretch at a place: 1 for a decoder that is isometric there. Over all dimensions it counts those that say nothing, along
which the decoder hardly moves; over the active ones it says how far to trust distances among cells.

Shapes: n cells, k latent dimensions, p pairs of cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvae_cli.latent.selection import even
from scvae_cli.model.geometry import Geometry
from scvae_cli.tools.trajectory.curves import step_lengths, straight

# Cells where the metric is taken.
_CELLS = 200
# Pairs of cells, and steps of the line between two.
_PAIRS, _STEPS = 200, 16
# Float32's digits: what is below this share of the largest eigenvalue is not known.
_LEAST_EIGENVALUE = 1e-7


@dataclass(frozen=True, kw_only=True)
class Distortion:
    """How unevenly a decoder stretches.

    Parameters
    ----------
    condition_n
        Condition number of M at some cells' posterior means, shape (n,).
    active_condition_n
        The same of M between the active dimensions alone; None where fewer than two are.
    rank_correlation
        Spearman's, over random pairs of cells, between their latent distance and the Fisher–Rao length of the straight
        line between them; None with too few cells.
    """

    condition_n: np.ndarray
    active_condition_n: np.ndarray | None
    rank_correlation: float | None

    def values(self) -> dict[str, Any]:
        """Plain numbers and arrays; what is None is left out."""
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
        return values


def distortion(geometry: Geometry, mean_nk: Tensor, active_k: np.ndarray, *, seed: int = 0) -> Distortion:
    """Measure a decoder at some cells.

    Parameters
    ----------
    geometry
        Of the decoder.
    mean_nk
        The cells' posterior means in the frame of the training; an even selection of at most 200 is used.
    active_k
        Mask of the active dimensions.
    seed
        Of the pairs.
    """
    some_nk = mean_nk[torch.as_tensor(even(np.arange(len(mean_nk)), _CELLS))]
    metric_nkk = geometry.metric(some_nk.to(geometry.vae.reference_library.device)).double().cpu()
    active = torch.as_tensor(np.flatnonzero(active_k))
    return Distortion(
        condition_n=condition_numbers(metric_nkk),
        active_condition_n=condition_numbers(metric_nkk[:, active][:, :, active]) if len(active) > 1 else None,
        rank_correlation=_rank_correlation(geometry, some_nk, np.random.default_rng(seed)),
    )


def condition_numbers(metric_nkk: Tensor) -> np.ndarray:
    """Largest over smallest eigenvalue, shape (n,)."""
    value_nk = torch.linalg.eigvalsh(metric_nkk)
    largest_n = value_nk[:, -1].clamp_min(1e-30)
    condition_n: np.ndarray = (largest_n / value_nk[:, 0].clamp_min(_LEAST_EIGENVALUE * largest_n)).numpy()
    return condition_n


def _rank_correlation(geometry: Geometry, mean_nk: Tensor, random: np.random.Generator) -> float | None:
    if len(mean_nk) < 10:
        return None
    pair_p2 = np.stack([random.choice(len(mean_nk), 2, replace=False) for _ in range(_PAIRS)])
    ends_p2k = mean_nk.double().cpu().numpy()[pair_p2]
    length_p = [step_lengths(geometry, straight(ends_2k, _STEPS)).sum() for ends_2k in ends_p2k]
    distance_p = np.linalg.norm(ends_p2k[:, 1] - ends_p2k[:, 0], axis=1)
    rank_2p = np.stack([np.argsort(np.argsort(value_p)) for value_p in (distance_p, length_p)]).astype(np.float64)
    return float(np.asarray(np.corrcoef(rank_2p))[0, 1])
