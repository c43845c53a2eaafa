"""The cells of many minibatches (a segment), stored on a device so that training steps need no data from the CPU.

A training step may be recorded on a GPU (as a CUDA graph) and repeated for every minibatch. Repeating a recorded step
requires that all minibatches have the same memory addresses and shapes. The memory of a segment is therefore allocated
once, and reused for every segment. Short minibatches are padded with cells of weight zero.

Letters in array shapes: s minibatches of a segment, n cells of a minibatch, g genes, j positions for the nonzero counts
of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.minibatches import CellTable, Nonzeros


class DenseCells(NamedTuple):
    """One minibatch with dense counts (float32).

    `share_n` is the weight of each cell in a mean over the minibatch; cells that were added as padding have weight 0.
    `batch_n` is the index of each cell's batch, or a row of the design matrix for each cell, as in `Minibatch`.
    `label_n` is the index of each cell's label, as in `Minibatch`.
    """

    x_ng: Tensor
    library_n: Tensor
    share_n: Tensor
    batch_n: Tensor | None
    label_n: Tensor | None


class Segment:
    """Memory on a device, such as a GPU, for `size` minibatches with `n_cells` cells each.

    If the matrix of the table is on the device, cells are read from this matrix. If the matrix is not on the device,
    the rows of a segment are copied to the device while the device processes the previous segment.
    """

    def __init__(self, table: CellTable, size: int, n_cells: int) -> None:
        self._table, self._n_genes = table, table.n_genes
        device = table.device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch does not annotate it
        length = table.stored_counts()
        # The largest number of counts of a cell is at least 1, so that no array is empty.
        self._longest = max(1, int(length.max(initial=0)))
        shape = (size, n_cells)
        self._row_sn = torch.zeros(shape, dtype=torch.long, device=device)
        self._library_sn, self._share_sn = torch.ones(shape, device=device), torch.zeros(shape, device=device)
        self._batch_sn = None if table.batch_n is None else _room(table.batch_n, shape, device)
        self._label_sn = None if table.label_n is None else _room(table.label_n, shape, device)
        self._sent = table.resident is None
        if table.resident is None:
            # This upper bound assumes that the segment contains the cells with most counts, and that every minibatch is
            # padded to the longest row.
            most = int(np.sort(length)[::-1][: size * n_cells].sum()) + size * self._longest
            self._nonzeros = Nonzeros(
                row_start=torch.zeros(size * n_cells + 1, dtype=torch.long, device=device),
                gene=torch.zeros(most, dtype=torch.int32, device=device),
                value=torch.zeros(most, device=device),
            )
        else:
            self._nonzeros = table.resident

    def fill(self, batches: Sequence[np.ndarray]) -> None:
        """Store at most `size` minibatches of at most `n_cells` cells; `batches` contains the indices of the cells."""
        n = self._row_sn.shape[1]
        # Each minibatch is padded with its first cell.
        cell_sn = np.stack([np.concatenate([cells, np.repeat(cells[:1], n - len(cells))]) for cells in batches])
        n_real_s1 = np.array([[len(cells)] for cells in batches])
        share_sn = (np.arange(n) < n_real_s1) / n_real_s1
        self.send(self._library_sn, self._table.library_n[cell_sn].astype(np.float32))
        self.send(self._share_sn, share_sn.astype(np.float32))
        if self._batch_sn is not None and self._table.batch_n is not None:
            self.send(self._batch_sn, self._table.batch_n[cell_sn])
        if self._label_sn is not None and self._table.label_n is not None:
            self.send(self._label_sn, self._table.label_n[cell_sn])
        if not self._sent:
            self.send(self._row_sn, self._table.rows_of(cell_sn))
            return
        block = self._table.counts_of(cell_sn.ravel())
        self.send(self._row_sn, np.arange(cell_sn.size).reshape(cell_sn.shape))
        self.send(self._nonzeros.row_start, block.indptr.astype(np.int64))
        self.send(self._nonzeros.gene, block.indices.astype(np.int32))
        self.send(self._nonzeros.value, block.data)

    def send_in_turn(self) -> None:
        """From now on, copy data between training steps, and not in parallel with the steps.

        Call this method after the recording of a step has failed. After a failed recording, torch may fail to free
        memory that two streams (queues of GPU operations) have used.
        """
        self._side = None

    def send(self, room: Tensor, values: np.ndarray) -> None:
        """Copy values to the first rows of a tensor on the device, when all earlier operations of the device have
        ended.
        """
        arriving = torch.from_numpy(np.ascontiguousarray(values))
        if self._side is not None:
            # In a separate stream (queue of GPU operations), the copy runs in parallel with the current steps.
            with torch.cuda.stream(self._side):
                arriving = arriving.pin_memory().to(room.device, non_blocking=True)
            now = torch.cuda.current_stream(room.device)
            now.wait_stream(self._side)
            arriving.record_stream(now)
        room[: len(values)].copy_(arriving)

    def cells(self, at: Tensor) -> DenseCells:
        """Return the minibatch with the index `at`; the index is a tensor on the device, shape (1,), int64."""
        library_n, share_n = self._library_sn.index_select(0, at)[0], self._share_sn.index_select(0, at)[0]
        batch_n = None if self._batch_sn is None else self._batch_sn.index_select(0, at)[0]
        x_ng = dense_rows(self._nonzeros, self._row_sn.index_select(0, at)[0], self._n_genes, self._longest)
        label_n = None if self._label_sn is None else self._label_sn.index_select(0, at)[0]
        return DenseCells(x_ng, library_n, share_n, batch_n, label_n)


def _room(batch_n: np.ndarray, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Allocate a tensor with one index, or one row of a design matrix, for each cell of a segment."""
    return torch.zeros((*shape, *batch_n.shape[1:]), dtype=torch.as_tensor(batch_n[:0]).dtype, device=device)


def dense_rows(nonzeros: Nonzeros, row_n: Tensor, n_genes: int, longest: int) -> Tensor:
    """Return the rows `row_n` of sparse counts as a dense matrix, n × g.

    The shapes of all arrays depend only on the length of `row_n`, so that a GPU can record the operations and repeat
    them for other rows. `longest` is the largest number of nonzero counts in a row.
    """
    start_n1 = nonzeros.row_start[row_n].unsqueeze(1)
    length_n1 = nonzeros.row_start[row_n + 1].unsqueeze(1) - start_n1
    j_j = torch.arange(longest, device=row_n.device)
    stored_nj = j_j < length_n1
    position_nj = (start_n1 + j_j).masked_fill(~stored_nj, 0)
    # Positions without a count are written to extra columns after the genes, so that no element is written twice.
    column_nj = torch.where(stored_nj, nonzeros.gene[position_nj].long(), n_genes + j_j)
    n_columns = n_genes + longest
    # The matrix is filled as one long row, because torch's reproducible scatter along several rows involves the CPU.
    flat_nj = column_nj + n_columns * torch.arange(len(row_n), device=row_n.device).unsqueeze(1)
    x_c = torch.zeros(len(row_n) * n_columns, dtype=nonzeros.value.dtype, device=row_n.device)
    x_nc = x_c.scatter(0, flat_nj.view(-1), nonzeros.value[position_nj].view(-1)).view(-1, n_columns)
    return x_nc[:, :n_genes]
