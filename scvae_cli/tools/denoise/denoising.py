"""Expected counts of every cell, with a column for every gene of the file.

Shapes: n cells, g modeled genes, f genes of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import RowBlocks, Slot, SlotNames
from scvae_cli.latent.expected_counts import expected_counts
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, counted, silent
from scvae_cli.tools.denoise.options import DenoiseOptions


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """Expected counts of n cells × f genes, and a mask of the denoised genes.

    `rows` holds the expected counts, float32, as blocks of rows, with NaN for genes that are not denoised. A block is
    computed when it is read, and can be read only once. `modelled` is the mask, shape (f,).
    """

    __repr__ = brief

    rows: RowBlocks
    modelled: np.ndarray

    @property
    def n_bytes(self) -> int:
        """Size of the expected counts before compression."""
        return int(np.prod(self.rows.shape)) * self.rows.dtype.itemsize

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
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
    """Compute the expected counts of every cell.

    Parameters
    ----------
    model, counts
        A model, and n cells with the genes of the model. If the model has batches and `options.needs_batch` is True,
        the batch of every cell must be given.
    file_genes
        Names of the genes of the file, in the order of the result's columns, shape (f,).
    options
        For the estimate "state", the expected counts are the decoder's mean: the average of cells in the same state.
        For the estimate "cell", the decoder's mean is combined with the cell's own counts, and the expected counts are
        those of this individual cell. Both estimates are averaged over the posterior of the latent position. The
        formulas are in `scvae_cli.latent.expected_counts`.
    genes
        Names of the modeled genes to denoise; None for all. `options.genes` is not read here.

    Raises
    ------
    DataError
        If `options.batch_as` is unknown to the model, or if a cell's own batch is needed and unknown to the model.
    ConfigError
        If the model is of real numbers, and the options ask for a library size, zero inflation or the estimate "cell".
    """
    passed_on = ("estimate", "n_samples", "library", "batch_as", "with_zero_inflation", "seed")
    expected = expected_counts(model, counts, **{name: getattr(options, name) for name in passed_on})
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
