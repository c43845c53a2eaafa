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
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent

# Number of cells encoded or decoded at once; constant, so that results do not depend on the machine.
BLOCK_CELLS = 512
# Number of cells refined at once. Refinement decodes them repeatedly: this number is small enough for the processor's
# cache and large enough for its matrix units.
_REFINED_CELLS = 256


def cell_table(model: Model, counts: Counts, *, batch_n: np.ndarray | None = None) -> CellTable:
    """Make a table of cells on the device of the model. The genes of `counts` must be those of the model.

    `batch_n` is the index of each cell's batch in the model. If batches were mapped onto the model, its encoder uses
    the batch, so the table must have batches. If `batch_n` is None, the batches of `counts` are then used, with the
    index −1 for a batch that the model does not have.

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
    """Return the index of each cell's batch in the model; None for a model without batches.

    Raises
    ------
    DataError
        If the model has batches and the cells have none, or have a batch that the model does not have.
    """
    if not model.batches:
        return None
    key = model.config.data.batch_key
    if counts.batch is None:
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
