"""Expected counts of every cell, laid out in the genes of the file.

Shapes: n cells, g modelled genes, f genes of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import RowBlocks, Slot, SlotNames
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.latent.expected_counts import CELL, OBSERVED, STATE, expected_counts
from scvae_cli.model.bundle import Model

ESTIMATES = (STATE, CELL)


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """What is asked for.

    Parameters
    ----------
    estimate
        "state" for E_q[μ], "cell" for E_q[E[λ | x]], which needs the cells' batches if the model has batches.
    n_samples
        Seeded posterior samples averaged; 0 decodes the posterior mean instead.
    library
        "observed" keeps each cell's depth, "median" takes the training median, a number is a depth for all.
    genes
        Modelled genes to write; None for all of them.
    batch_as
        Batch to decode in: a category, "average" over all by their share of the training cells, or "observed" for
        each cell's own.
    with_zero_inflation
        Lower the expectation by the probability of a technical zero.
    seed
        Of the posterior samples.
    """

    estimate: str = "state"
    n_samples: int = 10
    library: str | float = "observed"
    genes: tuple[str, ...] | None = None
    batch_as: str = "average"
    with_zero_inflation: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimate not in ESTIMATES:
            raise ConfigError(f"--estimate is {self.estimate!r}", f"it takes one of: {', '.join(ESTIMATES)}")

    @property
    def needs_batch(self) -> bool:
        """Whether each cell's batch must be known, if the model has batches."""
        return self.estimate == CELL or self.batch_as == OBSERVED


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """Expected counts of n cells × f genes, NaN where a gene is not modelled.

    Parameters
    ----------
    rows
        Blocks of rows, computed as they are walked through.
    modelled
        Mask of the genes that have values, shape (f,).
    """

    rows: RowBlocks
    modelled: np.ndarray

    @property
    def n_bytes(self) -> int:
        """Size before compression."""
        return int(np.prod(self.rows.shape)) * self.rows.dtype.itemsize

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes."""
        return [
            Slot(group="layers", key=names.denoised, value=self.rows),
            Slot(group="var", key=names.modelled, value=self.modelled),
        ]


def denoise(model: Model, counts: Counts, file_genes: np.ndarray, options: DenoisingOptions) -> Denoised:
    """Expected counts of every cell.

    Parameters
    ----------
    model
        Decodes.
    counts
        n cells in the model's genes.
    file_genes
        Genes of the result, f of them, in their order.

    Raises
    ------
    DataError
        For an unknown gene, batch or library size, or cells of an unknown batch where theirs is needed.
    ConfigError
        For a depth, zero inflation or a cell's own rate asked of a model of real numbers.
    """
    expected = expected_counts(
        model,
        counts,
        estimate=options.estimate,
        n_samples=options.n_samples,
        library=options.library,
        batch_as=options.batch_as,
        with_zero_inflation=options.with_zero_inflation,
        seed=options.seed,
    )
    chosen = set(model.genes)
    if options.genes is not None:
        unknown = [gene for gene in options.genes if gene not in chosen]
        if unknown:
            raise DataError(
                f"gene {unknown[0]!r} is not in the model", f"it models {len(model.genes)} genes: scvae info"
            )
        chosen = set(options.genes)
    position = {gene: i for i, gene in enumerate(model.genes)}
    columns_f = np.asarray([position[gene] if gene in chosen and gene in position else -1 for gene in file_genes])
    modelled = columns_f >= 0

    def blocks() -> Iterator[np.ndarray]:
        for mean_ng in expected:
            block = np.full((len(mean_ng), len(file_genes)), np.nan, dtype=np.float32)
            block[:, modelled] = mean_ng[:, columns_f[modelled]]
            yield block

    shape = (counts.n_cells, len(file_genes))
    return Denoised(rows=RowBlocks(shape=shape, dtype=np.dtype(np.float32), blocks=blocks()), modelled=modelled)
