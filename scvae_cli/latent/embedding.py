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
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.model.bundle import Model
from scvae_cli.model.posterior import Posterior

# Cells encoded or decoded at once; fixed, so that results do not depend on the machine.
BLOCK_CELLS = 512
AXES = ("canonical", "training")


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Posterior of every cell.

    Parameters
    ----------
    mean_nk, var_nk
        Mean of q(z|x) and the diagonal of its covariance along the axes asked for, float32, shape (n, k).
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
    empty = np.flatnonzero(~counts.filled)
    if len(empty):
        raise DataError(
            f"{len(empty)} cell(s) have no counts in the modelled genes, the first is {counts.cell_names[empty[0]]!r}",
            "filter them out first: scanpy.pp.filter_cells(adata, min_counts=1)",
        )
    return CellTable(counts.matrix, batch_n, model.device, real=counts.real)


@torch.inference_mode()
def posteriors(model: Model, counts: Counts) -> Posterior:
    """q(z|x) of every cell in the frame of the training, on the CPU, each part of shape (n, k)."""
    table = cell_table(model, counts)
    parts = [model.vae.encode(cells) for _, cells in table.in_order(BLOCK_CELLS)]
    return Posterior(
        torch.cat([part.mean_nk.cpu() for part in parts]), torch.cat([part.var_nk.cpu() for part in parts])
    )


def embed(model: Model, counts: Counts, *, axes: str = "canonical") -> Embedding:
    """Encode cells.

    Parameters
    ----------
    model
        Its encoder does not see the batch.
    counts
        n cells in the model's genes.
    axes
        "canonical" (`scvae_cli.model.axes`), or "training" for the frame the networks work in.

    Raises
    ------
    ConfigError
        For axes of another name.
    """
    if axes not in AXES:
        raise ConfigError(f"--axes is {axes!r}", f"it takes one of: {', '.join(AXES)}")
    mean_nk, var_nk = posteriors(model, counts)
    if axes == "canonical":
        mean_nk, var_nk = model.axes.position(mean_nk), model.axes.variance(var_nk)
    return Embedding(mean_nk=mean_nk.numpy(), var_nk=var_nk.numpy())
