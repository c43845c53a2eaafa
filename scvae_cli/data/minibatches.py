"""Minibatches of sparse counts, which are converted to dense matrices one minibatch at a time.

Letters in array shapes: n cells of a minibatch, g genes, m nonzero counts in the minibatch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

# Number of cells that are collected at once in a pass over shuffled cells. With this number, the overhead of collecting
# the cells is negligible.
GATHERED_CELLS = 4096


@dataclass(frozen=True, kw_only=True)
class Nonzeros:
    """The m nonzero counts of n cells.

    Parameters
    ----------
    row_start
        Index of the first nonzero count of each cell, followed by m; shape (n + 1,).
    gene, value
        Index of the gene (int32 or int64) and value (float32) of each nonzero count; both arrays have shape (m,).
    """

    row_start: Tensor
    gene: Tensor
    value: Tensor

    @property
    def n_cells(self) -> int:
        """Number of cells n."""
        return len(self.row_start) - 1

    @property
    def cell(self) -> Tensor:
        """Index of the cell of each nonzero count, int64, shape (m,)."""
        rows = torch.arange(self.n_cells, device=self.gene.device)
        return torch.repeat_interleave(rows, self.row_start.diff(), output_size=len(self.gene))


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """The counts of a small part of the cells, on the device of the model.

    `library_n` is the library size of each cell, float32. `batch_n` is the index of each cell's batch, int64. For a
    model with several covariates, `batch_n` is the design matrix (`model/design.py`), float32, cells × effects.
    `batch_n` is None if the cells have no batches. `label_n` is the index of each cell's label, int64, and −1 for cells
    without a label. `label_n` is None if no labels are known.
    """

    n_genes: int
    nonzeros: Nonzeros
    library_n: Tensor
    batch_n: Tensor | None
    label_n: Tensor | None = None

    @property
    def n_cells(self) -> int:
        """Number of cells n."""
        return len(self.library_n)

    @property
    def x_ng(self) -> Tensor:
        """The counts as a dense matrix, float32, shape (n, g)."""
        return self.dense(self.nonzeros.value)

    def dense(self, value_m: Tensor) -> Tensor:
        """Return a dense matrix, shape (n, g), with the given values at the positions of the nonzero counts."""
        flat = self.nonzeros.cell * self.n_genes + self.nonzeros.gene
        zero = torch.zeros(self.n_cells * self.n_genes, dtype=value_m.dtype, device=flat.device)
        return zero.index_copy_(0, flat, value_m).view(self.n_cells, self.n_genes)


class CellTable:
    """Counts from which minibatches are taken.

    If the matrix fits on a GPU, the whole matrix is copied to the GPU, and minibatches are taken from the copy. If the
    matrix does not fit, several thousand rows at a time are collected on the CPU, copied to the GPU and split into
    minibatches.

    Parameters
    ----------
    matrix, batch_n
        Counts as a CSR matrix, cells × g genes, and the batch of each row, as in `Minibatch`. On the CPU, the matrix is
        used without a copy. `batch_n` is None if the cells have no batches.
    device
        Device of the minibatches.
    cells
        Rows of the matrix that belong to this table; None for all rows. The methods number the cells from 0, in the
        order of `cells`.
    resident
        Whether the whole matrix is copied to the device. If None, the function `fits` decides.
    real
        Whether the values are real numbers; the library size of every cell is then 1.
    label_n
        Index of the label of each row, −1 for rows without a label; None if no labels are known.

    Attributes
    ----------
    library_n, batch_n, label_n
        Library size (float64), batch and label of each cell of the table; `batch_n` and `label_n` may be None.
    resident
        The whole matrix on the device, or None if the matrix was not copied to the device.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        batch_n: np.ndarray | None,
        device: torch.device,
        cells: np.ndarray | None = None,
        resident: bool | None = None,
        real: bool = False,
        label_n: np.ndarray | None = None,
    ) -> None:
        self._matrix, self.device = matrix, device
        self.n_genes = matrix.shape[1]
        n_rows, self._batch_of_rows, self._label_of_rows = matrix.shape[0], batch_n, label_n
        self._library_of_rows = np.ones(n_rows) if real else np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
        self._choose(np.arange(n_rows) if cells is None else cells)
        if resident is None:
            resident = fits(matrix, device)
        # Pinned memory, from which copies to a GPU are faster, would need a second copy of the matrix on the CPU.
        self.resident = self._on_device(matrix, pinned=False) if resident else None

    def of_cells(self, cells: np.ndarray) -> CellTable:
        """Return a table of the cells in the rows `cells` of the matrix; the matrix itself is not copied."""
        other = copy.copy(self)
        other._choose(cells)
        return other

    def _choose(self, cells: np.ndarray) -> None:
        self._cells, self.n_cells = cells, len(cells)
        self.library_n = self._library_of_rows[cells]
        self.batch_n = None if self._batch_of_rows is None else self._batch_of_rows[cells]
        self.label_n = None if self._label_of_rows is None else self._label_of_rows[cells]

    def rows_of(self, cells: np.ndarray) -> np.ndarray:
        """Convert indices of cells in the table to row indices in the matrix; `cells` may have any shape."""
        rows: np.ndarray = self._cells[cells]
        return rows

    def counts_of(self, cells: np.ndarray) -> sp.csr_matrix:
        """Return the counts of the cells with the indices `cells`, in the given order."""
        return self._matrix[self._cells[cells]]

    def stored_counts(self) -> np.ndarray:
        """Return the number of nonzero counts of each cell."""
        stored: np.ndarray = np.diff(self._matrix.indptr)[self._cells]
        return stored

    def take(self, rows: np.ndarray) -> Minibatch:
        """Return a minibatch of the cells with the indices `rows`, in the given order."""
        return next(iter(self._minibatches([rows])))

    def in_order(self, size: int) -> Iterator[tuple[np.ndarray, Minibatch]]:
        """Iterate over minibatches of at most `size` cells; each item is a pair (indices of the cells, minibatch)."""
        for start in range(0, self.n_cells, size):
            rows = np.arange(start, min(start + size, self.n_cells))
            yield rows, self.take(rows)

    def in_batches(self, order: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Minibatch]]:
        """Iterate over minibatches of the cells in the given order.

        Each item is a pair (indices of the cells, minibatch). All minibatches have nearly the same size, which is at
        most `size` cells.
        """
        batches = even_batches(order, size)
        at_once = max(1, GATHERED_CELLS // size)
        for first in range(0, len(batches), at_once):
            some = batches[first : first + at_once]
            yield from zip(some, self._minibatches(some), strict=True)

    def _minibatches(self, some: list[np.ndarray]) -> Iterator[Minibatch]:
        """Create one minibatch from each list of cells; the data of all lists are copied to the device together."""
        rows = np.concatenate(some)
        index = self._cells[rows]
        library_n = self._to_device(self.library_n[rows].astype(np.float32))
        batch_n = None if self.batch_n is None else self._to_device(self.batch_n[rows])
        label_n = None if self.label_n is None else self._to_device(self.label_n[rows])
        if self.resident is None:
            counts = self._matrix[index]
            block = self._on_device(counts)
            # Row starts are read on the CPU, because reading them from a GPU would wait for the computations of the
            # GPU.
            starts = counts.indptr.tolist()
        else:
            index_n = self._to_device(index)
        end = 0
        for part in some:
            first, end = end, end + len(part)
            if self.resident is None:
                stored = slice(starts[first], starts[end])
                row_start = block.row_start[first : end + 1] - starts[first]
                nonzeros = Nonzeros(row_start=row_start, gene=block.gene[stored], value=block.value[stored])
            else:
                nonzeros = gather(self.resident, index_n[first:end])
            own_batch_n = None if batch_n is None else batch_n[first:end]
            own_label_n = None if label_n is None else label_n[first:end]
            yield Minibatch(
                n_genes=self.n_genes,
                nonzeros=nonzeros,
                library_n=library_n[first:end],
                batch_n=own_batch_n,
                label_n=own_label_n,
            )

    def _on_device(self, matrix: sp.csr_matrix, *, pinned: bool = True) -> Nonzeros:
        return Nonzeros(
            row_start=self._to_device(matrix.indptr, pinned=pinned),
            gene=self._to_device(matrix.indices, pinned=pinned),
            value=self._to_device(matrix.data, pinned=pinned),
        )

    def _to_device(self, values: np.ndarray, *, pinned: bool = True) -> Tensor:
        tensor = torch.from_numpy(values)
        if pinned and self.device.type == "cuda":
            # Copies from pinned memory, which a GPU can read directly, run in parallel with computations of the GPU.
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def gather(nonzeros: Nonzeros, rows: Tensor) -> Nonzeros:
    """Return the rows `rows` of sparse counts, in the given order, on the device of the counts."""
    start = nonzeros.row_start[rows].long()
    length = nonzeros.row_start[rows + 1] - start
    row_start = torch.nn.functional.pad(length.cumsum(0), (1, 0))
    n_stored = int(row_start[-1])
    # Position of every stored value: the start of its row plus its position within the row.
    position = torch.arange(n_stored, device=rows.device)
    position += torch.repeat_interleave(start - row_start[:-1], length, output_size=n_stored)
    return Nonzeros(row_start=row_start, gene=nonzeros.gene[position], value=nonzeros.value[position])


def fits(matrix: sp.csr_matrix, device: torch.device) -> bool:
    """Whether the device is a GPU, and the counts need at most half of the free memory of the GPU."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    size: int = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    return 2 * size <= free


def even_batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Split a sequence of cells, in order, into minibatches of nearly equal size, with at most `size` cells each.

    The last minibatch is never much smaller than the other minibatches.

    >>> [len(batch) for batch in even_batches(np.arange(129), 64)]
    [43, 43, 43]
    """
    return np.array_split(order, max(1, -(-len(order) // size)))
