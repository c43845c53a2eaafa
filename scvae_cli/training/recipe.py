"""What the numbers of cells and genes decide where the user left it open.

How these rules and the other defaults were chosen is told in `benchmarks/recipe.md`.
"""

from __future__ import annotations

import math
from dataclasses import replace

from scvae_cli.config import RunConfig

# Small data sets need the steps, larger ones the throughput.
SMALL_BATCH, LARGE_BATCH, CELLS_FOR_LARGE_BATCH = 64, 128, 2000
# Below so many cells the decoder learns them by heart unless half of it is missing at any time.
FEW_CELLS, DROPOUT_OF_FEW, DROPOUT = 1000, 0.5, 0.3
ENCODER_DROPOUT = 0.3
# Real numbers of so few features, such as coordinates, determine each other: there is no unit to spare, and little to
# learn by heart.
FEW_FEATURES = 200
# At the small batch; a step that averages over more cells may be longer by the root of their number.
RATE = 8e-3


def settle(config: RunConfig, n_training: int, *, n_genes: int | None = None) -> RunConfig:
    """Fill in batch size, learning rate and dropout.

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
    few_features = not model.of_counts and n_genes is not None and n_genes < FEW_FEATURES
    if model.encoder_dropout is None:
        model = replace(model, encoder_dropout=0.0 if few_features else ENCODER_DROPOUT)
    if model.decoder_dropout is None:
        dropout = DROPOUT_OF_FEW if n_training < FEW_CELLS else DROPOUT
        # A linear decoder has no hidden unit that could be dropped.
        model = replace(model, decoder_dropout=0.0 if few_features or model.decoder == "linear" else dropout)
    batch_size = train.batch_size or (SMALL_BATCH if n_training < CELLS_FOR_LARGE_BATCH else LARGE_BATCH)
    rate = RATE * math.sqrt(batch_size / SMALL_BATCH) if train.learning_rate is None else train.learning_rate
    return replace(config, model=model, train=replace(train, batch_size=batch_size, learning_rate=rate))
