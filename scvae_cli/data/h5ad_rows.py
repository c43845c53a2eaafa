"""Reading a matrix of an .h5ad file in blocks of rows, whether it is stored as CSR, CSC or dense.

The size of a block does not grow with the size of the matrix. Only a very large CSC matrix is read in larger blocks,
because a CSC matrix must be read completely for every block of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from scvae_cli.data.h5ad_damage import check_stored, check_vector, text_attribute, whole_numbers
from scvae_cli.data.h5ad_links import refuse_outside
from scvae_cli.errors import DataError

# Approximate number of values in a block of rows (stored values, or all values of a dense matrix): 32 MiB of float32.
BLOCK_VALUES = 1 << 23
# A CSC matrix is read completely for every block of rows. A large CSC matrix is therefore read in larger blocks.
_MAX_PASSES = 16


def is_matrix(item: Any) -> bool:
    """Whether an element is a matrix. In a file without a matrix, the element X may exist and be null (empty)."""
    if isinstance(item, h5py.Group):
        return "indptr" in item
    return item.shape is not None and len(item.shape) == 2


def shape_of(item: h5py.Group | h5py.Dataset) -> tuple[int, ...]:
    """Return the shape of a matrix, which may have been written by anndata before 0.7.

    Raises a ValueError if a sparse matrix has no shape, or its shape is not two whole numbers.
    """
    if isinstance(item, h5py.Dataset):
        return tuple(item.shape or ())
    shape = np.asarray(item.attrs.get("shape", item.attrs.get("h5sparse_shape", ())))
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 0).any():
        raise ValueError(f"the shape of {item.name} is not two whole numbers")
    return tuple(int(n) for n in shape)


def row_blocks(item: h5py.Group | h5py.Dataset, title: str) -> Iterator[sp.csr_matrix]:
    """Read a matrix in an open file as consecutive CSR blocks of rows; `title` is the name of the file in messages.

    Raises a DataError if the element is not a matrix or does not contain numbers. Raises a ValueError if the arrays of
    a sparse matrix do not fit together. The caller must have compared the shape of the matrix with the numbers of cells
    and genes.
    """
    refuse_outside(item, title)
    if not is_matrix(item):
        raise DataError(f"{title}: {item.name} is not a matrix", "write the file with anndata")
    values = check_stored(item if isinstance(item, h5py.Dataset) else check_vector(item["data"]))
    if values.dtype.kind not in "fiub":
        raise DataError(f"{title}: {item.name} does not hold numbers", "store counts as integers or floats")
    if isinstance(item, h5py.Dataset):
        step = max(1, BLOCK_VALUES // max(1, item.shape[1]))
        for start in range(0, item.shape[0], step):
            yield sp.csr_matrix(plain_numbers(item[start : start + step]))
        return
    encoding = text_attribute(item, "encoding-type") or text_attribute(item, "h5sparse_format") or "csr"
    if not encoding.startswith(("csr", "csc")):
        raise DataError(f"{title}: {item.name} is stored as {encoding!r}", "store it as CSR, CSC or a dense array")
    yield from _blocks_of_columns(item) if encoding.startswith("csc") else _blocks_of_rows(item)


def _pointers(item: h5py.Group, n: int) -> np.ndarray:
    """Read and check the pointers (indptr) of a sparse matrix with n rows (CSR) or n columns (CSC); shape (n + 1,)."""
    stored = len(item["data"])
    check_vector(item["indices"], stored)
    indptr = whole_numbers(check_vector(item["indptr"], n + 1)[:], "indptr").astype(np.int64)
    if indptr[0] != 0 or indptr[-1] > stored or (np.diff(indptr) < 0).any():
        raise ValueError(f"the pointers (indptr) of {item.name} do not rise from 0 to the number of stored values")
    return indptr


def _indices(item: h5py.Group, values: slice, n: int) -> np.ndarray:
    """Read indices of columns (CSR) or rows (CSC), and raise a ValueError if an index is not in [0, n)."""
    indices = whole_numbers(item["indices"][values], "indices")
    # scipy's C code does not check indices, and scipy's check_format would read each index twice.
    if len(indices) and not (indices.min() >= 0 and indices.max() < n):
        raise ValueError(f"an index of {item.name} is out of range")
    return indices


def check_compressed(item: h5py.Group, n_lines: int, n_across: int) -> None:
    """Check the arrays of a sparse matrix (values, indices, pointers), because anndata loads them without checks.

    Parameters
    ----------
    n_lines, n_across
        Numbers of rows and columns (CSR), or of columns and rows (CSC).

    Raises
    ------
    ValueError
        If the values are not numbers, or if the pointers or indices do not fit the size of the matrix.
    """
    if check_vector(item["data"]).dtype.kind not in "fiub":
        raise ValueError(f"{item.name} does not hold numbers")
    for values in _segments(_pointers(item, n_lines)):
        _indices(item, values, n_across)


def _blocks_of_rows(item: h5py.Group) -> Iterator[sp.csr_matrix]:
    """Read a CSR matrix in blocks of rows."""
    n_rows = shape_of(item)[0]
    indptr = _pointers(item, n_rows)
    for start, end in _row_ranges(indptr, n_rows, BLOCK_VALUES):
        yield _csr_rows(item, indptr[start : end + 1])


def _csr_rows(item: h5py.Group, indptr: np.ndarray) -> sp.csr_matrix:
    values = slice(int(indptr[0]), int(indptr[-1]))
    n_columns = shape_of(item)[1]
    indices = _indices(item, values, n_columns)
    parts = (plain_numbers(item["data"][values]), indices, indptr - indptr[0])
    return sp.csr_matrix(parts, shape=(len(indptr) - 1, n_columns))


def _blocks_of_columns(item: h5py.Group) -> Iterator[sp.csr_matrix]:
    """Read a CSC matrix in blocks of rows.

    One pass over the matrix counts the values per row. Each block of rows needs another pass over the matrix.
    """
    n_rows, n_columns = shape_of(item)
    indptr = _pointers(item, n_columns)
    lengths = np.zeros(n_rows, dtype=np.int64)
    for values in _segments(indptr):
        lengths += np.bincount(_indices(item, values, n_rows), minlength=n_rows)
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
        row = whole_numbers(item["indices"][values], "indices")
        inside = (row >= start) & (row < end)
        after = filled + int(np.count_nonzero(inside))
        data[filled:after] = item["data"][values][inside]
        rows[filled:after] = row[inside] - start
        # The number of values that each column has in this segment, and the number of values in the requested rows.
        in_segment = np.diff(np.clip(indptr, values.start, values.stop))
        lengths += np.bincount(np.repeat(columns, in_segment)[inside], minlength=len(columns))
        filled = after
    parts = (data, rows, np.concatenate([[0], np.cumsum(lengths)]))
    return sp.csc_matrix(parts, shape=(end - start, len(columns))).tocsr()


def _segments(indptr: np.ndarray) -> Iterator[slice]:
    """Split the stored values of a sparse matrix into consecutive slices of at most `BLOCK_VALUES` values."""
    stored = int(indptr[-1])
    return (slice(start, min(start + BLOCK_VALUES, stored)) for start in range(0, stored, BLOCK_VALUES))


def _row_ranges(indptr: np.ndarray, n_rows: int, n_values: int) -> Iterator[tuple[int, int]]:
    """Split the rows into consecutive ranges of at most `n_values` stored values.

    A row with more than `n_values` stored values is a range by itself.
    """
    start = 0
    while start < n_rows:
        end = int(np.searchsorted(indptr, indptr[start] + n_values, side="right")) - 1
        end = min(max(end, start + 1), n_rows)
        yield start, end
        start = end


def plain_numbers(values: np.ndarray) -> np.ndarray:
    """Convert values to a type with which scipy's sparse matrices can compute.

    Values of float16 or bool are converted, and so are numbers in the byte order of another machine.
    """
    if values.dtype == np.float16:
        return values.astype(np.float32)
    if values.dtype == bool:
        return values.astype(np.uint8)
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
