"""The scores of every cell, and where they go.

Shapes: n cells, m simulated cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames

# Held-out cells with p-values up to this level are counted: this share of them is expected if the model is true.
NOMINAL_LEVEL = 0.05
# Log p(x) from below and its parts.
BOUNDS = ("elbo", "iwae", "iwae_density", "reconstruction", "kl")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Bounds on log p(x) of every cell and their parts, in nats, and how anomalous the cell is.

    Parameters
    ----------
    elbo
        Evidence lower bound: the expected log-likelihood over the samples minus the exact KL, shape (n,).
    iwae
        Importance-weighted bound (Burda et al. 2016), which is tighter, shape (n,).
    iwae_density
        The same bound with the model's density of the training cells in place of the prior: log p(x) of cells drawn
        as `sample` draws them, shape (n,).
    reconstruction
        E_q[log p(x|z)] over the samples, shape (n,).
    kl
        KL(q(z|x) ‖ N(0, I)), exact, shape (n,).
    anomaly_score
        How many standard deviations worse a cell fits than expected, shape (n,). Two fits are combined: that of its
        counts, given its library size, batch and position; and that of its position, given its library size and
        batch.
    anomaly_p, anomaly_p_adjusted
        Share of simulated cells with this score or a higher one, shape (n,); the same, adjusted after Benjamini and
        Hochberg over the n cells.
    heldout
        Mask of the cells that were held out of the training, found by their names, shape (n,).
    library
        Counts of each cell in the modeled genes; 1 for real numbers; shape (n,).
    simulated_library, simulated_score
        Library sizes and anomaly scores of the simulated cells, shape (m,).
    """

    __repr__ = brief

    elbo: np.ndarray
    iwae: np.ndarray
    iwae_density: np.ndarray
    reconstruction: np.ndarray
    kl: np.ndarray
    anomaly_score: np.ndarray
    anomaly_p: np.ndarray
    anomaly_p_adjusted: np.ndarray
    heldout: np.ndarray
    library: np.ndarray
    simulated_library: np.ndarray
    simulated_score: np.ndarray

    def anomalies(self, fdr: float) -> np.ndarray:
        """Mask of the cells that are anomalies at a false discovery rate, shape (n,)."""
        is_anomaly_n: np.ndarray = self.anomaly_p_adjusted <= fdr
        return is_anomaly_n

    @property
    def heldout_below_05(self) -> float | None:
        """Share of the held-out cells with p ≤ 0.05; None if the data has no held-out cells.

        It may differ from 0.05, since the real cells are not drawn from the model.
        """
        if not self.heldout.any():
            return None
        return float((self.anomaly_p[self.heldout] <= NOMINAL_LEVEL).mean())

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes."""
        columns = (*BOUNDS, "anomaly_score", "anomaly_p", "anomaly_p_adjusted")
        return [Slot(group="obs", key=getattr(names, name), value=getattr(self, name)) for name in columns]
