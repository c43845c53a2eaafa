"""Preparation of a training: check the data, hold out cells, and initialize a network with the mean expression.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.config import RunConfig, TrainConfig
from scvae_cli.data.counts import Counts, what_is_wrong
from scvae_cli.data.known_labels import hidden_from_training
from scvae_cli.data.labels import positions_in
from scvae_cli.data.moments import mean_log1p, moments
from scvae_cli.device import seeded
from scvae_cli.errors import DataError, ScvaeWarning
from scvae_cli.memory_limit import refuse_too_large
from scvae_cli.model.design import Design
from scvae_cli.model.vae import VAE

MIN_CELLS = 10
# More than MAX_HELDOUT_CELLS held-out cells would slow down every epoch without making the held-out loss more precise.
MAX_HELDOUT_CELLS = 10_000


def as_modelled(counts: Counts, config: RunConfig) -> Counts:
    """Return the data as counts or as real numbers, depending on the likelihood.

    If the likelihood describes real numbers, counts are treated as real numbers too. Raises a DataError if the
    likelihood describes counts and the data are real numbers.
    """
    if config.model.of_counts:
        if counts.real:
            raise DataError(
                f"{counts.source} was read as real numbers, but {config.model.likelihood} is a likelihood of counts",
                "use --likelihood normal for real numbers",
            )
        return counts
    if counts.n_cells and what_is_wrong(counts.matrix.data) is None:
        message = f"{counts.source} holds raw counts; a count likelihood (--likelihood zinb or nb) fits counts better"
        warnings.warn(ScvaeWarning(message), stacklevel=3)
    return replace(counts, real=True)


def refuse_empty(counts: Counts, *, drop: bool) -> Counts:
    """Drop cells without counts if `drop` is True; otherwise raise a DataError if any cell has no counts."""
    empty = ~counts.filled
    if not empty.any():
        return counts
    if drop:
        return counts.filled_cells()
    first = counts.cell_names[int(np.flatnonzero(empty)[0])]
    raise DataError(
        f"{amount(int(empty.sum()), 'cell has', 'cells have')} no counts in the {counts.n_genes} genes "
        f"considered; the first of these cells is {first!r}",
        "use --drop-empty to leave these cells out",
    )


def refuse_few(counts: Counts) -> Counts:
    """Return the counts, or raise a DataError if there are too few cells for a training."""
    if counts.n_cells < MIN_CELLS:
        raise DataError(
            f"{amount(counts.n_cells, 'cell is', 'cells are')} too few for training",
            f"training needs at least {MIN_CELLS} cells",
        )
    return counts


def split(counts: Counts, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Split the cells at random with the configured seed, and return sorted indices of training and held-out cells."""
    n_heldout = round(config.train.validation_fraction * counts.n_cells)
    n_heldout = min(max(n_heldout, 1), MAX_HELDOUT_CELLS)
    order = np.random.default_rng(config.train.seed).permutation(counts.n_cells)
    return np.sort(order[n_heldout:]), np.sort(order[:n_heldout])


