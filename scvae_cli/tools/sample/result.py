"""What is asked for when cells are sampled, what comes of it, and where its parts go in an AnnData.

Shapes: n sampled cells, k latent dimensions, g genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import ConfigError
from scvae_cli.heldout import OFF_MANIFOLD

SOURCES = ("auto", "prior", "density")


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What is asked for.

    Parameters
    ----------
    n
        Number of cells.
    source
        Where latent positions are drawn from: "prior" is N(0, I), "density" the mixture fitted to where the cells are,
        "auto" whichever of the two the held-out cells are likelier under.
    library
        "observed" takes the library size of a real cell near each new one, of its batch where the data tells; of a
        group, that of the cell picked. "median" takes the training median, a number is a depth for all.
    batch_as
        Batch to decode in; "drawn" takes each by its share of the training cells, in a group that of the cell picked.
    mean
        What drawn counts average to, zero inflation counted in, instead of drawn counts.
    avoid_holes
        Reject draws that fall in a hole.
    seed
        Of everything drawn.
    """

    n: int
    source: str = "auto"
    library: str | float = "observed"
    batch_as: str = "drawn"
    mean: bool = False
    avoid_holes: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"-n is {self.n}", "it takes a number of cells, 1 or more")
        if self.source not in SOURCES:
            raise ConfigError(f"--from is {self.source!r}", f"it takes one of: {', '.join(SOURCES)}")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}", "it takes a whole number, 0 or above")


@dataclass(frozen=True, kw_only=True)
class SourceScores:
    """Mean log density of real cells' posterior samples under two densities, nats a cell.

    Parameters
    ----------
    prior, density
        Under N(0, I), and under the fitted mixture.
    n_cells
        How many cells were asked.
    heldout
        Whether they are cells the training never saw.
    """

    prior: float
    density: float
    n_cells: int
    heldout: bool

    @property
    def better(self) -> str:
        """The source that the cells are likelier under."""
        return "density" if self.density >= self.prior else "prior"

    @property
    def gain(self) -> float:
        """By how many nats a cell it is."""
        return abs(self.density - self.prior)


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """New cells.

    Parameters
    ----------
    options
        What was asked for.
    genes
        g modelled genes.
    source
        "prior", "density" or "group".
    scores
        What "auto" goes by; None for a group.
    group
        Column of obs and group whose cells were drawn from, or None.
    z_nk
        Latent positions along the canonical axes, float32.
    library_n
        Depth each cell was decoded at; None for real numbers, which have none.
    batch_n, batch_key
        Name of the batch it was decoded in, and the column of obs that names batches; None for a model without.
    off_manifold_n
        Share of held-out cells' posterior samples that lie in denser places.
    n_proposed
        Draws made, those rejected among them.
    blocks
        The counts, float32, as consecutive blocks of rows that can be walked through once: CSR, or dense for means and
        for real numbers.
    """

    options: SamplingOptions
    genes: tuple[str, ...]
    source: str
    scores: SourceScores | None
    group: tuple[str, str] | None
    z_nk: np.ndarray
    library_n: np.ndarray | None
    batch_n: np.ndarray | None
    batch_key: str | None
    off_manifold_n: np.ndarray
    n_proposed: int
    blocks: Iterator[sp.csr_matrix] | Iterator[np.ndarray]

    @property
    def in_holes(self) -> float:
        """Share of the cells that lie in a hole."""
        return float((self.off_manifold_n > OFF_MANIFOLD).mean())

    @property
    def rejected(self) -> float:
        """Share of the draws that were rejected."""
        return 1 - len(self.z_nk) / self.n_proposed

    def cell_names(self) -> np.ndarray:
        """Names of the new cells, shape (n,)."""
        return np.asarray([f"sample_{i}" for i in range(len(self.z_nk))], dtype=object)

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes."""
        slots = [Slot(group="obs", key=names.off_manifold, value=self.off_manifold_n)]
        if self.library_n is not None:
            slots.append(Slot(group="obs", key=names.library, value=self.library_n))
        if self.batch_n is not None and self.batch_key is not None:
            slots.append(Slot(group="obs", key=self.batch_key, value=pd.Categorical(self.batch_n)))
        if self.group is not None and self.group[0] != self.batch_key:
            key, label = self.group
            slots.append(Slot(group="obs", key=key, value=pd.Categorical([label] * len(self.z_nk))))
        return [*slots, Slot(group="obsm", key=names.embedding, value=self.z_nk)]
