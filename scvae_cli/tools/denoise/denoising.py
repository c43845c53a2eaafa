"""Expected counts of every cell, with a column for every gene of the file.

Shapes: n cells, g modeled genes, f genes of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import RowBlocks, Slot, SlotNames
from scvae_cli.latent.expected_counts import expected_counts
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, counted, silent
from scvae_cli.tools.denoise.options import DenoiseOptions


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """Expected counts of n cells × f genes, NaN where a gene was not denoised.

    Parameters
    ----------
    rows
        Blocks of rows, float32, which are computed when they are read, and only once.
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


def denoise(
    model: Model,
    counts: Counts,
    file_genes: np.ndarray,
    options: DenoiseOptions,
    *,
    genes: Sequence[str] | None = None,
    progress: Progress = silent,
) -> Denoised:
    """Expected counts of every cell.

    Parameters
    ----------
    model
        Encodes the cells and decodes them.
    counts
        n cells in the model's genes, with their batches if `options.needs_batch` and the model has batches.
    file_genes
        Names of the result's genes in order, shape (f,).
    options
        The estimate is E_q[μ] for "state" and E_q[E[λ | x]] for "cell" (`scvae_cli.latent.expected_counts`).
    genes
        Names of the modeled genes to denoise, those of `options.genes`; None for all.
    progress
        Shows how many cells are done while the blocks are read.

    Raises
    ------
    DataError
        For an unknown batch, or cells of an unknown batch where theirs is needed.
    ConfigError
        If a model of real numbers is asked for a library size, zero inflation or the cells' own rates.
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
    chosen = set(model.genes if genes is None else genes)
    index = {gene: g for g, gene in enumerate(model.genes) if gene in chosen}
    columns_f = np.asarray([index.get(gene, -1) for gene in file_genes])
    modelled = columns_f >= 0
    shape = (counts.n_cells, len(file_genes))

    def blocks() -> Iterator[np.ndarray]:
        with progress("Denoising", shape[0]) as advance:
            for mean_ng in counted(expected, advance):
                block = np.full((len(mean_ng), shape[1]), np.nan, dtype=np.float32)
                block[:, modelled] = mean_ng[:, columns_f[modelled]]
                yield block

    return Denoised(rows=RowBlocks(shape=shape, dtype=np.dtype(np.float32), blocks=blocks()), modelled=modelled)
