"""Starting a training from the weights of a model with the same settings except β, to halve the training time."""

from __future__ import annotations

import numpy as np
import torch

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.errors import ModelError
from scvae_cli.model.bundle import Model
from scvae_cli.model.vae import VAE
from scvae_cli.training.prepare import Conditions

# A training with another β that starts from unchanged weights ends with a higher loss than a training from scratch. If
# training starts from unchanged weights, the network overfits, collapsed latent dimensions stay collapsed, and latent
# dimensions in use stay in use. If each weight matrix is mostly reset (Ash & Adams 2020, arXiv:1910.08475), training
# reaches the loss of a training from scratch in half the epochs. After the reset, the KL weight warms up again, in half
# the usual number of steps.
REMEMBERED, KL_WARMUP = 0.3, 0.5


def refuse_unlike(model: Model, config: RunConfig, counts: Counts, heldout: np.ndarray, conditions: Conditions) -> None:
    """Raise a ModelError if a model has other genes, batches, networks or held-out cells than the new training."""
    alike = {
        "other genes": model.genes == tuple(str(gene) for gene in counts.gene_names),
        "other batches": model.batches == conditions.batches and model.vae.design == conditions.design,
        "another network": model.config.model == config.model,
        # With other held-out cells, cells on which the old model was trained would be used to evaluate the new model.
        "other held-out cells": model.heldout_cells == tuple(str(cell) for cell in counts.cell_names[heldout]),
    }
    for what, same in alike.items():
        if not same:
            raise ModelError(
                f"training cannot start from a model with {what}",
                "use the same data, genes, seed and network, or train from scratch",
            )


@torch.no_grad()
def take_over(vae: VAE, model: Model, beta: float) -> float:
    """Copy the weights of a model to a newly initialized VAE.

    Returns the length of the KL warm-up as a fraction of the usual length.

    If `beta` is the β of the copied model, training continues from the copied weights. If `beta` is not the β of the
    copied model, each weight matrix is moved most of the way back to its initial values.
    """
    continues = model.config.train.beta == beta
    fresh = {name: p.clone() for name, p in vae.named_parameters()}
    # A finished model contains no classifier of labels, so the new classifier keeps its initial weights.
    of_labels = {name: p for name, p in vae.state_dict().items() if name.startswith("label_classifier.")}
    vae.load_state_dict(model.vae.state_dict() | of_labels)
    if continues:
        return 0.0
    for name, p in vae.named_parameters():
        if p.ndim == 2 and not name.startswith("decoder.batch"):
            p.lerp_(fresh[name], 1 - REMEMBERED)
    return KL_WARMUP
