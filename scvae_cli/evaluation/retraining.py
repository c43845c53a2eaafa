"""Repetition of the training of a model on other cells or with another decoder.

The recipe (`scvae_cli.training.recipe`) chooses every training setting that the user did not choose. A model records
its settings, but not who chose them. A recorded setting that equals what the recipe would have chosen is therefore
chosen again by the recipe for the new training; all other settings are kept. The weight of the labels is not chosen
again, so that a model that was trained with labels is compared with models that were trained with the same weight.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Set
from dataclasses import fields, replace
from typing import Any

import numpy as np

from scvae_cli.config import ModelConfig, RunConfig, TrainConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import even_batches
from scvae_cli.errors import DataError, ScvaeWarning
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.training.fit import fit_to_end
from scvae_cli.training.prepare import labels_to_learn, split
from scvae_cli.training.recipe import settle
from scvae_cli.training.schedule import Schedule

# A function that trains a model. The first argument of the function is a title that describes the training.
Train = Callable[[str, Counts, RunConfig], Model]
# Largest number of cells of a repeated training. If there are more cells, cells at regular intervals are used.
MAX_CELLS = 20_000
# Settings whose defaults depend on the kind of decoder.
_REGULARIZATION = {"encoder_dropout", "decoder_dropout", "weight_decay", "eased_dropout"}
# Settings that are chosen automatically if they are None.
_SIZES = {"n_latent", "n_hidden", "batch_size"}
_CHOSEN = _REGULARIZATION | _SIZES | {"mix_batches", "learning_rate", "max_epochs", "patience"}


def train_silently(_title: str, counts: Counts, config: RunConfig) -> Model:
    """Train a model without showing progress."""
    return fit_to_end(with_learnable_labels(counts, config), config)


def with_learnable_labels(counts: Counts, config: RunConfig) -> Counts:
    """Return the counts with the labels that a repeated training can learn.

    Labels that no cell has any more are left out, so that a training knows nothing about cells that were left out of
    the counts. If too few cells are labeled for a training, a warning is given, and the counts are returned without
    labels.
    """
    if counts.labels is None:
        return counts
    counts = replace(counts, labels=counts.labels.present())
    assert counts.labels is not None, "labels were given"
    try:
        if len(counts.labels.names) < 2:
            raise DataError("the cells have fewer than two different labels")
        labels_to_learn(counts, split(counts, config)[1], config.train)
    except DataError as error:
        warnings.warn(ScvaeWarning(f"the training uses no labels: {error.message}"), stacklevel=2)
        return replace(counts, labels=None)
    return counts


def requested_config(model: Model) -> RunConfig:
    """Return the settings for a repeated training of a model on counts that contain only the genes of the model.

    A setting that equals the automatic choice is set to None, so that the new training chooses the setting again.
    """
    config = model.config.of_all_genes()
    n_training, n_genes = int(model.facts["n_training"]), len(model.genes)
    # The recorded batch size is kept for now, because other automatic settings depend on the batch size.
    settled = settle(_unset(config, _CHOSEN - {"batch_size"}), n_training, n_genes=n_genes)
    batch_size = settled.train.batch_size
    assert batch_size is not None, "settled"
    schedule = Schedule.plan(settled.train, len(even_batches(np.arange(n_training), batch_size)))
    chosen = _values(settled) | {
        "batch_size": settle(_unset(config, _CHOSEN), n_training, n_genes=n_genes).train.batch_size,
        "max_epochs": schedule.max_epochs,
        "patience": schedule.patience,
    }
    recorded = _values(config)
    return _unset(config, {name for name in _CHOSEN if recorded[name] == chosen[name]})


def model_trained_on(model: Model, counts: Counts, *, train: Train = train_silently) -> tuple[Model, Counts]:
    """Return a model that was trained on some of the given cells, and the counts of the cells that were used.

    If there are more than 20,000 cells, at most 20,000 cells at regular intervals of the rows are used. Every training
    holds out some of its cells. No new model is trained if the training would hold out exactly the held-out cells of
    `model`; `model` itself is then returned. The cells must have the genes of the model, and batches if the model has
    batches.

    Raises
    ------
    ScvaeError
        If a training with the settings of the model is refused or fails.
    """
    counts = counts.cells(even(np.arange(counts.n_cells), MAX_CELLS))
    config = requested_config(model)
    if set(counts.cell_names[split(counts, config)[1]]) == set(model.heldout_cells):
        return model, counts
    trained = train("Training on these cells", counts, config)
    trained.vae.to(model.device)
    return trained, counts


def with_linear_decoder(config: RunConfig) -> RunConfig:
    """Return the settings with `--decoder linear`, and with regularization settings that are chosen automatically.

    Regularization that was chosen for hidden layers would be too strong for a linear decoder.
    """
    config = _unset(config, _REGULARIZATION)
    return replace(config, model=replace(config.model, decoder="linear"))


def _unset(config: RunConfig, names: Set[str]) -> RunConfig:
    def none(part: ModelConfig | TrainConfig) -> dict[str, Any]:
        return {f.name: None for f in fields(part) if f.name in names}

    model, train = config.model, config.train
    return replace(config, model=replace(model, **none(model)), train=replace(train, **none(train)))


def _values(config: RunConfig) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for part in (config.model, config.train) for f in fields(part)}
