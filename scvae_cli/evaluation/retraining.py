"""A model's training once more, on other cells or with another decoder: what the user would have asked for.

A model records the settings it was trained with, not who chose them. Those that are as the recipe has them were left
to it, or might as well have been, and the recipe chooses anew for what is trained now.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np

from scvae_cli.config import ModelConfig, RunConfig, TrainConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import even_batches
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.training.fit import fit_to_end
from scvae_cli.training.prepare import split
from scvae_cli.training.recipe import settle
from scvae_cli.training.schedule import Schedule

# Of more cells than this, an even selection takes part in the trainings.
MAX_CELLS = 20_000
# What the kind of decoder decides.
_REGULARISATION = {"encoder_dropout", "decoder_dropout", "weight_decay", "eased_dropout"}
# What a training chooses where it is left open.
_CHOSEN = _REGULARISATION | {"batch_size", "learning_rate", "max_epochs", "patience"}


class Train(Protocol):
    """Trains a model, and may show how far the training is."""

    def __call__(self, title: str, counts: Counts, config: RunConfig) -> Model:
        """Train on counts; the title says what for."""


def train_silently(title: str, counts: Counts, config: RunConfig) -> Model:  # noqa: ARG001  # the signature is Train's
    """Train a model and show nothing."""
    return fit_to_end(counts, config)


def as_asked(model: Model) -> RunConfig:
    """A model's settings, for all of its genes, with those left open that are what its training would have chosen."""
    config = model.config.of_all_genes()
    n_training, n_genes = int(model.facts["n_training"]), len(model.genes)
    # Whoever chose the batch size, others follow from it.
    settled = settle(_left_open(config, _CHOSEN - {"batch_size"}), n_training, n_genes=n_genes)
    batch_size = settled.train.batch_size
    assert batch_size is not None, "settled"
    schedule = Schedule.plan(settled.train, len(even_batches(np.arange(n_training), batch_size)))
    chosen = _values(settled) | {
        "batch_size": settle(_left_open(config, _CHOSEN), n_training, n_genes=n_genes).train.batch_size,
        "max_epochs": schedule.max_epochs,
        "patience": schedule.patience,
    }
    recorded = _values(config)
    return _left_open(config, {name for name in _CHOSEN if recorded[name] == chosen[name]})


def on_some(model: Model, counts: Counts, *, train: Train = train_silently) -> tuple[Model, Counts]:
    """Cells that further trainings are to learn from, and the model that such a training makes of them.

    Parameters
    ----------
    model
        When its held-out cells are not those that a training on these cells would hold out, it stands back for one
        trained on them.
    counts
        n cells in the model's genes, with batches if the model has them; of more than 20,000, an even selection is
        taken.
    train
        Trains a model.

    Raises
    ------
    ScvaeError
        As for a training.
    """
    counts = counts.cells(even(np.arange(counts.n_cells), MAX_CELLS))
    config = as_asked(model)
    if set(counts.cell_names[split(counts, config)[1]]) == set(model.heldout_cells):
        return model, counts
    trained = train("Training on these cells", counts, config)
    trained.vae.to(model.device)
    return trained, counts


def with_linear_decoder(config: RunConfig) -> RunConfig:
    """The same with `--decoder linear`, and what the kind of decoder decides left open.

    What was chosen for hidden layers, by whomever, would hold a linear decoder back.
    """
    config = _left_open(config, _REGULARISATION)
    return replace(config, model=replace(config.model, decoder="linear"))


def _left_open(config: RunConfig, names: Set[str]) -> RunConfig:
    def none(part: ModelConfig | TrainConfig) -> dict[str, Any]:
        return {f.name: None for f in fields(part) if f.name in names}

    model, train = config.model, config.train
    return replace(config, model=replace(model, **none(model)), train=replace(train, **none(train)))


def _values(config: RunConfig) -> dict[str, Any]:
    return {f.name: getattr(part, f.name) for part in (config.model, config.train) for f in fields(part)}
