"""Denoise the counts of every cell, and compare denoised and raw mean counts in groups of cells.

Letters in array shapes: n cells, g modeled genes, f genes of the data, d denoised genes, c columns of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.counts import Counts
from scvae_cli.data.finite import refuse_not_finite
from scvae_cli.data.slots import RowBlocks, Slot, SlotNames
from scvae_cli.errors import ConfigError
from scvae_cli.latent.expected_counts import OBSERVED, expected_counts, library_size
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, counted, silent
from scvae_cli.tools.denoise.group_means import GroupMeans, GroupSums
from scvae_cli.tools.denoise.options import DenoiseOptions

# Share of the data's genes above which the denoised counts are written to a layer, with NaN for the other genes. All
# plots of scanpy can use a layer. The columns of NaN make the layer larger by at most a ninth.
_LEAST_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Columns of the matrix of denoised counts.

    Parameters
    ----------
    genes
        Names of the d denoised genes, in the order of the data.
    modelled
        Mask of the denoised genes over the f genes of the data, shape (f,).
    in_layer
        Whether the result has a column for each gene of the data, with NaN for genes that are not denoised. If
        `in_layer` is False, the result has columns only for the denoised genes.
    """

    __repr__ = brief

    genes: np.ndarray
    modelled: np.ndarray
    in_layer: bool

    @classmethod
    def of(
        cls, model: Model, file_genes: np.ndarray, genes: Sequence[str] | None, *, all_genes: bool = False
    ) -> Columns:
        """Choose the columns of the result; `genes` are the modeled genes to denoise, or None for all modeled genes."""
        chosen = set(model.genes if genes is None else genes)
        modelled = np.asarray([gene in chosen for gene in file_genes], dtype=bool)
        in_layer = all_genes or bool(modelled.mean() >= _LEAST_SHARE)
        return cls(genes=np.asarray(file_genes)[modelled], modelled=modelled, in_layer=in_layer)

    @property
    def n_columns(self) -> int:
        """Number of columns."""
        return len(self.modelled) if self.in_layer else len(self.genes)

    def filled(self, mean_nd: np.ndarray) -> np.ndarray:
        """Return a block of the result, shape (n, c), float32; raises a ModelError if a value is not finite."""
        refuse_not_finite(mean_nd, "the denoised counts")
        if not self.in_layer:
            return mean_nd.astype(np.float32)
        block_nf = np.full((len(mean_nd), len(self.modelled)), np.nan, dtype=np.float32)
        block_nf[:, self.modelled] = mean_nd
        return block_nf

    def paths(self, names: SlotNames) -> list[str]:
        """List the paths of the slots to which the result is written."""
        if self.in_layer:
            return [f"layers/{names.denoised}", f"var/{names.modelled}"]
        return [f"obsm/{names.denoised}", f"uns/{names.denoised_genes}", f"var/{names.modelled}"]


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """Expected counts of n cells.

    `rows` holds the expected counts as blocks of rows, float32, shape (n, c), and `columns` says which genes the
    columns are. Each block of rows is computed when the block is read, and can be read only once.
    """

    __repr__ = brief

    rows: RowBlocks
    columns: Columns
    sums: GroupSums | None = None

    @property
    def modelled(self) -> np.ndarray:
        """Mask of the denoised genes over the genes of the data, shape (f,)."""
        return self.columns.modelled

    @property
    def n_bytes(self) -> int:
        """Size of the expected counts before compression, in bytes."""
        return int(np.prod(self.rows.shape)) * self.rows.dtype.itemsize

    def group_means(self) -> GroupMeans | None:
        """Return raw and denoised means in groups of cells. The result is None if no groups were given.

        Raises
        ------
        ConfigError
            If not all rows have been read.
        """
        if self.sums is None:
            return None
        if not self.sums.complete:
            raise ConfigError(
                "the means of the groups are known only after all rows were read", "call rows.whole() first"
            )
        return self.sums.means()

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        mask = Slot(group="var", key=names.modelled, value=self.modelled)
        if self.columns.in_layer:
            return [Slot(group="layers", key=names.denoised, value=self.rows, may_lack=True), mask]
        genes = Slot(group="uns", key=names.denoised_genes, value=self.columns.genes.astype(object))
        return [Slot(group="obsm", key=names.denoised, value=self.rows), genes, mask]


def denoise(
    model: Model,
    counts: Counts,
    columns: Columns,
    options: DenoiseOptions,
    *,
    groupby: str | None = None,
    label_n: np.ndarray | None = None,
    progress: Progress = silent,
) -> Denoised:
    """Compute the expected counts of every cell.

    Parameters
    ----------
    model, counts
        A model, and n cells with the genes of the model. If the model has batches and `options.needs_batch` is True,
        the batch of every cell must be given.
    columns
        Columns of the result. The options `genes` and `all_genes` are ignored here, because `columns` was chosen
        by these options.
    options
        With the estimate "state", the expected counts are the decoder's means, which are averages over cells in the
        same state. With the estimate "cell", the decoder's means are combined with a cell's own counts, which gives the
        expected counts of this single cell. The formulas are in `scvae_cli.latent.expected_counts`.
    groupby, label_n
        Column of obs, and the group of each cell in this column; None if the means of groups are not compared. Raw
        counts show the effect of the cell's batch. Raw counts are therefore compared with the expected counts in the
        cell's own batch, even if the result is decoded in another batch.

    Raises
    ------
    DataError
        If `options.batch_as` is unknown to the model, or if a cell's own batch is needed and unknown to the model.
    ConfigError
        If the model describes real numbers, and the options ask for a library size, zero inflation or the estimate
        "cell".
    """
    passed_on = ("estimate", "n_samples", "library", "batch_as", "with_zero_inflation", "seed")
    asked = {name: getattr(options, name) for name in passed_on}
    expected = expected_counts(model, counts, **asked)
    index = {gene: g for g, gene in enumerate(model.genes)}
    column_d = np.asarray([index[gene] for gene in columns.genes], dtype=np.int64)
    sums = compared = None
    if label_n is not None and groupby is not None:
        sums = GroupSums(groupby, label_n, list(columns.genes), of_counts=model.of_counts)
        if model.batches and options.batch_as != OBSERVED:
            compared = expected_counts(model, counts, **asked | {"batch_as": OBSERVED})
    size = library_size(model, options.library)
    scale_n = np.ones(counts.n_cells) if size is None else size / counts.library_n

    def blocks() -> Iterator[np.ndarray]:
        start = 0
        with progress("Denoising", counts.n_cells) as advance:
            for mean_ng in counted(expected, advance):
                rows = slice(start, start + len(mean_ng))
                if sums is not None:
                    own_ng = mean_ng if compared is None else next(compared)
                    raw_nd = counts.matrix[rows][:, column_d].toarray()
                    sums.add(raw_nd, own_ng[:, column_d], scale_n[rows])
                start = rows.stop
                yield columns.filled(mean_ng[:, column_d])

    shape = (counts.n_cells, columns.n_columns)
    return Denoised(
        rows=RowBlocks(shape=shape, dtype=np.dtype(np.float32), blocks=blocks()), columns=columns, sums=sums
    )
