"""Sparse counts, densified a minibatch at a time.

Shapes: n cells of a minibatch, g genes, m of its counts are not zero.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

# Cells gathered at once for a shuffled pass: enough that the gathering's fixed costs do not count.
GATHERED_CELLS = 4096


@dataclass(frozen=True, kw_only=True)
class Nonzeros:
    """The nonzero counts of n cells.

    Parameters
    ----------
    row_start
        Where each cell's nonzeros begin, and m; shape (n + 1,).
    gene
        Column of each, int32 or int64, shape (m,).
    value
        The counts, float32, shape (m,).
    """

    row_start: Tensor
    gene: Tensor
    value: Tensor

    @property
    def n_cells(self) -> int:
        """n."""
        return len(self.row_start) - 1

    @property
    def cell(self) -> Tensor:
        """Row of each nonzero, int64, shape (m,)."""
        rows = torch.arange(self.n_cells, device=self.gene.device)
        return torch.repeat_interleave(rows, self.row_start.diff(), output_size=len(self.gene))


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """Some cells, on the device that computes.

    Parameters
    ----------
    n_genes
        g.
    nonzeros
        Their counts.
    library_n
        Counts per cell, float32.
    batch_n
        Index of each cell's batch, int64; None without batches.
    """

    n_genes: int
    nonzeros: Nonzeros
    library_n: Tensor
    batch_n: Tensor | None

    @property
    def n_cells(self) -> int:
        """n."""
        return len(self.library_n)

    @property
    def x_ng(self) -> Tensor:
        """The counts, dense, float32, shape (n, g)."""
        return self.dense(self.nonzeros.value)

    def dense(self, value_m: Tensor) -> Tensor:
        """Values that stand where the nonzero counts do, dense, shape (n, g)."""
        flat = self.nonzeros.cell * self.n_genes + self.nonzeros.gene
        zero = torch.zeros(self.n_cells * self.n_genes, dtype=value_m.dtype, device=flat.device)
        return zero.index_copy_(0, flat, value_m).view(self.n_cells, self.n_genes)


class CellTable:
    """Counts laid out for minibatches.

    On a CPU, rows of the matrix are gathered some thousand at a time, and minibatches are stretches of these. On any
    other device the matrix itself lies there, when it fits, and rows are gathered where they are used.

    Parameters
    ----------
    matrix
        CSR counts, cells × g genes; not copied.
    batch_n
        Index of each of its cells' batch (int64), or None.
    device
        Where minibatches go.
    cells
        The rows of the matrix that belong to this table; None for all. What follows counts within them.
    resident
        Whether the matrix lies on the device; None decides by the device and its free memory.
    real
        Whether the values are real numbers, which have no depth: every cell's is 1.

    Attributes
    ----------
    n_cells, n_genes, library_n, batch_n, device
        n, g, counts per cell (float64), index of each cell's batch or None, and where minibatches go.
    resident
        The whole matrix on the device, or None.
    """

    def __init__(
        self,
        matrix: sp.csr_matrix,
        batch_n: np.ndarray | None,
        device: torch.device,
        cells: np.ndarray | None = None,
        resident: bool | None = None,
        real: bool = False,
    ) -> None:
        self._matrix, self.device = matrix, device
        self.n_genes = matrix.shape[1]
        n_rows, self._batch_of_rows = matrix.shape[0], batch_n
        self._library_of_rows = np.ones(n_rows) if real else np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
        self._choose(np.arange(n_rows) if cells is None else cells)
        if resident is None:
            resident = fits(matrix, device)
        # Pinned, it would take its memory on the host twice.
        self.resident = self._on_device(matrix, pinned=False) if resident else None

    def of_cells(self, cells: np.ndarray) -> CellTable:
        """Other rows of the same matrix; where that lies on the device, it lies there once."""
        other = copy.copy(self)
        other._choose(cells)
        return other

    def _choose(self, cells: np.ndarray) -> None:
        self._cells, self.n_cells = cells, len(cells)
        self.library_n = self._library_of_rows[cells]
        self.batch_n = None if self._batch_of_rows is None else self._batch_of_rows[cells]

    def rows_of(self, cells: np.ndarray) -> np.ndarray:
        """Where cells of the table lie in the matrix, in any shape."""
        rows: np.ndarray = self._cells[cells]
        return rows

    def counts_of(self, cells: np.ndarray) -> sp.csr_matrix:
        """Their counts, in the order given."""
        return self._matrix[self._cells[cells]]

    def stored_counts(self) -> np.ndarray:
        """How many counts of each cell are stored."""
        stored: np.ndarray = np.diff(self._matrix.indptr)[self._cells]
        return stored

    def take(self, rows: np.ndarray) -> Minibatch:
        """The minibatch of some cells, in the order given."""
        return next(iter(self._minibatches([rows])))

    def in_order(self, size: int) -> Iterator[tuple[np.ndarray, Minibatch]]:
        """All cells from first to last, with their indices, at most `size` at a time."""
        for start in range(0, self.n_cells, size):
            rows = np.arange(start, min(start + size, self.n_cells))
            yield rows, self.take(rows)

    def in_batches(self, order: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, Minibatch]]:
        """The cells in the order given, in minibatches of nearly equal length, none above `size`."""
        batches = even_batches(order, size)
        at_once = max(1, GATHERED_CELLS // size)
        for first in range(0, len(batches), at_once):
            some = batches[first : first + at_once]
            yield from zip(some, self._minibatches(some), strict=True)

    def _minibatches(self, some: list[np.ndarray]) -> Iterator[Minibatch]:
        """The minibatches of several lists of cells; what they need goes to the device in one piece."""
        rows = np.concatenate(some)
        index = self._cells[rows]
        library_n = self._to_device(self.library_n[rows].astype(np.float32))
        batch_n = None if self.batch_n is None else self._to_device(self.batch_n[rows])
        index_n = None if self.resident is None else self._to_device(index)
        counts = self._matrix[index] if self.resident is None else None
        block = None if counts is None else self._on_device(counts)
        # From the host's copy: the device may still be busy.
        starts = None if counts is None else counts.indptr.tolist()
        end = 0
        for part in some:
            first, end = end, end + len(part)
            if block is not None and starts is not None:
                stored = slice(starts[first], starts[end])
                row_start = block.row_start[first : end + 1] - starts[first]
                nonzeros = Nonzeros(row_start=row_start, gene=block.gene[stored], value=block.value[stored])
            else:
                assert self.resident is not None
                assert index_n is not None
                nonzeros = gather(self.resident, index_n[first:end])
            yield Minibatch(
                n_genes=self.n_genes,
                nonzeros=nonzeros,
                library_n=library_n[first:end],
                batch_n=None if batch_n is None else batch_n[first:end],
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
            # From pinned memory the copy runs beside what the device is doing.
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def gather(nonzeros: Nonzeros, rows: Tensor) -> Nonzeros:
    """Some rows of sparse counts, in the order given, on the device where they lie."""
    start = nonzeros.row_start[rows].long()
    length = nonzeros.row_start[rows + 1] - start
    row_start = torch.nn.functional.pad(length.cumsum(0), (1, 0))
    n_stored = int(row_start[-1])
    # Position of every stored value: where its row starts plus its place in the row.
    place = torch.arange(n_stored, device=rows.device)
    place += torch.repeat_interleave(start - row_start[:-1], length, output_size=n_stored)
    return Nonzeros(row_start=row_start, gene=nonzeros.gene[place], value=nonzeros.value[place])


def fits(matrix: sp.csr_matrix, device: torch.device) -> bool:
    """Whether counts may lie on a device as a whole: not the CPU, and at most half of the device's free memory."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    size: int = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    return 2 * size <= free


def even_batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut an order of cells into batches of nearly equal length, none above `size`.

    No batch is a remainder of one cell, which would make batch statistics meaningless.

    >>> [len(batch) for batch in even_batches(np.arange(129), 64)]
    [43, 43, 43]
    """
    return np.array_split(order, max(1, -(-len(order) // size)))
