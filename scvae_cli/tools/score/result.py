"""The scores of every cell, and the slots to which they are written.

Letters in array shapes: n cells, m simulated cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames

# The share of held-out cells with p-values of at most this level is reported. If the model is true, the expected share
# is equal to the level.
NOMINAL_LEVEL = 0.05
# Lower bounds on log p(x), and the two parts of the ELBO.
BOUNDS = ("elbo", "iwae", "iwae_density", "reconstruction", "kl")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Lower bounds on log p(x) of every cell, in nats, and p-values for anomalies.

    Parameters
    ----------
    elbo
        Evidence lower bound: the mean log-likelihood over posterior samples minus the exact KL, shape (n,).
    iwae
        Importance-weighted bound (Burda et al. 2016), tighter than the ELBO, shape (n,).
    iwae_density
        The same bound as `iwae`, but with the latent density of the training cells in place of the prior, shape (n,).
    reconstruction
        E_q[log p(x|z)], estimated as the mean over the posterior samples, shape (n,).
    kl
        KL(q(z|x) ‖ N(0, I)), exact, shape (n,).
    anomaly_score
        How many standard deviations worse than expected each cell fits the model, shape (n,). The score combines the
        fit of the counts and the fit of the latent position. The expected fit of the counts depends on library size,
        batch and latent position. The expected fit of the latent position depends on library size and batch.
    anomaly_p, anomaly_p_adjusted
        p-value of each cell: the share of simulated cells with the same score or a higher score, shape (n,); and the
        p-values adjusted after Benjamini and Hochberg over the n cells, shape (n,).
    heldout
        Mask of the cells that were held out of the training, found by their names, shape (n,).
    library
        Total count of each cell over the modeled genes, shape (n,); 1 for real numbers.
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
        """Return a mask of the cells that are anomalies at a false discovery rate, shape (n,)."""
        is_anomaly_n: np.ndarray = self.anomaly_p_adjusted <= fdr
        return is_anomaly_n

    @property
    def heldout_below_05(self) -> float | None:
        """Share of the held-out cells with p ≤ 0.05; None if the data has no held-out cells.

        The share may differ from 0.05, because real cells are not drawn from the model.
        """
        if not self.heldout.any():
            return None
        return float((self.anomaly_p[self.heldout] <= NOMINAL_LEVEL).mean())

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        columns = (*BOUNDS, "anomaly_score", "anomaly_p", "anomaly_p_adjusted")
        return [Slot(group="obs", key=getattr(names, name), value=getattr(self, name)) for name in columns]
