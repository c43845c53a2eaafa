"""Concatenating blocks of rows without having all data in memory twice."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import scipy.sparse as sp

# Number of values in each array of `_Pieces`: 64 MiB. The operating system allocates and frees arrays of this size
# directly, and a part that has not been written to needs no memory.
PIECE_VALUES = 1 << 24


class RowStack:
    """A CSR matrix of float32 that is assembled from blocks of rows.

    scipy's vstack needs memory for all blocks and for the result. With vstack, the process may also keep the memory of
    small blocks that were freed. `RowStack` stores the values in large arrays, and each array is freed as soon as it
    has been copied into the result.
    """

    def __init__(self, n_columns: int) -> None:
        self._n_columns = n_columns
        self._data, self._indices = _Pieces(np.float32), _Pieces(np.int32)
        self._row_lengths: list[np.ndarray] = []

    def add(self, block: sp.csr_matrix) -> None:
        """Append a block of rows."""
        self._data.append(block.data)
        self._indices.append(block.indices)
        self._row_lengths.append(np.diff(block.indptr))

    def matrix(self) -> sp.csr_matrix:
        """Return all rows as one matrix; the stack is empty afterwards."""
        lengths = np.concatenate([np.zeros(1, dtype=np.int64), *self._row_lengths])
        self._row_lengths.clear()
        # Indices have the type that scipy would choose, because scipy would copy indices of any other type.
        index = np.int32 if self._data.length <= np.iinfo(np.int32).max else np.int64
        indptr = np.cumsum(lengths, dtype=index)
        parts = (self._data.joined(np.float32), self._indices.joined(index), indptr)
        return sp.csr_matrix(parts, shape=(len(indptr) - 1, self._n_columns))


class _Pieces:
    """An array to which values are appended in small parts."""

    def __init__(self, dtype: Any) -> None:
        self._dtype = dtype
        self._pieces: deque[np.ndarray] = deque()
        self.length = 0

    def append(self, values: np.ndarray) -> None:
        while len(values):
            filled = self.length % PIECE_VALUES
            if filled == 0:
                self._pieces.append(np.empty(PIECE_VALUES, dtype=self._dtype))
            part = values[: PIECE_VALUES - filled]
            self._pieces[-1][filled : filled + len(part)] = part
            self.length += len(part)
            values = values[len(part) :]

    def joined(self, dtype: Any) -> np.ndarray:
        whole = np.empty(self.length, dtype=dtype)
        for start in range(0, self.length, PIECE_VALUES):
            rest = whole[start : start + PIECE_VALUES]
            rest[:] = self._pieces.popleft()[: len(rest)]
        self.length = 0
        return whole
