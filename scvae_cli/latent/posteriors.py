"""The posterior of each cell: the latent position of the cell and its uncertainty.

Letters in array shapes: n cells, k latent dimensions.
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

# Number of cells that are encoded or decoded at once. This number of cells is constant, so that results do not depend
# on the machine.
BLOCK_CELLS = 512
# Number of cells whose posteriors are refined at once: few enough for the processor's cache, and enough for the
# processor's matrix units.
_REFINED_CELLS = 256


def cell_table(model: Model, counts: Counts, *, batch_n: np.ndarray | None = None) -> CellTable:
    """Make a table of cells on the device of the model. The genes of `counts` must be those of the model.

    `batch_n` is the batch of each cell, as `known_batches` returns it. The encoder of a model with mapped batches needs
    the batch of each cell. If the model has mapped batches and `batch_n` is None, the batches are read from `counts`,
    and an unknown batch has the index −1.

    Raises
    ------
    DataError
        If a cell has no counts in the genes of the model, because its latent position would be unknown.
    """
    empty = np.flatnonzero(~counts.filled)
    if len(empty):
        raise DataError(
            f"{amount(len(empty), 'cell has', 'cells have')} no counts in the modeled genes; the first of these cells "
            f"is {counts.cell_names[empty[0]]!r}",
            "filter out cells without counts first: scanpy.pp.filter_cells(adata, min_counts=1)",
        )
    if batch_n is None and model.vae.n_mapped:
        assert counts.batch is not None, "a session of such a model reads the batches"
        batch_n = positions_in(model.batches, counts.batch)
    return CellTable(counts.matrix, batch_n, model.device, real=counts.real)


@torch.inference_mode()
def posteriors(
    model: Model, counts: Counts, *, batch_n: np.ndarray | None = None, progress: Progress = silent
) -> Posterior:
    """Compute the mean and the variance of the posterior q(z|x) of every cell, each of shape (n, k), on the CPU.

    Means and variances refer to the latent axes of encoder and decoder, not to the canonical axes. `cell_table`
    describes `batch_n`.
    """
    table, parts = cell_table(model, counts, batch_n=batch_n), []
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
        If a cell belongs to a batch that the model does not have, because the likelihood of the cell would be
        undefined.
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
    """Return the batch of each cell in the form that the decoder takes, or None for a model without batches.

    For a model with one batch key, the result contains the index of each cell's batch, shape (n,). For a model with
    several covariates, the result is the design matrix of the cells (`scvae_cli.model.design`), shape (n, r). The
    combination of categories of a cell need not occur in the training cells.

    Raises
    ------
    DataError
        If the data lack a covariate of the model, or if a covariate has a category that the model does not know.
    """
    if model.vae.design is not None:
        return _known_rows(model.vae.design, counts)
    if not model.batches:
        return None
    if counts.batch is None:
        key = next(iter(model.config.data.batch_keys), None)
        raise DataError(
            f"the model was trained with --batch-key {key}, but the data have no batches",
            f"add a column obs[{key!r}] with the batch of each cell to the data",
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
    """Return the result of `known_batches` if the model knows the batch of every cell, and otherwise None."""
    design, covariates = model.vae.design, counts.covariates
    if design is None:
        known = counts.batch is not None and bool((positions_in(model.batches, counts.batch) >= 0).all())
    else:
        known = covariates is not None and bool(
            (design.code_nq(covariates) >= 0).all() and not np.isnan(covariates.value_nv).any()
        )
    return known_batches(model, counts) if known else None


def batches_where_known(model: Model, counts: Counts) -> np.ndarray | None:
    """Return the batch of each cell as `known_batches` does, but without an error if the batch of a cell is unknown.

    The index of an unknown batch is −1. For a model with several covariates, unknown categories and values are replaced
    by averages over the training cells in the design matrix. The result is None if no batches were read from the data.
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
    """Return an index of each cell's batch, shape (n,).

    For a model with several batch keys, every combination of categories counts as one batch.

    The indices need not equal the batch indices of the model. The result is None for a model without batches.
    """
    if not model.batches or counts.batch is None:
        return None
    if model.vae.design is None:
        return positions_in(model.batches, counts.batch)
    codes_n: np.ndarray = np.unique(counts.batch.astype(str), return_inverse=True)[1]
    return codes_n.astype(np.int64)


def _known_rows(design: Design, counts: Counts) -> np.ndarray:
    """Return the design matrix of the cells. A DataError is raised if a category or a value is unknown."""
    covariates = counts.covariates
    keys = (*design.batch_keys, *(one.key for one in design.continuous))
    if covariates is None:
        raise DataError(
            f"the model was trained with the covariates {', '.join(keys)}, but the data lack some of them",
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
                f"the model was trained on these values of {key}: {', '.join(names)}",
            )
    lacking_n = np.isnan(covariates.value_nv).any(1)
    if lacking_n.any():
        raise DataError(
            f"{amount(int(lacking_n.sum()), 'cell has', 'cells have')} no value of "
            f"{', '.join(one.key for one in design.continuous)}, so the likelihood of these cells is undefined",
            "remove cells with missing values, or fill in the missing values",
        )
    return design.rows(covariates)
