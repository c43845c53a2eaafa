"""How likely each cell is under the model.

Shapes: n cells, k latent dimensions, s samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import DataError
from scvae_cli.latent.embedding import cell_table
from scvae_cli.model.bundle import Model

# Decoding dominates, and its blocks are fastest when they stay in the processor's cache.
_BLOCK_CELLS = 128


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Bounds on log p(x) of every cell, nats.

    Parameters
    ----------
    elbo
        Evidence lower bound: the expected log-likelihood over the samples minus the exact KL; shape (n,).
    iwae
        Importance-weighted bound (Burda et al. 2016), which is tighter; shape (n,).
    """

    elbo: np.ndarray
    iwae: np.ndarray

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes."""
        return [
            Slot(group="obs", key=names.elbo, value=self.elbo),
            Slot(group="obs", key=names.iwae, value=self.iwae),
        ]


@torch.inference_mode()
def score(model: Model, counts: Counts, *, n_samples: int = 100, seed: int = 0) -> Scores:
    """Score cells.

    log p̂(x) = logsumexp_s[log p(x|z_s) + log p(z_s) − log q(z_s|x)] − log S.

    Parameters
    ----------
    model
        Judges.
    counts
        n cells in the model's genes, with the batches of a model that has them.
    n_samples
        S.
    seed
        Of the samples.

    Raises
    ------
    DataError
        For cells of a batch the model does not know: their likelihood is not defined.
    """
    table = cell_table(model, counts, batch_n=known_batches(model, counts))
    noise = torch.Generator().manual_seed(seed)
    elbo = np.empty(table.n_cells)
    iwae = np.empty(table.n_cells)
    for rows, cells in table.in_order(_BLOCK_CELLS):
        posterior = model.vae.encode(cells)
        log_weight_ns = torch.empty(len(rows), n_samples, dtype=torch.float64)
        log_likelihood_n = torch.zeros(len(rows), dtype=torch.float64)
        for s in range(n_samples):
            noise_nk = torch.randn(posterior.mean_nk.shape, generator=noise).to(model.device)
            z_nk = posterior.sample(noise_nk)
            log_p_n = -model.vae.decode(z_nk, cells.batch_n).nll_n(cells).cpu()
            # log p(z) − log q(z|x); the constants of the two Gaussians cancel.
            ratio_nk = 0.5 * (noise_nk.square() + posterior.var_nk.log() - z_nk.square())
            log_weight_ns[:, s] = log_p_n + ratio_nk.double().sum(1).cpu()
            log_likelihood_n += log_p_n / n_samples
        elbo[rows] = (log_likelihood_n - posterior.kl_nk().double().sum(1).cpu()).numpy()
        iwae[rows] = (torch.logsumexp(log_weight_ns, dim=1) - math.log(n_samples)).numpy()
    return Scores(elbo=elbo, iwae=iwae)


def known_batches(model: Model, counts: Counts) -> np.ndarray | None:
    """Index of each cell's batch in the model; None for a model without batches.

    Raises
    ------
    DataError
        When batches are needed and missing, or unknown to the model.
    """
    if not model.batches:
        return None
    key = model.config.data.batch_key
    if counts.batch is None:
        raise DataError(f"the model was trained with --batch-key {key}", f"the data needs that column: obs[{key!r}]")
    index = {name: b for b, name in enumerate(model.batches)}
    unknown = sorted(set(counts.batch) - set(index))
    if unknown:
        raise DataError(
            f"batch {unknown[0]!r} is not one the model was trained on, so its cells have no likelihood",
            f"known batches: {', '.join(model.batches)}",
        )
    return np.asarray([index[name] for name in counts.batch], dtype=np.int64)
