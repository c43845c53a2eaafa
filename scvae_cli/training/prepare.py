"""Before a training: refuse what cannot be trained on, hold cells out, and start a network at the data's averages.

Shapes: n cells, g genes.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts, what_is_wrong
from scvae_cli.data.moments import mean_log1p, moments
from scvae_cli.device import seeded
from scvae_cli.errors import DataError, ScvaeWarning
from scvae_cli.model.vae import VAE

MIN_CELLS = 10
# More held-out cells than this make the verdict no surer and every epoch slower.
MAX_HELDOUT_CELLS = 10_000


def as_modelled(counts: Counts, config: RunConfig) -> Counts:
    """The data as the likelihood sees it: counts, or real numbers, which counts are too."""
    if config.model.of_counts:
        if counts.real:
            raise DataError(
                f"{counts.source} was read as real numbers, and {config.model.likelihood} is a likelihood of counts",
                "--likelihood normal models real numbers",
            )
        return counts
    if counts.n_cells and what_is_wrong(counts.matrix.data) is None:
        message = f"{counts.source} holds raw counts, which a count likelihood (--likelihood zinb or nb) fits better"
        warnings.warn(ScvaeWarning(message), stacklevel=3)
    return replace(counts, real=True)


def refuse_empty(counts: Counts, *, drop: bool) -> Counts:
    """Refuse, or leave out, cells without a single count."""
    empty = ~counts.filled
    if not empty.any():
        return counts
    if drop:
        return counts.filled_cells()
    first = counts.cell_names[int(np.flatnonzero(empty)[0])]
    raise DataError(
        f"{int(empty.sum())} cell(s) have no counts in the {counts.n_genes} genes considered, the first is {first!r}",
        "--drop-empty leaves empty cells out",
    )


def refuse_few(counts: Counts) -> Counts:
    """Refuse to train on next to no cells."""
    if counts.n_cells < MIN_CELLS:
        raise DataError(f"{counts.n_cells} cell(s) are too few to train on", f"at least {MIN_CELLS} are needed")
    return counts


def split(counts: Counts, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and held-out cells, each ascending, by the run's seed."""
    n_heldout = round(config.train.validation_fraction * counts.n_cells)
    n_heldout = min(max(n_heldout, 1), MAX_HELDOUT_CELLS)
    order = np.random.default_rng(config.train.seed).permutation(counts.n_cells)
    return np.sort(order[n_heldout:]), np.sort(order[:n_heldout])


def batch_codes(counts: Counts) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Names of the batches in order, and the index of each cell's batch; None without batches."""
    if counts.batch is None:
        return (), None
    names, codes = np.unique(counts.batch.astype(str), return_inverse=True)
    return tuple(names.tolist()), codes.astype(np.int64)


def started(
    config: RunConfig, counts: Counts, training: np.ndarray, batches: tuple[str, ...], batch_n: np.ndarray | None
) -> VAE:
    """An untrained network that starts at the averages of the training cells, given by index.

    `batch_n` holds the index of each cell's batch in `batches`, or is None.
    """
    # The caller's random state is none of our business.
    with seeded(config.train.seed):
        vae = VAE(config.model, counts.n_genes, batches)
    batch_of_training = None if batch_n is None else batch_n[training]
    if counts.real:
        vae.start_from_moments(*moments(counts.matrix, training), batch_of_training)
        return vae
    # Cells that are not trained on weigh nothing: the sum over a part of the cells, without a copy of that part.
    weight_n = np.zeros(counts.n_cells, dtype=np.float32)
    weight_n[training] = 1
    depth = float(np.median(counts.library_n[training]))
    vae.start_from_data(
        (weight_n @ counts.matrix).astype(np.float64),
        mean_log1p(counts.matrix, training, depth),
        depth,
        batch_of_training,
    )
    return vae
