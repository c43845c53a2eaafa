"""The batches of new cells: drawn at random, taken from real cells, or fixed by the user.

Letters in array shapes: n new cells, r effects of a design.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.data.covariates import combination_name, quoted
from scvae_cli.data.labels import matching
from scvae_cli.latent.decoding_batch import Fixed, fixed_covariates, one_batch
from scvae_cli.model.bundle import Model
from scvae_cli.model.design import Design
from scvae_cli.tools.sample.options import SampleOptions

DRAWN = "drawn"


@dataclass(frozen=True, kw_only=True)
class NewBatches:
    """The batches of n new cells.

    Parameters
    ----------
    name_n
        Name of each cell's batch, or combination of categories; None for a model without batches.
    decoded_n
        Batch of each cell in the form that the decoder takes: the index of the batch, shape (n,). With several
        covariates, `decoded_n` contains the cell's row of the design matrix, shape (n, r). `decoded_n` is None for a
        model without batches and continuous keys.
    columns
        Category or value of each cell, by column of obs.
    """

    name_n: np.ndarray | None
    decoded_n: np.ndarray | None
    columns: dict[str, np.ndarray]


def decoding_batch(model: Model, options: SampleOptions) -> str:
    """Return the batch or the covariates that the user fixed, as text; return "drawn" if nothing is fixed.

    If the user fixed no batch, and the cells are sampled from a group that is a batch of the model, this batch is
    fixed.

    Raises
    ------
    DataError
        If the model does not have the batch.
    """
    batch_as, design = options.batch_as, model.vae.design
    keys = model.config.data.batch_keys
    if batch_as is None and options.group is not None and options.groupby in keys:
        known = model.batches if design is None else design.categories[keys.index(options.groupby)]
        group = matching(options.group, known)
        batch_as = group if design is None or group is None else f"{options.groupby}={quoted(group)}"
    if batch_as in (None, DRAWN):
        return DRAWN
    if design is None:
        return one_batch(model, batch_as, usual=DRAWN)
    return fixed_covariates(model, batch_as, usual=DRAWN).name


def new_batches(
    model: Model, batch_as: str, n: int, random: np.random.Generator, own_n: np.ndarray | None
) -> NewBatches:
    """Choose the batch of each new cell.

    Parameters
    ----------
    batch_as
        Result of `decoding_batch`.
    own_n
        Index of the batch of the real cell from which each new cell is drawn, shape (n,); negative if this batch is
        unknown. `own_n` is None if new cells are not drawn from real cells. Batches that are neither known nor fixed
        are drawn in proportion to their numbers of training cells.
    """
    design, keys = model.vae.design, model.config.data.batch_keys
    if design is None:
        if not model.batches:
            return NewBatches(name_n=None, decoded_n=None, columns={})
        fixed_n = np.full(n, model.batches.index(batch_as)) if batch_as != DRAWN else None
        index_n = _drawn(model, n, random, own_n) if fixed_n is None else fixed_n
        name_n = np.asarray(model.batches, dtype=object)[index_n]
        return NewBatches(name_n=name_n, decoded_n=index_n, columns=dict.fromkeys(keys, name_n))
    fixed = free(design) if batch_as == DRAWN else fixed_covariates(model, batch_as, usual=DRAWN)
    index_n = _drawn(model, n, random, own_n) if model.batches else np.zeros(n, dtype=np.int64)
    columns = columns_of(fixed, index_n)
    names = [combination_name(design.batch_keys, fixed.combination(b)) for b in range(len(model.batches))]
    name_n = np.asarray(names, dtype=object)[index_n] if names else None
    return NewBatches(name_n=name_n, decoded_n=fixed.rows(index_n), columns=columns)


def free(design: Design) -> Fixed:
    """Return the covariates of a model; none of the covariates has a fixed value."""
    return Fixed(design=design, categories=(None,) * len(design.batch_keys), values=(None,) * len(design.continuous))


def columns_of(fixed: Fixed, index_n: np.ndarray) -> dict[str, np.ndarray]:
    """Return the covariates of each cell: one array for each batch key and each continuous key.

    `index_n` holds the index of the combination of categories that was drawn for each cell. Fixed categories replace
    drawn categories. A continuous key without a fixed value gets its mean over the training cells.
    """
    design = fixed.design
    columns: dict[str, np.ndarray] = {}
    combinations = [fixed.combination(b) for b in range(len(design.combinations))]
    for q, key in enumerate(design.batch_keys):
        columns[key] = np.asarray([one[q] for one in combinations], dtype=object)[index_n]
    for one, value in zip(design.continuous, fixed.values, strict=True):
        columns[one.key] = np.full(len(index_n), one.mean if value is None else value)
    return columns


def _drawn(model: Model, n: int, random: np.random.Generator, own_n: np.ndarray | None) -> np.ndarray:
    share_b = model.vae.batch_share_b.double().cpu().numpy()
    drawn_n: np.ndarray = random.choice(len(share_b), size=n, p=share_b / share_b.sum())
    return drawn_n if own_n is None else np.where(own_n >= 0, own_n, drawn_n)
