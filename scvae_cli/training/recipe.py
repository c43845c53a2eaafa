"""What the number of cells decides where the user left it open.

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
# At the small batch; a step that averages over more cells may be longer by the root of their number.
RATE = 8e-3


def settle(config: RunConfig, n_training: int) -> RunConfig:
    """Fill in batch size, learning rate and dropout.

    Parameters
    ----------
    config
        What was asked for.
    n_training
        Cells that are trained on.
    """
    model, train = config.model, config.train
    if model.decoder == "linear" and model.decoder_dropout is None:
        # It has no hidden unit that could be dropped.
        model = replace(model, decoder_dropout=0.0)
    elif model.decoder_dropout is None:
        model = replace(model, decoder_dropout=DROPOUT_OF_FEW if n_training < FEW_CELLS else DROPOUT)
    batch_size = train.batch_size or (SMALL_BATCH if n_training < CELLS_FOR_LARGE_BATCH else LARGE_BATCH)
    rate = RATE * math.sqrt(batch_size / SMALL_BATCH) if train.learning_rate is None else train.learning_rate
    return replace(config, model=model, train=replace(train, batch_size=batch_size, learning_rate=rate))
