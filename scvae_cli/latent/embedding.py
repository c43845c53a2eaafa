"""Where each cell lies in latent space, and how surely.

Shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import CellTable
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import DataError
from scvae_cli.model.bundle import Model

# Cells encoded or decoded at once; fixed, so that results do not depend on the machine.
BLOCK_CELLS = 512


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Posterior of every cell.

    Parameters
    ----------
    mean_nk, var_nk
        Mean and variance of q(z|x), float32, shape (n, k).
    """

    mean_nk: np.ndarray
    var_nk: np.ndarray

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes."""
        return [
            Slot(group="obsm", key=names.embedding, value=self.mean_nk),
            Slot(group="obsm", key=names.latent_var, value=self.var_nk),
        ]


def cell_table(model: Model, counts: Counts, *, batch_n: np.ndarray | None = None) -> CellTable:
    """Lay out counts, already in the model's genes, for the model's device.

    Raises
    ------
    DataError
        When a cell has no counts in these genes: it says nothing about where it lies.
    """
    empty = np.flatnonzero(np.diff(counts.matrix.indptr) == 0)
    if len(empty):
        raise DataError(
            f"{len(empty)} cell(s) have no counts in the modelled genes, the first is {counts.cell_names[empty[0]]!r}",
            "filter them out first: scanpy.pp.filter_cells(adata, min_counts=1)",
        )
    return CellTable(counts.matrix, batch_n, model.device)


@torch.inference_mode()
def embed(model: Model, counts: Counts) -> Embedding:
    """Encode cells.

    Parameters
    ----------
    model
        Its encoder does not see the batch.
    counts
        n cells in the model's genes.
    """
    table = cell_table(model, counts)
    k = model.config.model.n_latent
    mean_nk = np.empty((table.n_cells, k), dtype=np.float32)
    var_nk = np.empty_like(mean_nk)
    for rows, cells in table.in_order(BLOCK_CELLS):
        posterior = model.vae.encode(cells)
        mean_nk[rows] = posterior.mean_nk.cpu().numpy()
        var_nk[rows] = posterior.var_nk.cpu().numpy()
    return Embedding(mean_nk=mean_nk, var_nk=var_nk)