def batch_codes(counts: Counts) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Return the sorted names of the batches, and the index of each cell's batch (None for data without batches)."""
    if counts.batch is None:
        return (), None
    names, codes = np.unique(counts.batch.astype(str), return_inverse=True)
    return tuple(names.tolist()), codes.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The batches or other covariates on which the decoder is conditioned, for n cells.

    Parameters
    ----------
    batches, code_n
        Names of the batches, sorted; index of each cell's batch, shape (n,), or None for data without batches.
    design
        Covariates from which the design matrix is made; None if there is at most one batch key and no continuous key.
    batch_n
        Values of `Minibatch.batch_n`: the index of each cell's batch or, with a design, each cell's row of the design
        matrix.
    """

    batches: tuple[str, ...]
    code_n: np.ndarray | None
    design: Design | None
    batch_n: np.ndarray | None

    @classmethod
    def of(cls, counts: Counts, training: np.ndarray) -> Conditions:
        """Return the batches or covariates of all cells; `training` holds the indices of the training cells.

        Raises
        ------
        DataError
            If a continuous covariate has the same value in all training cells.
        """
        if counts.covariates is None:
            batches, code_n = batch_codes(counts)
            return cls(batches=batches, code_n=code_n, design=None, batch_n=code_n)
        design = Design.of(counts.covariates, training)
        code_n = None if counts.batch is None else positions_in(design.names, counts.batch)
        return cls(batches=design.names, code_n=code_n, design=design, batch_n=design.rows(counts.covariates))


def refuse_large_network(config: RunConfig, n_cells: int, n_genes: int) -> None:
    """Raise a ConfigError if network and minibatch do not fit into memory.

    The hint of the error names a number of hidden units that would fit.
    """
    shape = config.model
    assert shape.n_hidden is not None, "the recipe has chosen it"
    assert shape.n_latent is not None, "the recipe has chosen it"

    def needed(n_hidden: int) -> float:
        return _network_bytes(config, n_hidden, min(config.train.batch_size or 1, n_cells), n_genes)

    def fitting(free: int) -> str:
        low, high = 0, shape.n_hidden or 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if needed(middle) <= free else (low, middle)
        return f"--n-hidden {low} would fit" if low else "use fewer genes (--n-top-genes), or a smaller --batch-size"

    size = f"{shape.n_layers} × {amount(shape.n_hidden, 'hidden unit')}, {amount(shape.n_latent, 'latent dimension')}"
    refuse_too_large(needed(shape.n_hidden), f"training a network of {size} and {amount(n_genes, 'gene')}", fitting)


def _network_bytes(config: RunConfig, n_hidden: int, batch_size: int, n_genes: int) -> float:
    """Estimate the memory in bytes that a training needs in addition to the counts."""
    shape = config.model
    n_latent, inner = shape.n_latent or 1, n_hidden**2 * (shape.n_layers - 1)
    of_encoder = n_genes * n_hidden + inner + 2 * n_hidden * n_latent
    # The decoder has two outputs per gene, which are computed from the latent position and the last hidden layer.
    of_decoder = 2 * n_genes * (n_latent + n_hidden) + n_latent * n_hidden + inner
    if shape.decoder == "linear":
        of_decoder = 2 * n_genes * n_latent
    # Six arrays in float32: weights, gradients, two moments of the optimizer, the running average and the best weights.
    weights = 4 * 6 * (of_encoder + of_decoder)
    return weights + 4 * 6 * batch_size * (n_genes + n_hidden * shape.n_layers)


def labels_to_learn(counts: Counts, heldout: np.ndarray, train: TrainConfig) -> np.ndarray | None:
    """Return the index of each cell's label for the training, shape (n,), or None if the training ignores labels.

    The index is −1 for cells without a label, and for cells whose label is hidden from the training
    (`known_labels.hidden_from_training`). `heldout` holds the indices of the held-out cells.

    Raises
    ------
    DataError
        If there are too few labeled cells to learn the labels and to test the predictions.
    """
    if counts.labels is None or not train.label_weight:
        return None
    known_n = counts.labels.code_n
    labeled_n, unseen_n = known_n >= 0, hidden_from_training(counts.cell_names, train.seed)
    code_n = np.where(unseen_n, -1, known_n)
    unseen_n[heldout] = True
    # Predictions are tested only on cells whose label occurs in at least two cells.
    several_n = labeled_n & (np.bincount(known_n[labeled_n])[known_n] > 1)
    if not (labeled_n & ~unseen_n).any() or not (several_n & unseen_n).any():
        raise DataError(
            f"{amount(counts.labels.n_labeled, 'labeled cell is', 'labeled cells are')} too few for --label-weight: "
            "some labels are learned, and others are needed to test the predictions",
            "label more cells, or use --label-weight 0",
        )
    return code_n


def started(config: RunConfig, counts: Counts, training: np.ndarray, conditions: Conditions) -> VAE:
    """Create an untrained network that is initialized with the mean expression of the training cells.

    `training` holds the indices of the training cells.
    """
    n_labels = 0 if counts.labels is None or not config.train.label_weight else len(counts.labels.names)
    # The context manager `seeded` leaves the random state of the caller unchanged.
    with seeded(config.train.seed):
        vae = VAE(config.model, counts.n_genes, conditions.batches, design=conditions.design, n_labels=n_labels)
    batch_of_training = None if conditions.code_n is None else conditions.code_n[training]
    if counts.real:
        vae.start_from_moments(*moments(counts.matrix, training), batch_of_training)
        return vae
    # In the weighted sum of the counts, held-out cells have weight 0. A weighted sum avoids a copy of the counts of the
    # training cells.
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
