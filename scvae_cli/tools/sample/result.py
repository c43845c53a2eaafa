"""Sampled cells, and the slots of an AnnData to which the cells are written.

Letters in array shapes: n sampled cells, k latent dimensions, g genes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.heldout import OFF_MANIFOLD


@dataclass(frozen=True, kw_only=True)
class SourceScores:
    """Mean log density of real cells' posterior samples under two distributions, in nats per cell.

    `prior` is the mean under N(0, I). `density` is the mean under the mixture fitted to the training cells. `heldout`
    says whether the real cells were held out of training. `n_cells` is the number of real cells.
    """

    prior: float
    density: float
    n_cells: int
    heldout: bool

    @property
    def better(self) -> str:
        """Name of the distribution under which the real cells are more likely."""
        return "density" if self.density >= self.prior else "prior"

    @property
    def gain(self) -> float:
        """How much higher the mean log density is under the better of the two distributions, in nats per cell."""
        return abs(self.density - self.prior)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """New cells drawn from a model.

    Parameters
    ----------
    source, scores
        Where the latent positions come from: "prior", "density" or "group"; and scores that compare the prior with the
        density. The density is the mixture fitted to the training cells. The scores are None if a group was sampled.
    group
        Column of obs that names groups, and label of the group that was sampled; None without a group.
    z_nk
        Latent positions along the canonical axes, float32, shape (n, k). The canonical axes are ordered by the variance
        of expression that they explain.
    library_n
        Library size at which each cell was decoded, shape (n,); None for a model of real-valued data.
    covariates, batch_as
        `covariates` maps each batch key and each continuous key of the model to the values with which the cells were
        decoded, shape (n,). `batch_as` names the batch or the covariates that were fixed for all cells; it is "drawn"
        if nothing was fixed. For a model without batches, `covariates` is empty, and `batch_as` is None.
    off_manifold_n
        Off-manifold score: share of the held-out cells' posterior samples that lie at a higher density. Shape (n,).
    n_proposed
        Number of draws, including draws that were rejected because they lie in holes of latent space.
    blocks
        The counts, float32, as consecutive blocks of rows. Expected counts and real numbers are dense arrays; drawn
        counts are CSR matrices. A block is computed when it is read, and can be read only once.
    """

    __repr__ = brief

    source: str
    scores: SourceScores | None
    group: tuple[str, str] | None
    z_nk: np.ndarray
    library_n: np.ndarray | None
    covariates: Mapping[str, np.ndarray]
    batch_as: str | None
    off_manifold_n: np.ndarray
    n_proposed: int
    blocks: Iterator[sp.csr_matrix] | Iterator[np.ndarray]

    @property
    def in_holes(self) -> float:
        """Share of the new cells that lie in a hole of latent space: cells with an off-manifold score above 0.95."""
        return float((self.off_manifold_n > OFF_MANIFOLD).mean())

    @property
    def rejected(self) -> float:
        """Share of the draws that were rejected."""
        return 1 - len(self.z_nk) / self.n_proposed

    def cell_names(self) -> np.ndarray:
        """Return the names of the new cells, shape (n,)."""
        return np.asarray([f"sample_{i}" for i in range(len(self.z_nk))], dtype=object)

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the output file that hold the result."""
        slots = [Slot(group="obs", key=names.off_manifold, value=self.off_manifold_n)]
        if self.library_n is not None:
            slots.append(Slot(group="obs", key=names.library, value=self.library_n))
        slots += covariate_slots(self.covariates)
        if self.group is not None and self.group[0] not in self.covariates:
            key, label = self.group
            slots.append(Slot(group="obs", key=key, value=pd.Categorical([label] * len(self.z_nk))))
        return [*slots, Slot(group="obsm", key=names.latent, value=self.z_nk)]


def covariate_slots(columns: Mapping[str, np.ndarray]) -> list[Slot]:
    """List the slots of the covariates of new cells: categories, or numbers."""
    return [
        Slot(group="obs", key=key, value=pd.Categorical(value_n) if value_n.dtype.kind == "O" else value_n)
        for key, value_n in columns.items()
    ]
