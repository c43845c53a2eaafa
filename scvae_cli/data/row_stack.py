"""Blocks of rows put below each other, without holding what they hold twice."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import scipy.sparse as sp

# Values in a piece: 64 MiB. So large an array the system gives and takes back by itself, and a part of it that nothing
# was written to takes no memory.
_PIECE_VALUES = 1 << 24


class RowStack:
    """A CSR matrix of float32 in the making.

    scipy's vstack needs all blocks beside the matrix it makes of them, and small blocks that were let go may stay with
    the process. Here the values wait in pieces, and each piece is let go as soon as it was copied.

    Parameters
    ----------
    n_columns
        Columns of every block.
    """

    def __init__(self, n_columns: int) -> None:
        self._n_columns = n_columns
        self._data, self._indices = _Pieces(np.float32), _Pieces(np.int32)
        self._row_lengths: list[np.ndarray] = []

    def add(self, block: sp.csr_matrix) -> None:
        """Put a block of rows below those already there."""
        self._data.append(block.data)
        self._indices.append(block.indices)
        self._row_lengths.append(np.diff(block.indptr))

    def matrix(self) -> sp.csr_matrix:
        """All the rows; the stack is empty afterwards."""
        lengths = np.concatenate([np.zeros(1, dtype=np.int64), *self._row_lengths])
        self._row_lengths.clear()
        # What scipy would choose: other types it would convert, and that is a copy.
        index = np.int32 if self._data.length <= np.iinfo(np.int32).max else np.int64
        indptr = np.cumsum(lengths, dtype=index)
        parts = (self._data.joined(np.float32), self._indices.joined(index), indptr)
        return sp.csr_matrix(parts, shape=(len(indptr) - 1, self._n_columns))


class _Pieces:
    """Values that come a few at a time."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._pieces: deque[np.ndarray] = deque()
        self.length = 0

    def append(self, values: np.ndarray) -> None:
        while len(values):
            filled = self.length % _PIECE_VALUES
            if filled == 0:
                self._pieces.append(np.empty(_PIECE_VALUES, dtype=self._dtype))
            part = values[: _PIECE_VALUES - filled]
            self._pieces[-1][filled : filled + len(part)] = part
            self.length += len(part)
            values = values[len(part) :]

    def joined(self, dtype: Any) -> np.ndarray:
        whole = np.empty(self.length, dtype=dtype)
        for start in range(0, self.length, _PIECE_VALUES):
            rest = whole[start : start + _PIECE_VALUES]
            rest[:] = self._pieces.popleft()[: len(rest)]
        self.length = 0
        return whole
