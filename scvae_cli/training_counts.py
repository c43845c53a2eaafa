"""Reading the data for a training, opening the same data with the trained model, and labels for further trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.config import RunConfig
from scvae_cli.data.confounded_keys import warn_of_covariates
from scvae_cli.data.counts import Counts, read_counts
from scvae_cli.data.covariates import covariate_lines
from scvae_cli.data.known_labels import known_labels
from scvae_cli.data.labels import labels_of, matching
from scvae_cli.data.obs_columns import obs_values
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError
from scvae_cli.model.bundle import Model
from scvae_cli.question import Shell
from scvae_cli.session import Session

if TYPE_CHECKING:
    from anndata import AnnData


def counts_for_training(store: CellStore, run: RunConfig, shell: Shell) -> Counts:
    """Read the counts (or real numbers), covariates and labels for a training, and show messages about the data.

    A warning is shown if effects of covariates cannot be learned or distinguished.

    Raises a DataError if the data cannot be used.
    """
    data, real = run.data, not run.model.of_counts
    counts = read_counts(
        store,
        layer=data.layer,
        batch_key=data.batch_keys,
        continuous_key=data.continuous_keys,
        real=real,
        rounding=data.round,
    )
    size = f"{amount(counts.n_cells, 'cell')} × {amount(counts.n_genes, 'gene')}"
    shell.info(f"{'values' if real else 'counts'}: {counts.source} of {store.title}, {size}")
    for note in counts.notes:
        shell.info(note)
    covariates = counts.covariates_of(data.batch_keys)
    for line in [] if covariates is None else covariate_lines(covariates.summary(), named=False):
        shell.info(line)
    warn_of_covariates(store, counts, data, shell.warn)
    if data.labels_key is None:
        return counts
    # Labels of empty cells are not read, because empty cells are left out of the training later.
    kept = counts.filled if data.drop_empty else np.ones(counts.n_cells, dtype=bool)
    labels = known_labels(store, data.labels_key, unlabeled=data.unlabeled, kept=kept, warn=shell.warn)
    code_n = np.full(counts.n_cells, -1)
    code_n[kept] = labels.code_n
    labels = replace(labels, code_n=code_n)
    shell.info(
        f"labels: {amount(len(labels.names), 'label')} of obs[{data.labels_key!r}], known for {labels.n_labeled:,} of "
        f"{amount(counts.n_cells, 'cell')}"
    )
    return replace(counts, labels=labels)


def session_of_training(model: Model, data: AnnData | Path | str, shell: Shell) -> Session:
    """Open the data of a training together with the trained model."""
    chosen = model.config.data
    return Session.open(
        data,
        model,
        layer=chosen.layer,
        rounding=chosen.round,
        genome=chosen.genome,
        modality=chosen.modality,
        device=model.config.compute.device,
        drop_empty=chosen.drop_empty,
        progress=shell.progress,
    )


def with_labels_of_training(session: Session, counts: Counts, shell: Shell) -> Counts:
    """Return counts of the session's cells together with the labels that further trainings of the model learn.

    The labels are read from the column with which the model was trained. If the model was trained without labels, or
    if its weight of labels is 0, the counts are returned as they are. If the data have no usable labels, a warning is
    shown, and the counts are returned as they are.
    """
    data, train = session.model.config.data, session.model.config.train
    if data.labels_key is None or not train.label_weight:
        return counts
    try:
        column = obs_values(session.store, data.labels_key, purpose="--labels-key")[session.kept]
        present = sorted(set(labels_of(column)) - {None})
        # The cells may be others than those of the training, and may all have a label.
        unlabeled = None if data.unlabeled is None else matching(data.unlabeled, present)
        known = known_labels(
            session.store, data.labels_key, unlabeled=unlabeled, kept=session.kept, warn=lambda _: None
        )
    except DataError as error:
        shell.warn(f"the model was trained with labels, but the further trainings use no labels: {error.message}")
        return counts
    shell.info(
        f"labels of the further trainings: obs[{data.labels_key!r}], known for {known.n_labeled:,} of "
        f"{amount(counts.n_cells, 'cell')}"
    )
    return replace(counts, labels=known)
