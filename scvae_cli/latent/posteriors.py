"""The posterior of each cell: its latent position and the uncertainty of that position.

Shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
import torch

from scvae_cli.amounts import amount
from scvae_cli.data.counts import Counts
from scvae_cli.data.labels import positions_in
from scvae_cli.data.minibatches import CellTable
from scvae_cli.errors import DataError
from scvae_cli.latent.refinement import Refined
from scvae_cli.latent.refinement import refine as refined
from scvae_cli.model.bundle import Model
from scvae_cli.model.design import Design
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent

# Number of cells encoded or decoded at once; constant, so that results do not depend on the machine.
BLOCK_CELLS = 512
# Number of cells refined at once. Refinement decodes them repeatedly: this number is small enough for the processor's
# cache and large enough for its matrix units.
_REFINED_CELLS = 256


def cell_table(model: Model, counts: Counts, *, batch_n: np.ndarray | None = None) -> CellTable:
    """Make a table of cells on the device of the model. The genes of `counts` must be those of the model.

    `batch_n` is the batch of each cell, as `known_batches` returns it. The encoder of a model onto which batches were
    mapped uses the batch, so the table of such a model always has batches: if `batch_n` is None, those of `counts`,
    with the index −1 for a batch that the model does not have.

    Raises
    ------
    DataError
        If a cell has no counts in these genes, because the latent position of such a cell is unknown.
    """
    empty = np.flatnonzero(~counts.filled)
    if len(empty):
        raise DataError(
            f"{amount(len(empty), 'cell has', 'cells have')} no counts in the modeled genes; the first is "
            f"{counts.cell_names[empty[0]]!r}",
            "filter these cells out first: scanpy.pp.filter_cells(adata, min_counts=1)",
        )
    if batch_n is None and model.vae.n_mapped:
        assert counts.batch is not None, "a session of such a model reads the batches"
        batch_n = positions_in(model.batches, counts.batch)
    return CellTable(counts.matrix, batch_n, model.device, real=counts.real)


@torch.inference_mode()
def posteriors(model: Model, counts: Counts, *, progress: Progress = silent) -> Posterior:
    """Compute mean and variance of q(z|x) of every cell, in the coordinates of the networks. Shape (n, k), on CPU."""
    table, parts = cell_table(model, counts), []
    with progress("Encoding", table.n_cells) as advance:
        for rows, cells in table.in_order(BLOCK_CELLS):
            parts.append(model.vae.encode(cells))
            advance(len(rows))
    return Posterior(*(torch.cat(values).cpu() for values in zip(*parts, strict=True)))


def refined_posteriors(
    model: Model, counts: Counts, *, n_steps: int, seed: int = 0, progress: Progress = silent
) -> Refined:
    """Compute posteriors refined by optimization (`scvae_cli.latent.refinement`), and the increase of each cell's ELBO.

    Raises
    ------
    DataError
        If the model does not have the batch of a cell, because the likelihood of such a cell is not defined.
    """
    table, parts = cell_table(model, counts, batch_n=known_batches(model, counts)), []
    with progress("Refining", table.n_cells) as advance:
        for rows, cells in table.in_order(_REFINED_CELLS):
            with torch.no_grad():
                start = model.vae.encode(cells)
            parts.append(refined(model.vae, cells, start, n_steps=n_steps, seed=seed))
            advance(len(rows))
    mean_nk, var_nk = (torch.cat([part.posterior[i].cpu() for part in parts]) for i in (0, 1))
    return Refined(Posterior(mean_nk, var_nk), torch.cat([part.gain_n for part in parts]))


def known_batches(model: Model, counts: Counts) -> np.ndarray | None:
    """Return the batch of each cell in the model, as the decoder takes it; None for a model without batches.

    It is the index of the batch, shape (n,). For a model with several covariates, it is the cell's row of the design
    (`scvae_cli.model.design`), shape (n, r): any combination of known categories has one.

    Raises
    ------
    DataError
        If the model has batches or continuous keys and the cells have none, or have a batch or category that the model
        does not have.
    """
    if model.vae.design is not None:
        return _known_rows(model.vae.design, counts)
    if not model.batches:
        return None
    if counts.batch is None:
        key = next(iter(model.config.data.batch_keys), None)
        raise DataError(
            f"the model was trained with --batch-key {key}, but the data have no batches",
            f"add the column with the batch of each cell to the data: obs[{key!r}]",
        )
    batch_n = positions_in(model.batches, counts.batch)
    if (batch_n < 0).any():
        unknown = min(counts.batch[batch_n < 0])
        raise DataError(
            f"the model was not trained on batch {unknown!r}, so the likelihood of cells of this batch is undefined",
            f"the model was trained on these batches: {', '.join(model.batches)}",
        )
    return batch_n


def batches_if_known(model: Model, counts: Counts) -> np.ndarray | None:
    """Return the batch of each cell as `known_batches` does; None if one is unknown, or without batches."""
    design, covariates = model.vae.design, counts.covariates
    if design is None:
        known = counts.batch is not None and bool((positions_in(model.batches, counts.batch) >= 0).all())
    else:
        known = covariates is not None and bool(
            (design.code_nq(covariates) >= 0).all() and not np.isnan(covariates.value_nv).any()
        )
    return known_batches(model, counts) if known else None


def batches_where_known(model: Model, counts: Counts) -> np.ndarray | None:
    """Return the batch of each cell as `known_batches` does, for cells of which some have no batch or an unknown one.

    The index of such a cell is −1. With several covariates, its row has averages over the training instead. None if the
    batch of no cell was read.
    """
    design = model.vae.design
    if design is not None:
        if counts.covariates is None:
            return None
        return design.rows(counts.covariates, model.vae.batch_share_b.cpu().numpy())
    if counts.batch is None or not model.batches:
        return None
    return positions_in(model.batches, counts.batch)


def strata(model: Model, counts: Counts) -> np.ndarray | None:
    """Return an index of each cell's batch, or combination of categories, shape (n,); None for a model without batches.

    Cells are equal in these if and only if they have the same index. Indices need not be those of the model.
    """
    if not model.batches or counts.batch is None:
        return None
    if model.vae.design is None:
        return positions_in(model.batches, counts.batch)
    codes_n: np.ndarray = np.unique(counts.batch.astype(str), return_inverse=True)[1]
    return codes_n.astype(np.int64)


def _known_rows(design: Design, counts: Counts) -> np.ndarray:
    """Return the row of each cell in the design, or raise a DataError."""
    covariates = counts.covariates
    keys = (*design.batch_keys, *(one.key for one in design.continuous))
    if covariates is None:
        raise DataError(
            f"the model was trained with the covariates {', '.join(keys)}, but the data have not all of them",
            "add the missing columns to obs, with a value for each cell",
        )
    code_nq = design.code_nq(covariates)
    for q, (key, names) in enumerate(zip(design.batch_keys, design.categories, strict=True)):
        unknown_n = code_nq[:, q] < 0
        if unknown_n.any():
            unknown = min(map(str, covariates.category_nq[unknown_n, q]))
            raise DataError(
                f"the model was not trained on {key} {unknown!r}, so the likelihood of cells of this batch is "
                "undefined",
                f"the model was trained on these: {', '.join(names)}",
            )
    lacking_n = np.isnan(covariates.value_nv).any(1)
    if lacking_n.any():
        raise DataError(
            f"{amount(int(lacking_n.sum()), 'cell has', 'cells have')} no value of "
            f"{', '.join(one.key for one in design.continuous)}, so the likelihood is undefined",
            "drop these cells, or fill in the missing values",
        )
    return design.rows(covariates)
