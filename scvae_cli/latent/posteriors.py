"""Where each cell lies in latent space, and how surely.

Shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
import torch

from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import CellTable
from scvae_cli.errors import DataError
from scvae_cli.latent.refinement import Refined
from scvae_cli.latent.refinement import refine as refined
from scvae_cli.model.bundle import Model
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent

# Cells encoded or decoded at once; fixed, so that results do not depend on the machine.
BLOCK_CELLS = 512
# Refining decodes them over and over: few enough to stay in the processor's cache, enough for its matrix units.
_REFINED_CELLS = 256


def cell_table(model: Model, counts: Counts, *, batch_n: np.ndarray | None = None) -> CellTable:
    """Lay out counts, already in the model's genes, for the model's device.

    Raises
    ------
    DataError
        When a cell has no counts in these genes: it says nothing about where it lies.
    """
    empty = np.flatnonzero(~counts.filled)
    if len(empty):
        raise DataError(
            f"{len(empty)} cell(s) have no counts in the modelled genes, the first is {counts.cell_names[empty[0]]!r}",
            "filter them out first: scanpy.pp.filter_cells(adata, min_counts=1)",
        )
    return CellTable(counts.matrix, batch_n, model.device, real=counts.real)


@torch.inference_mode()
def posteriors(model: Model, counts: Counts, *, progress: Progress = silent) -> Posterior:
    """q(z|x) of every cell in the frame of the training, on the CPU, each part of shape (n, k)."""
    table, parts = cell_table(model, counts), []
    with progress("Encoding", table.n_cells) as advance:
        for rows, cells in table.in_order(BLOCK_CELLS):
            parts.append(model.vae.encode(cells))
            advance(len(rows))
    return Posterior(
        torch.cat([part.mean_nk.cpu() for part in parts]), torch.cat([part.var_nk.cpu() for part in parts])
    )


def refined_posteriors(
    model: Model, counts: Counts, *, n_steps: int, seed: int = 0, progress: Progress = silent
) -> Refined:
    """The same, refined by gradient (`scvae_cli.latent.refinement`), and by how much each cell's ELBO rose.

    Raises
    ------
    DataError
        For cells of a batch the model does not know: their likelihood is not defined.
    """
    table = cell_table(model, counts, batch_n=known_batches(model, counts))
    parts = []
    with progress("Refining", table.n_cells) as advance:
        for rows, cells in table.in_order(_REFINED_CELLS):
            with torch.no_grad():
                start = model.vae.encode(cells)
            parts.append(refined(model.vae, cells, start, n_steps=n_steps, seed=seed))
            advance(len(rows))
    mean_nk, var_nk = (torch.cat([part.posterior[i].cpu() for part in parts]) for i in (0, 1))
    return Refined(Posterior(mean_nk, var_nk), torch.cat([part.gain_n for part in parts]))


def known_batches(model: Model, counts: Counts) -> np.ndarray | None:
    """Index of each cell's batch in the model; None for a model without batches.

    Raises
    ------
    DataError
        When batches are needed and missing, or unknown to the model.
    """
    if not model.batches:
        return None
    key = model.config.data.batch_key
    if counts.batch is None:
        raise DataError(f"the model was trained with --batch-key {key}", f"the data needs that column: obs[{key!r}]")
    index = {name: b for b, name in enumerate(model.batches)}
    unknown = sorted(set(counts.batch) - set(index))
    if unknown:
        raise DataError(
            f"batch {unknown[0]!r} is not one the model was trained on, so its cells have no likelihood",
            f"known batches: {', '.join(model.batches)}",
        )
    return np.asarray([index[name] for name in counts.batch], dtype=np.int64)
