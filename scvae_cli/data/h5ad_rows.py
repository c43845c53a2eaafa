"""Reading a matrix of an .h5ad file in blocks of rows, whether it is stored as CSR, CSC or dense.

The size of a block does not grow with the size of the matrix. Only the blocks of a very large CSC matrix are larger,
because the whole matrix is read again for every block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from scvae_cli.data.h5ad_links import refuse_outside
from scvae_cli.errors import DataError

# Approximate number of values in a block of rows (stored values, or all values of a dense matrix): 32 MiB of float32.
BLOCK_VALUES = 1 << 23
# A CSC matrix is read completely for every block of rows. A large matrix therefore gets larger blocks.
_MAX_PASSES = 16


def is_matrix(item: Any) -> bool:
    """Whether an element is a matrix. The element X of a file without a matrix may be null."""
    if isinstance(item, h5py.Group):
        return "indptr" in item
    return item.shape is not None and len(item.shape) == 2


def shape_of(item: h5py.Group | h5py.Dataset) -> tuple[int, ...]:
    """Return the shape of a matrix; matrices from before anndata 0.7 are supported."""
    if isinstance(item, h5py.Dataset):
        return tuple(item.shape or ())
    return tuple(int(n) for n in item.attrs.get("shape", item.attrs.get("h5sparse_shape", ())))


def row_blocks(item: h5py.Group | h5py.Dataset, title: str) -> Iterator[sp.csr_matrix]:
    """Read a matrix in an open file as consecutive CSR blocks of rows; `title` is the name of the file in messages.

    Raises a DataError if the element is not a matrix, does not contain numbers, or has inconsistent indices.
    """
    refuse_outside(item, title)
    if not is_matrix(item):
        raise DataError(f"{title}: {item.name} is not a matrix", "write the file with anndata")
    kind = item.dtype.kind if isinstance(item, h5py.Dataset) else item["data"].dtype.kind
    if kind not in "fiub":
        raise DataError(f"{title}: {item.name} does not hold numbers", "store counts as integers or floats")
    if isinstance(item, h5py.Dataset):
        step = max(1, BLOCK_VALUES // max(1, item.shape[1]))
        for start in range(0, item.shape[0], step):
            yield sp.csr_matrix(plain_numbers(item[start : start + step]))
        return
    encoding = str(item.attrs.get("encoding-type", item.attrs.get("h5sparse_format", "csr")))
    read = _blocks_of_columns if encoding.startswith("csc") else _blocks_of_rows
    try:
        yield from read(item)
    except ValueError as error:
        raise DataError(f"{title} is damaged: {error}", "copy or download it again") from error


def _blocks_of_rows(item: h5py.Group) -> Iterator[sp.csr_matrix]:
    """Read a CSR matrix in blocks of rows."""
    indptr = item["indptr"][:].astype(np.int64)
    for start, end in _row_ranges(indptr, shape_of(item)[0], BLOCK_VALUES):
        yield _csr_rows(item, indptr[start : end + 1])


def _csr_rows(item: h5py.Group, indptr: np.ndarray) -> sp.csr_matrix:
    values = slice(int(indptr[0]), int(indptr[-1]))
    parts = (plain_numbers(item["data"][values]), item["indices"][values], indptr - indptr[0])
    return _sound(sp.csr_matrix(parts, shape=(len(indptr) - 1, shape_of(item)[1])))


def _blocks_of_columns(item: h5py.Group) -> Iterator[sp.csr_matrix]:
    """Read a CSC matrix in blocks of rows.

    One pass over the matrix counts the values per row. Each block then needs another pass.
    """
    n_rows, n_columns = shape_of(item)
    indptr = item["indptr"][:].astype(np.int64)
    stored = min(len(item["indices"]), len(item["data"]))
    if len(indptr) != n_columns + 1 or indptr[0] != 0 or indptr[-1] > stored or (np.diff(indptr) < 0).any():
        raise ValueError(f"the column pointers of {item.name} do not fit its columns")
    lengths = np.zeros(n_rows, dtype=np.int64)
    for values in _segments(indptr):
        rows = item["indices"][values]
        if rows.min() < 0 or rows.max() >= n_rows:
            raise ValueError(f"a row index of {item.name} is out of range")
        lengths += np.bincount(rows, minlength=n_rows)
    row_ends = np.concatenate([[0], np.cumsum(lengths)])
    for start, end in _row_ranges(row_ends, n_rows, max(BLOCK_VALUES, int(indptr[-1]) // _MAX_PASSES)):
        yield _csc_rows(item, indptr, start, end, int(row_ends[end] - row_ends[start]))


def _csc_rows(item: h5py.Group, indptr: np.ndarray, start: int, end: int, stored: int) -> sp.csr_matrix:
    """Read the rows from `start` to `end` of a CSC matrix; `stored` is the number of values in these rows."""
    data, rows = np.empty(stored, dtype=plain_numbers(item["data"][:0]).dtype), np.empty(stored, dtype=np.int32)
    columns = np.arange(len(indptr) - 1, dtype=np.int32)
    lengths = np.zeros(len(columns), dtype=np.int64)
    filled = 0
    for values in _segments(indptr):
        row = item["indices"][values]
        inside = (row >= start) & (row < end)
        after = filled + int(np.count_nonzero(inside))
        data[filled:after] = item["data"][values][inside]
        rows[filled:after] = row[inside] - start
        # The number of values of each column in this segment, and the number of those in the requested rows.
        in_segment = np.diff(np.clip(indptr, values.start, values.stop))
        lengths += np.bincount(np.repeat(columns, in_segment)[inside], minlength=len(columns))
        filled = after
    parts = (data, rows, np.concatenate([[0], np.cumsum(lengths)]))
    return _sound(sp.csc_matrix(parts, shape=(end - start, len(columns)))).tocsr()


def _segments(indptr: np.ndarray) -> Iterator[slice]:
    """Split the stored values into consecutive segments."""
    stored = int(indptr[-1])
    return (slice(start, min(start + BLOCK_VALUES, stored)) for start in range(0, stored, BLOCK_VALUES))


def _row_ranges(indptr: np.ndarray, n_rows: int, n_values: int) -> Iterator[tuple[int, int]]:
    """Split the rows into consecutive ranges of at most `n_values` stored values; a row with more is its own range."""
    start = 0
    while start < n_rows:
        end = int(np.searchsorted(indptr, indptr[start] + n_values, side="right")) - 1
        end = min(max(end, start + 1), n_rows)
        yield start, end
        start = end


def _sound(matrix: Any) -> Any:
    """Check the indices of a matrix, because scipy's C code does not check them, and return the matrix."""
    matrix.check_format()
    return matrix


def plain_numbers(values: np.ndarray) -> np.ndarray:
    """Convert values to a type with which scipy's sparse matrices can compute.

    Values of float16 or bool are converted, and so are numbers in the byte order of another machine.
    """
    if values.dtype == np.float16:
        return values.astype(np.float32)
    if values.dtype == bool:
        return values.astype(np.uint8)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
