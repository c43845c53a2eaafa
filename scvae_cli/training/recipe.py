"""What the numbers of cells and genes decide where the user left it open.

How these rules and the other defaults were chosen is told in `benchmarks/recipe.md`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from scvae_cli.config import ModelConfig, RunConfig

# The fewer cells, the sooner the network learns them by heart unless much of it is missing at any time; of very many it
# hardly can.
FEW_CELLS, MANY_CELLS, VERY_MANY_CELLS = 1000, 2000, 20_000
# Small data sets need the steps, larger ones the throughput.
SMALL_BATCH, LARGE_BATCH = 64, 128
# Real numbers of so few features, such as coordinates, determine each other: there is no unit to spare, and little to
# learn by heart.
FEW_FEATURES = 200
# A network used to missing most of its units is not at its best with all of them: in the end it is trained with more.
EASED_DROPOUT = 0.7
# At the small batch; a step that averages over more cells may be longer by the root of their number.
RATE = 8e-3


class Regularisation(NamedTuple):
    """Dropout of the encoder and of the decoder, weight decay, and the share of the dropout left once eased."""

    encoder_dropout: float
    decoder_dropout: float
    weight_decay: float
    eased_dropout: float


def settle(config: RunConfig, n_training: int, *, n_genes: int | None = None) -> RunConfig:
    """Fill in batch size, learning rate, dropout, what is left of it in the end, and weight decay.

    Parameters
    ----------
    config
        What was asked for.
    n_training
        Cells that are trained on.
    n_genes
        Genes modelled; None for many.
    """
    model, train = config.model, config.train
    usual = _regularisation(model, n_training, n_genes)
    if model.encoder_dropout is None:
        model = replace(model, encoder_dropout=usual.encoder_dropout)
    if model.decoder_dropout is None:
        model = replace(model, decoder_dropout=usual.decoder_dropout)
    if train.weight_decay is None:
        train = replace(train, weight_decay=usual.weight_decay)
    if train.eased_dropout is None:
        train = replace(train, eased_dropout=usual.eased_dropout)
    batch_size = train.batch_size or (SMALL_BATCH if n_training < MANY_CELLS else LARGE_BATCH)
    # No step averages over more cells than there are.
    averaged = min(batch_size, max(n_training, SMALL_BATCH))
    rate = RATE * math.sqrt(averaged / SMALL_BATCH) if train.learning_rate is None else train.learning_rate
    return replace(config, model=model, train=replace(train, batch_size=batch_size, learning_rate=rate))


def _regularisation(model: ModelConfig, n_training: int, n_genes: int | None) -> Regularisation:
    if not model.of_counts and n_genes is not None and n_genes < FEW_FEATURES:
        return Regularisation(0.0, 0.0, 0.1, 1.0)
    if model.decoder == "linear":
        # It has no hidden unit that could be dropped, and its loadings are all it has.
        return Regularisation(0.3, 0.0, 0.1, 1.0)
    if n_training < FEW_CELLS:
        return Regularisation(0.7, 0.7, 3.0, EASED_DROPOUT)
    if n_training < MANY_CELLS:
        return Regularisation(0.5, 0.3, 2.5, EASED_DROPOUT)
    if n_training < VERY_MANY_CELLS:
        return Regularisation(0.4, 0.2, 2.0, EASED_DROPOUT)
    return Regularisation(0.1, 0.1, 0.3, 1.0)
