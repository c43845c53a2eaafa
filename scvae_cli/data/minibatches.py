"""Sparse counts, densified a minibatch at a time.

Shapes: n cells of a minibatch, g genes, m of its counts are not zero.
"""

from __future__ import annotations

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
        flat = self.nonzeros.cell * self.n_genes + self.nonzeros.gene
        zero = torch.zeros(self.n_cells * self.n_genes, device=flat.device)
        return zero.index_copy_(0, flat, self.nonzeros.value).view(self.n_cells, self.n_genes)


class CellTable:
    """Counts laid out for minibatches.

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
    """

    def __init__(
        self, matrix: sp.csr_matrix, batch_n: np.ndarray | None, device: torch.device, cells: np.ndarray | None = None
    ) -> None:
        self._matrix, self._device = matrix, device
        self._cells = np.arange(matrix.shape[0]) if cells is None else cells
        self.n_cells, self.n_genes = len(self._cells), matrix.shape[1]
        self.library_n = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()[self._cells]
        self.batch_n = None if batch_n is None else batch_n[self._cells]

    def take(self, rows: np.ndarray) -> Minibatch:
        """The minibatch of some cells, in the order given."""
        block = self._matrix[self._cells[rows]]
        return self._minibatch(block, 0, rows)

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
            block = self._matrix[self._cells[np.concatenate(some)]]
            first_row = 0
            for rows in some:
                yield rows, self._minibatch(block, first_row, rows)
                first_row += len(rows)

    def _minibatch(self, block: sp.csr_matrix, first_row: int, rows: np.ndarray) -> Minibatch:
        """The cells `rows`, whose counts stand in a block from some row on."""
        row_start = block.indptr[first_row : first_row + len(rows) + 1]
        part = slice(row_start[0], row_start[-1])
        nonzeros = Nonzeros(
            row_start=self._to_device(row_start - row_start[0]),
            gene=self._to_device(block.indices[part]),
            value=self._to_device(block.data[part]),
        )
        return Minibatch(
            n_genes=self.n_genes,
            nonzeros=nonzeros,
            library_n=self._to_device(self.library_n[rows].astype(np.float32)),
            batch_n=None if self.batch_n is None else self._to_device(self.batch_n[rows]),
        )

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def even_batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut an order of cells into batches of nearly equal length, none above `size`.

    No batch is a remainder of one cell, which would make batch statistics meaningless.

    >>> [len(batch) for batch in even_batches(np.arange(129), 64)]
    [43, 43, 43]
    """
    return np.array_split(order, max(1, -(-len(order) // size)))
