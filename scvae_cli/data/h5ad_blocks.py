"""Writing matrices in blocks of rows, in the encodings "csr_matrix" 0.1.0 and "array" 0.2.0 of anndata."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

# Every HDF5 build supports gzip, but not lzf. Level 1 is fast: most counts need one byte, and `shuffle` puts the other
# bytes, which are zero, next to each other.
FILTERS: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
# Number of values in a chunk of a sparse matrix. A chunk contains a few hundred cells, so that reading single cells
# remains fast.
_SPARSE_CHUNK = 1 << 16
_DENSE_CHUNK_BYTES = 1 << 20


def write_sparse(parent: h5py.Group, key: str, blocks: Iterable[sp.csr_matrix], shape: tuple[int, int]) -> None:
    """Write consecutive CSR blocks as one CSR matrix; the first block determines the number type."""
    group = parent.create_group(key)
    group.attrs["encoding-type"] = "csr_matrix"
    group.attrs["encoding-version"] = "0.1.0"
    group.attrs["shape"] = np.array(shape, np.int64)
    growing = {"shape": (0,), "maxshape": (None,), "chunks": (_SPARSE_CHUNK,), **FILTERS}
    indices = group.create_dataset("indices", dtype=np.int32, **growing)
    data = None
    indptr = np.zeros(shape[0] + 1, np.int64)
    row = stored = 0
    for block in blocks:
        if data is None:
            data = group.create_dataset("data", dtype=block.dtype, **growing)
        after = stored + block.nnz
        for dataset, values in ((data, block.data), (indices, block.indices)):
            dataset.resize((after,))
            dataset[stored:after] = values
        indptr[row + 1 : row + 1 + block.shape[0]] = stored + block.indptr[1:]
        row, stored = row + block.shape[0], after
    assert row == shape[0], "the blocks must cover every row"
    group.create_dataset("indptr", data=indptr, chunks=(min(indptr.size, _SPARSE_CHUNK),), **FILTERS)


def write_dense(
    parent: h5py.Group, key: str, blocks: Iterable[np.ndarray], shape: tuple[int, int], *, compress: bool
) -> None:
    """Write consecutive dense blocks as one array.

    Compression is useful if some columns are constant, for example NaN in every row. Compression makes an array of
    expected counts smaller by only a seventh, and writing takes five times as long.
    """
    dataset = None
    row = 0
    for block in blocks:
        if dataset is None:
            chunk_rows = max(1, min(shape[0], _DENSE_CHUNK_BYTES // (shape[1] * block.dtype.itemsize)))
            filters = FILTERS if compress else {}
            dataset = parent.create_dataset(
                key, shape=shape, dtype=block.dtype, chunks=(chunk_rows, shape[1]), **filters
            )
            dataset.attrs["encoding-type"] = "array"
            dataset.attrs["encoding-version"] = "0.2.0"
        dataset[row : row + len(block)] = block
        row += len(block)
    assert row == shape[0], "the blocks must cover every row"
