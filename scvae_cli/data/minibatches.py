"""Sparse counts, densified a minibatch at a time.

Shapes: n cells of a minibatch, g genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import scipy.special
import torch
from torch import Tensor


class Nonzeros(NamedTuple):
    """The nonzero counts of a block of n cells × g genes.

    Parameters
    ----------
    flat
        Positions in the flattened block, row × g + column, int64.
    gene
        Column of each, int64.
    value
        The counts, float32.
    log_factorial_n
        Σ log x! over the genes of each cell, float64.
    """

    flat: Tensor
    gene: Tensor
    value: Tensor
    log_factorial_n: Tensor


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
        Index of each cell's batch, int64; −1 for a batch the model does not know; None without batches.
    """

    n_genes: int
    nonzeros: Nonzeros
    library_n: Tensor
    batch_n: Tensor | None

    @property
    def n_cells(self) -> int:
        """n."""
        return len(self.library_n)

    def scatter(self, values: Tensor) -> Tensor:
        """Put one value for each nonzero into a block of zeros, shape (n, g)."""
        dense = torch.zeros(self.n_cells * self.n_genes, dtype=values.dtype, device=values.device)
        return dense.index_copy_(0, self.nonzeros.flat, values).view(self.n_cells, self.n_genes)

    def dense(self) -> Tensor:
        """The counts, shape (n, g), float32."""
        return self.scatter(self.nonzeros.value)


class CellTable:
    """Counts laid out for minibatches.

    Parameters
    ----------
    matrix
        CSR counts, all cells × g genes.
    batch_n
        Index of each cell's batch (int64), or None.
    device
        Where minibatches go.
    """

    def __init__(self, matrix: sp.csr_matrix, batch_n: np.ndarray | None, device: torch.device) -> None:
        self._indptr = matrix.indptr.astype(np.int64)
        self._indices = matrix.indices
        self._data = matrix.data
        self.n_cells, self.n_genes = matrix.shape
        self.library_n = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
        self.log_factorial_n = _row_sums_of_log_factorial(matrix)
        self.batch_n = batch_n
        self._device = device

    def take(self, rows: np.ndarray) -> Minibatch:
        """The minibatch of some cells, in the order given."""
        starts = self._indptr[rows]
        lengths = self._indptr[rows + 1] - starts
        ends = np.cumsum(lengths)
        row = np.repeat(np.arange(len(rows)), lengths)
        # Position of every stored value: where its row starts plus its place in the row.
        position = np.arange(ends[-1] if len(rows) else 0) + np.repeat(starts - (ends - lengths), lengths)
        gene = self._indices[position].astype(np.int64)
        nonzeros = Nonzeros(
            flat=self._to_device(row * self.n_genes + gene),
            gene=self._to_device(gene),
            value=self._to_device(self._data[position]),
            log_factorial_n=self._to_device(self.log_factorial_n[rows]),
        )
        return Minibatch(
            n_genes=self.n_genes,
            nonzeros=nonzeros,
            library_n=self._to_device(self.library_n[rows].astype(np.float32)),
            batch_n=None if self.batch_n is None else self._to_device(self.batch_n[rows]),
        )

    def in_order(self, size: int) -> Iterator[tuple[np.ndarray, Minibatch]]:
        """All cells from first to last, with their indices, at most `size` at a time."""
        for start in range(0, self.n_cells, size):
            rows = np.arange(start, min(start + size, self.n_cells))
            yield rows, self.take(rows)

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def even_batches(order: np.ndarray, size: int) -> list[np.ndarray]:
    """Cut an order of cells into batches of nearly equal length, none above `size`.

    No batch is a remainder of one cell, which would make batch statistics meaningless.

    >>> [len(batch) for batch in even_batches(np.arange(129), 64)]
    [43, 43, 43]
    """
    return np.array_split(order, max(1, -(-len(order) // size)))


def _row_sums_of_log_factorial(matrix: sp.csr_matrix) -> np.ndarray:
    # In blocks of rows: the float64 temporary would otherwise be twice the size of the counts.
    blocks = []
    for start in range(0, matrix.shape[0], 65536):
        block = matrix[start : start + 65536]
        log_factorial = sp.csr_matrix(
            (scipy.special.gammaln(block.data.astype(np.float64) + 1), block.indices, block.indptr), shape=block.shape
        )
        blocks.append(np.asarray(log_factorial.sum(axis=1)).ravel())
    return np.concatenate(blocks)
