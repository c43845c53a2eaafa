"""Default training settings that depend on the numbers of cells and genes.

`benchmarks/recipe.md` describes how the default training settings were chosen.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from scvae_cli.config import ModelConfig, RunConfig

# With fewer cells than VERY_FEW_CELLS, a smaller network has a higher held-out ELBO.
VERY_FEW_CELLS = 500
# Numbers of latent dimensions and of hidden units.
SMALL_NETWORK, USUAL_NETWORK = (5, 128), (20, 256)
# The fewer cells there are, the sooner a network overfits, and the more dropout it needs. With very many cells, a
# network hardly overfits.
FEW_CELLS, MANY_CELLS, VERY_MANY_CELLS = 1000, 2000, 20_000
# Numbers of cells per training step. Small batches give small data sets enough steps per epoch; large batches make the
# training of large data sets faster.
SMALL_BATCH, LARGE_BATCH = 64, 128
# In real-valued data with fewer features than FEW_FEATURES (coordinates, for example), features are often functions of
# each other. A network for few features needs all its hidden units and hardly overfits.
FEW_FEATURES = 200
# Towards the end of the training, the dropout rates are multiplied by EASED_DROPOUT. A finished model is used without
# dropout, so a network that was trained only with high dropout performs less well than possible.
EASED_DROPOUT = 0.7
# Default weight (in nats) of the penalty on differences between batches in the latent space.
MIXING = 30.0
# Default weight of the labels (in nats), and smallest number of labeled cells for which this default is used. A smaller
# number of labels hardly changes the latent space. Cells whose labels are learned cannot be used to test predictions of
# labels.
LABELING, MANY_LABELED = 3.0, 500
# Learning rate at the batch size SMALL_BATCH. The learning rate grows with the square root of the number of cells per
# step.
RATE = 8e-3


class Regularization(NamedTuple):
    """Dropout rates of encoder and decoder, weight decay, and the factor that lowers dropout late in the training."""

    encoder_dropout: float
    decoder_dropout: float
    weight_decay: float
    eased_dropout: float


def settle(config: RunConfig, n_training: int, *, n_genes: int | None = None, n_labeled: int = 0) -> RunConfig:
    """Replace settings that are None by defaults that suit the numbers of cells and genes.

    `n_genes` is the number of modeled genes or features. If `n_genes` is None, the number of features is assumed to be
    large. `n_labeled` is the number of labeled cells.
    """
    model, train = config.model, config.train
    n_latent, n_hidden = SMALL_NETWORK if n_training < VERY_FEW_CELLS else USUAL_NETWORK
    model = replace(model, n_latent=model.n_latent or n_latent, n_hidden=model.n_hidden or n_hidden)
    usual = _regularization(model, n_training, n_genes)
    for name in ("encoder_dropout", "decoder_dropout"):
        if getattr(model, name) is None:
            model = replace(model, **{name: getattr(usual, name)})
    for name in ("weight_decay", "eased_dropout"):
        if getattr(train, name) is None:
            train = replace(train, **{name: getattr(usual, name)})
    if train.mix_batches is None:
        mixes = bool(config.data.batch_keys) and model.of_counts
        train = replace(train, mix_batches=MIXING if mixes else 0.0)
    if train.label_weight is None and config.data.labels_key is not None:
        train = replace(train, label_weight=chosen_label_weight(n_labeled))
    batch_size = train.batch_size or (SMALL_BATCH if n_training < MANY_CELLS else LARGE_BATCH)
    # A training step cannot use more cells than there are training cells.
    averaged = min(batch_size, max(n_training, SMALL_BATCH))
    rate = RATE * math.sqrt(averaged / SMALL_BATCH) if train.learning_rate is None else train.learning_rate
    return replace(config, model=model, train=replace(train, batch_size=batch_size, learning_rate=rate))


def chosen_label_weight(n_labeled: int) -> float:
    """Return the default of `--label-weight` for a number of labeled cells."""
    return LABELING if n_labeled >= MANY_LABELED else 0.0


def _regularization(model: ModelConfig, n_training: int, n_genes: int | None) -> Regularization:
    if not model.of_counts and n_genes is not None and n_genes < FEW_FEATURES:
        return Regularization(0.0, 0.0, 0.1, 1.0)
    if model.decoder == "linear":
        # A linear decoder has no hidden units to which dropout could apply. The only weights of a linear decoder are
        # the loadings, so weight decay is low.
        return Regularization(0.3, 0.0, 0.1, 1.0)
    if n_training < FEW_CELLS:
        return Regularization(0.7, 0.7, 3.0, EASED_DROPOUT)
    if n_training < MANY_CELLS:
        return Regularization(0.5, 0.3, 2.5, EASED_DROPOUT)
    if n_training < VERY_MANY_CELLS:
        return Regularization(0.4, 0.2, 2.0, EASED_DROPOUT)
    return Regularization(0.1, 0.1, 0.3, 1.0)
