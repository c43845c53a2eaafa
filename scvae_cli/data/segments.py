"""The cells of many minibatches, laid out on a device so that steps through them need nothing from the host.

The room is taken once: every minibatch of every stretch lies at the same addresses and has the same shape, as a step
that is recorded and played again must have it. Minibatches that are short are filled up with cells that weigh nothing.

Shapes: s minibatches of a stretch, n cells of a minibatch, g genes, j places for a cell's nonzero counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.minibatches import CellTable, Nonzeros


class DenseCells(NamedTuple):
    """One minibatch.

    Parameters
    ----------
    x_ng, library_n
        Counts, and counts per cell, float32.
    share_n
        What each cell weighs in a mean over the minibatch; 0 for those that fill it up.
    batch_n
        Index of each cell's batch, int64; None without batches.
    """

    x_ng: Tensor
    library_n: Tensor
    share_n: Tensor
    batch_n: Tensor | None


class Segment:
    """Room for the cells of `size` minibatches of `n_cells`.

    Where the table's matrix lies on the device, cells are found in it. Where it does not, the rows of a stretch are
    sent from pinned memory while the device is at work on those before.

    Parameters
    ----------
    table
        Cells to lay out.
    size, n_cells
        s and n.
    """

    def __init__(self, table: CellTable, size: int, n_cells: int) -> None:
        self._table, self._n_genes = table, table.n_genes
        device = table.device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]  # torch's
        length = table.stored_counts()
        # Never none, so that there always is a place to point to.
        self._longest = max(1, int(length.max(initial=0)))
        shape = (size, n_cells)
        self._row_sn = torch.zeros(shape, dtype=torch.long, device=device)
        self._library_sn, self._share_sn = torch.ones(shape, device=device), torch.zeros(shape, device=device)
        self._batch_sn = None if table.batch_n is None else torch.zeros_like(self._row_sn)
        self._sent = table.resident is None
        if table.resident is None:
            # As many as the fullest cells could have; every minibatch may be filled up with a full cell.
            most = int(np.sort(length)[::-1][: size * n_cells].sum()) + size * self._longest
            self._nonzeros = Nonzeros(
                row_start=torch.zeros(size * n_cells + 1, dtype=torch.long, device=device),
                gene=torch.zeros(most, dtype=torch.int32, device=device),
                value=torch.zeros(most, device=device),
            )
        else:
            self._nonzeros = table.resident

    def fill(self, batches: Sequence[np.ndarray]) -> None:
        """Lay out minibatches, given by the cells' indices in the table; at most `size`, of at most `n_cells`."""
        n = self._row_sn.shape[1]
        # The first cell of each fills it up.
        cell_sn = np.stack([np.concatenate([cells, np.repeat(cells[:1], n - len(cells))]) for cells in batches])
        n_real_s1 = np.array([[len(cells)] for cells in batches])
        share_sn = (np.arange(n) < n_real_s1) / n_real_s1
        self.send(self._library_sn, self._table.library_n[cell_sn].astype(np.float32))
        self.send(self._share_sn, share_sn.astype(np.float32))
        if self._batch_sn is not None and self._table.batch_n is not None:
            self.send(self._batch_sn, self._table.batch_n[cell_sn])
        if not self._sent:
            self.send(self._row_sn, self._table.rows_of(cell_sn))
            return
        block = self._table.counts_of(cell_sn.ravel())
        self.send(self._row_sn, np.arange(cell_sn.size).reshape(cell_sn.shape))
        self.send(self._nonzeros.row_start, block.indptr.astype(np.int64))
        self.send(self._nonzeros.gene, block.indices.astype(np.int32))
        self.send(self._nonzeros.value, block.data)

    def send_in_turn(self) -> None:
        """Send from now on between steps, not beside them.

        After a recording that failed torch may take it to be still under way, and then frees nothing that two streams
        have used.
        """
        self._side = None

    def send(self, room: Tensor, values: np.ndarray) -> None:
        """Write values into the first rows of some room on the device, after what it has been told to do before."""
        arriving = torch.from_numpy(np.ascontiguousarray(values))
        if self._side is not None:
            # On a way of its own the copy runs beside the steps that are under way.
            with torch.cuda.stream(self._side):
                arriving = arriving.pin_memory().to(room.device, non_blocking=True)
            now = torch.cuda.current_stream(room.device)
            now.wait_stream(self._side)
            arriving.record_stream(now)
        room[: len(values)].copy_(arriving)

    def cells(self, at: Tensor) -> DenseCells:
        """The minibatch whose number the device knows, shape (1,), int64."""
        library_n, share_n = self._library_sn.index_select(0, at)[0], self._share_sn.index_select(0, at)[0]
        batch_n = None if self._batch_sn is None else self._batch_sn.index_select(0, at)[0]
        x_ng = dense_rows(self._nonzeros, self._row_sn.index_select(0, at)[0], self._n_genes, self._longest)
        return DenseCells(x_ng, library_n, share_n, batch_n)


def dense_rows(nonzeros: Nonzeros, row_n: Tensor, n_genes: int, longest: int) -> Tensor:
    """Some rows of sparse counts, dense, shape (n, g): operations of one shape, whatever the rows.

    Parameters
    ----------
    longest
        No row has more nonzeros.
    """
    start_n1 = nonzeros.row_start[row_n].unsqueeze(1)
    length_n1 = nonzeros.row_start[row_n + 1].unsqueeze(1) - start_n1
    j_j = torch.arange(longest, device=row_n.device)
    stored_nj = j_j < length_n1
    place_nj = (start_n1 + j_j).masked_fill(~stored_nj, 0)
    # Places without a count have columns of their own, behind the genes: nothing is written to twice.
    column_nj = torch.where(stored_nj, nonzeros.gene[place_nj].long(), n_genes + j_j)
    n_columns = n_genes + longest
    # As one long row: where results must repeat to the bit, torch scatters along several only by way of the host.
    flat_nj = column_nj + n_columns * torch.arange(len(row_n), device=row_n.device).unsqueeze(1)
    x_c = torch.zeros(len(row_n) * n_columns, dtype=nonzeros.value.dtype, device=row_n.device)
    x_nc = x_c.scatter(0, flat_nj.view(-1), nonzeros.value[place_nj].view(-1)).view(-1, n_columns)
    return x_nc[:, :n_genes]
