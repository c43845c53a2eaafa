"""Starting a training from the weights of another, which takes half the time when only β differs."""

from __future__ import annotations

import numpy as np
import torch

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.errors import ModelError
from scvae_cli.model.bundle import Model
from scvae_cli.model.vae import VAE

# A training at another β that keeps all it has learned ends worse than one from nothing: it learns the cells by heart,
# and latent dimensions stay given up, or taken. One that forgets most of its weight matrices, as Ash & Adams (2020,
# arXiv:1910.08475) have it, ends as low in half the epochs; its KL weight rises anew, in half the usual time.
REMEMBERED, KL_WARMUP = 0.3, 0.5


def refuse_unlike(
    model: Model, config: RunConfig, counts: Counts, heldout: np.ndarray, batches: tuple[str, ...]
) -> None:
    """Refuse to start from a model of other genes, batches, networks or held-out cells."""
    alike = {
        "other genes": model.genes == tuple(str(gene) for gene in counts.gene_names),
        "other batches": model.batches == batches,
        "another network": model.config.model == config.model,
        # Otherwise cells that the model learned from would judge what comes of it.
        "other held-out cells": model.heldout_cells == tuple(str(cell) for cell in counts.cell_names[heldout]),
    }
    for what, same in alike.items():
        if not same:
            raise ModelError(
                f"training cannot start from a model with {what}",
                "give it the same data, genes, seed and network, or start from nothing",
            )


@torch.no_grad()
def take_over(vae: VAE, model: Model, beta: float) -> float:
    """Give a freshly started VAE a finished model's weights: all of them to go on at the same β, else mostly forgotten.

    Returns
    -------
    How much of the usual KL warm-up there shall be.
    """
    goes_on = model.config.train.beta == beta
    fresh = {name: p.clone() for name, p in vae.named_parameters()}
    vae.load_state_dict(model.vae.state_dict())
    if goes_on:
        return 0.0
    for name, p in vae.named_parameters():
        if p.ndim == 2 and not name.startswith("decoder.batch"):
            p.lerp_(fresh[name], 1 - REMEMBERED)
    return KL_WARMUP
