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
from scvae_cli.latent.refinement import Refined
from scvae_cli.latent.refinement import refine as refined
from scvae_cli.model.bundle import Model
from scvae_cli.model.posterior import Posterior

# Cells encoded or decoded at once; fixed, so that results do not depend on the machine.
BLOCK_CELLS = 512
# Refining decodes them over and over: few enough to stay in the processor's cache, enough for its matrix units.
_REFINED_CELLS = 256
AXES = ("canonical", "training")


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """Posterior of every cell.

    Parameters
    ----------
    mean_nk, var_nk
        Mean of q(z|x) and the diagonal of its covariance along the axes asked for, float32, shape (n, k).
    gain
        Nats by which refining raised the cells' ELBO, their mean; None for the encoder's posteriors.
    """

    mean_nk: np.ndarray
    var_nk: np.ndarray
    gain: float | None = None

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


def refined_posteriors(model: Model, counts: Counts, *, n_steps: int, seed: int = 0) -> Refined:
    """The same, refined by gradient (`scvae_cli.latent.refinement`), and by how much each cell's ELBO rose.

    Raises
    ------
    DataError
        For cells of a batch the model does not know: their likelihood is not defined.
    """
    table = cell_table(model, counts, batch_n=known_batches(model, counts))
    parts = []
    for _, cells in table.in_order(_REFINED_CELLS):
        with torch.no_grad():
            start = model.vae.encode(cells)
        parts.append(refined(model.vae, cells, start, n_steps=n_steps, seed=seed))
    mean_nk, var_nk = (torch.cat([part.posterior[i].cpu() for part in parts]) for i in (0, 1))
    return Refined(Posterior(mean_nk, var_nk), torch.cat([part.gain_n for part in parts]))


def embed(model: Model, counts: Counts, *, axes: str = "canonical", refine: int = 0) -> Embedding:
    """Encode cells.

    Parameters
    ----------
    model
        Its encoder does not see the batch.
    counts
        n cells in the model's genes; to be refined, with the batches of a model that has them.
    axes
        "canonical" (`scvae_cli.model.axes`), or "training" for the frame the networks work in.
    refine
        Steps by gradient from the encoder's posterior towards the best one of each cell.

    Raises
    ------
    ConfigError
        For axes of another name, or a negative number of steps.
    DataError
        To be refined, for cells of a batch the model does not know.
    """
    if axes not in AXES:
        raise ConfigError(f"--axes is {axes!r}", f"it takes one of: {', '.join(AXES)}")
    if refine < 0:
        raise ConfigError(f"--refine is {refine}", "it takes a number of steps, 0 or more; 100 is plenty")
    gain = None
    if refine > 0:
        (mean_nk, var_nk), gain_n = refined_posteriors(model, counts, n_steps=refine)
        gain = float(gain_n.mean())
    else:
        mean_nk, var_nk = posteriors(model, counts)
    if axes == "canonical":
        mean_nk, var_nk = model.axes.position(mean_nk), model.axes.variance(var_nk)
    return Embedding(mean_nk=mean_nk.numpy(), var_nk=var_nk.numpy(), gain=gain)


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
