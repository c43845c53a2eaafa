"""The result of `map`: the model with the new batches, and how common the state of each cell is in the training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.model.bundle import Model


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """A model with new batches.

    Parameters
    ----------
    model
        The model with the new batches.
    batch_key, batch_n
        Column of obs with the batches, and the batch of each cell, shape (n,).
    new, n_cells_b, difference_b
        Name and number of cells of each new batch, and the typical difference between the log proportions of genes in
        the new batch and in the earlier batches of the model (natural logarithm). A difference of 0 means that the
        genes differ by no more than chance.
    counterpart_p
        For each cell, the share of cells with a counterpart (held-out cells, or simulated cells of a mapped batch)
        whose states are as rare among the training cells as the state of this cell, or rarer; shape (n,).
    seconds
        Duration of the training of the new batches, in seconds.
    """

    __repr__ = brief

    model: Model
    batch_key: str
    batch_n: np.ndarray
    new: tuple[str, ...]
    n_cells_b: tuple[int, ...]
    difference_b: tuple[float, ...]
    counterpart_p: np.ndarray
    seconds: float

    def lacking(self, false_alarms: float) -> np.ndarray:
        """Return a mask of the cells that have no counterpart at this rate of false alarms, shape (n,)."""
        result: np.ndarray = self.counterpart_p <= false_alarms
        return result

    def slots(self, names: SlotNames, false_alarms: float) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        return [
            Slot(group="obs", key=names.counterpart_p, value=self.counterpart_p),
            Slot(group="obs", key=names.no_counterpart, value=self.lacking(false_alarms)),
        ]
