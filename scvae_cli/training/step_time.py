"""How fast this machine trains: the start of a training on a few of the cells is timed."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace

import numpy as np

from scvae_cli.config import DataConfig, RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.errors import ScvaeError
from scvae_cli.latent.selection import even
from scvae_cli.training.fit import Prepared, fit
from scvae_cli.training.loop import EpochReport
from scvae_cli.training.recipe import settle

# Number of steps in an epoch of the timed training, and seconds after which it ends. The first epoch is not counted,
# because the steps are compiled in it.
_STEPS, _SECONDS = 5, 1.0
_MAX_EPOCHS = 1000


def seconds_per_cell(counts: Counts, n_genes: int, config: RunConfig) -> float | None:
    """Return the seconds that an epoch of a training takes per cell, if `n_genes` of the genes are modeled.

    The size of the network and the number of cells per step are those of a training on all cells. Returns None if no
    training is possible.
    """
    settled = settle(config, counts.n_cells, n_genes=n_genes)
    assert settled.train.batch_size is not None, "settled"
    rows = even(np.flatnonzero(counts.filled), _STEPS * settled.train.batch_size)
    seen = np.argsort(-counts.seen_in_g(), kind="stable")[:n_genes]
    timed = replace(
        settled,
        data=DataConfig(genes="all", drop_empty=True),
        train=replace(settled.train, mix_batches=0.0, max_epochs=_MAX_EPOCHS, patience=_MAX_EPOCHS),
    )
    share = n_cells = 0.0
    begun = seconds = 0.0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            for event in fit(replace(counts.cells(rows).genes(seen), batch=None), timed):
                if isinstance(event, Prepared):
                    n_cells, share = event.n_training, n_genes / event.n_genes
                elif isinstance(event, EpochReport) and event.epoch == 1:
                    begun = time.perf_counter()
                elif isinstance(event, EpochReport):
                    seconds = time.perf_counter() - begun
                    if seconds > _SECONDS:
                        return share * seconds / (n_cells * (event.epoch - 1))
    except ScvaeError:
        return None
    return None
