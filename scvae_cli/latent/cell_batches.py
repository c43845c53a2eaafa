"""Comparison of the batches and covariates of cells with the batches and covariates on which a model was trained.

Letters in array shapes: n cells.
"""

from __future__ import annotations

import warnings

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.labels import labels_of, positions_in
from scvae_cli.data.obs_columns import is_missing, read_numbers
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError, ScvaeWarning
from scvae_cli.model.bundle import Model


def refuse_lacking(store: CellStore, model: Model) -> None:
    """Raise a DataError if obs lacks a batch key or a continuous key with which the model was trained."""
    data = model.config.data
    for flag, keys in (("--batch-key", data.batch_keys), ("--continuous-key", data.continuous_keys)):
        for key in keys:
            if key not in store.obs_keys:
                what = "batch" if flag == "--batch-key" else "value"
                raise DataError(
                    f"{store.title}: no column {key!r} in obs, but the model was trained with {flag} {key}",
                    f"add a column {key!r} with the {what} of each cell to obs",
                )


def batch_of_mapped(store: CellStore, model: Model) -> np.ndarray:
    """Return the batch of every cell, for a model onto which batches were mapped.

    If the model was trained without batches, cells without a batch are treated like the training cells.

    Raises
    ------
    DataError
        If cells have no batch and the model was trained with batches.
    """
    [key] = model.config.data.batch_keys  # A model onto which batches were mapped has exactly one batch key.
    present = key in store.obs_keys
    batch = labels_of(store.obs_column(key)) if present else np.full(len(store.cell_names), None, dtype=object)
    missing = is_missing(batch)
    if not missing.any():
        return batch
    lacking = (
        f"{amount(int(missing.sum()), 'cell has', 'cells have')} no batch in obs[{key!r}]"
        if present
        else f"obs has no column {key!r}"
    )
    trained = model.batches[: len(model.batches) - model.vae.n_mapped]
    if len(trained) > 1:
        raise DataError(
            f"{store.title}: {lacking}, but a model onto which batches were mapped needs the batch of every cell",
            f"the batches of the model are: {', '.join(model.batches)}",
        )
    message = f"{store.title}: {lacking}, so the cells are treated like the training cells, batch {trained[0]!r}"
    warnings.warn(ScvaeWarning(message), stacklevel=3)
    return np.where(missing, trained[0], batch)


def warn_of_new_batches(store: CellStore, model: Model, *, categories: bool) -> None:
    """Warn if cells come from batches that were not in the training data. Cells of new batches can still be embedded.

    `warn_of_new_batches` also warns if values of continuous keys lie far outside the range of the training values. If
    `categories` is False, the function does not warn of new batches.
    """
    design = model.vae.design
    keys = model.config.data.batch_keys
    known = [model.batches] if design is None else design.categories
    for key, names in zip(keys, known, strict=False) if categories else ():
        if key not in store.obs_keys:
            continue
        batches = np.asarray(sorted(set(labels_of(store.obs_column(key))) - {None}), dtype=object)
        new = list(batches[positions_in(names, batches) < 0])
        if new:
            shown = ", ".join(new[:3]) + (", ..." if len(new) > 3 else "")
            single, plural = ("batch", "batches") if len(keys) == 1 else (f"value of {key}", f"values of {key}")
            what = amount(len(new), f"{single} was", f"{plural} were")
            message = (
                f"{what} not in the training data ({shown}): the encoder can embed cells of new batches, but effects "
                "of new batches are not corrected"
            )
            warnings.warn(ScvaeWarning(message), stacklevel=3)
    for one in () if design is None else design.continuous:
        if one.key not in store.obs_keys:
            continue
        value_n = read_numbers(store, one.key, partly=True)
        least, most = one.far
        n_far = int(((value_n < least) | (value_n > most)).sum())
        if n_far:
            message = (
                f"{amount(n_far, 'cell has', 'cells have')} values of obs[{one.key!r}] far outside of the training "
                f"values ({one.least:g} to {one.most:g}): the effect of {one.key} is extrapolated"
            )
            warnings.warn(ScvaeWarning(message), stacklevel=3)
