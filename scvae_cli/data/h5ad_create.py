"""Writing a new .h5ad in blocks of rows, so that the matrix never has to fit in memory.

The layout is anndata's own (its "csr_matrix" and "array" encodings, version 0.1.0 and 0.2.0), so anndata, scanpy
and R read the file as if anndata had written it.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvae_cli.data.atomic import replacing
from scvae_cli.data.h5ad_edit import check_new_file

Block = TypeVar("Block")

# gzip is in every HDF5 build, unlike lzf; after the byte shuffle level 1 is quick, since counts are mostly one byte.
_FILTERS: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
# Values in a chunk of a sparse matrix: a few hundred cells, so that reading cells at random stays cheap.
_SPARSE_CHUNK = 1 << 16
_DENSE_CHUNK_BYTES = 1 << 20


def create_h5ad(
    path: Path,
    *,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    blocks: Iterable[sp.csr_matrix],
    uns: Mapping[str, Any] | None = None,
    varm: Mapping[str, Any] | None = None,
    layer_blocks: Mapping[str, Iterable[np.ndarray]] | None = None,
    force: bool = False,
) -> None:
    """Write a new .h5ad from blocks of rows.

    Parameters
    ----------
    path
        The new file, ending in .h5ad. It appears when it is complete; whatever happens before, an old file of that
        name stays as it was and no other file is left behind.
    obs, var
        A row per cell, a row per gene.
    blocks
        Consecutive CSR blocks of rows, which together are X, n cells × g genes; each is walked through once.
    uns, varm
        As in an AnnData: numeric arrays, categoricals, strings and dictionaries of them.
    layer_blocks
        Name → consecutive dense blocks of rows, n × g together, walked through after X.
    force
        Replace an existing file.

    Raises
    ------
    DataError
        When the file exists and `force` is not set, its name does not end in .h5ad, its folder is missing or not
        writable, or there is no room.
    """
    from anndata.io import write_elem

    check_new_file(path, force=force)
    with replacing(path) as sibling, _new_file(sibling) as (file, patient):
        file.attrs["encoding-type"] = "anndata"
        file.attrs["encoding-version"] = "0.1.0"
        small = _FILTERS | {"compression_opts": 4}
        write_elem(file, "obs", obs, dataset_kwargs=small)
        write_elem(file, "var", var, dataset_kwargs=small)
        write_elem(file, "uns", dict(uns or {}))
        write_elem(file, "varm", dict(varm or {}), dataset_kwargs=small)
        for group in ("obsm", "obsp", "varp", "layers"):
            write_elem(file, group, {})
        shape = (len(obs), len(var))
        _write_sparse(file, "X", patient.watch(blocks), shape)
        for name, dense_blocks in (layer_blocks or {}).items():
            _write_dense(file["layers"], name, patient.watch(dense_blocks), shape)


class _Patient(io.FileIO):
    """A file that never fails in HDF5's hands, and remembers that it should have.

    HDF5 does not survive a failed write: closing its objects fails in turn, with a page of messages and, at worst, a
    segmentation fault. So what finds no room is kept in memory (the rest of one block and HDF5's own caches), HDF5
    closes in good order, and `error` is raised by who wrote.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+b")
        self.error: OSError | None = None
        self._late: list[tuple[int, bytes]] = []

    def write(self, data: Any) -> int:
        """Write all of `data` here, or keep it."""
        view = memoryview(data).cast("B")
        start, done = self.tell(), 0
        while self.error is None and done < len(view):
            try:
                done += super().write(view[done:]) or 0
            except OSError as error:
                self.error = error
        if done < len(view):
            self._late.append((start, bytes(view)))
            self.seek(start + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what was written, kept or not."""
        view = memoryview(buffer).cast("B")
        start, done = self.tell(), 0
        while done < len(view) and (got := super().readinto(view[done:])):
            done += got
        view[done:] = bytes(len(view) - done)
        for at, kept in self._late:
            low, high = max(at, start), min(at + len(kept), start + len(view))
            if low < high:
                view[low - start : high - start] = kept[low - at : high - at]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or remember why it could not be set."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def check(self) -> None:
        """Raise what HDF5 was spared."""
        if self.error is not None:
            raise self.error

    def watch(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Pass blocks on until there is no room for them."""
        for block in blocks:
            self.check()
            yield block


@contextmanager
def _new_file(path: Path) -> Iterator[tuple[h5py.File, _Patient]]:
    with _Patient(path) as patient:
        with h5py.File(patient, "w") as file:
            yield file, patient
        patient.check()


def _write_sparse(parent: h5py.Group, key: str, blocks: Iterable[sp.csr_matrix], shape: tuple[int, int]) -> None:
    group = parent.create_group(key)
    group.attrs["encoding-type"] = "csr_matrix"
    group.attrs["encoding-version"] = "0.1.0"
    group.attrs["shape"] = np.array(shape, np.int64)
    growing = {"shape": (0,), "maxshape": (None,), "chunks": (_SPARSE_CHUNK,), **_FILTERS}
    indices = group.create_dataset("indices", dtype=np.int32, **growing)
    data = None
    indptr = np.zeros(shape[0] + 1, np.int64)
    row = stored = 0
    for block in blocks:
        if data is None:  # the first block says which type the counts have
            data = group.create_dataset("data", dtype=block.dtype, **growing)
        after = stored + block.nnz
        for dataset, values in ((data, block.data), (indices, block.indices)):
            dataset.resize((after,))
            dataset[stored:after] = values
        indptr[row + 1 : row + 1 + block.shape[0]] = stored + block.indptr[1:]
        row, stored = row + block.shape[0], after
    assert row == shape[0], "the blocks must cover every row of obs"
    group.create_dataset("indptr", data=indptr, chunks=(min(indptr.size, _SPARSE_CHUNK),), **_FILTERS)


def _write_dense(parent: h5py.Group, key: str, blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    dataset = None
    row = 0
    for block in blocks:
        if dataset is None:
            chunk_rows = max(1, min(shape[0], _DENSE_CHUNK_BYTES // (shape[1] * block.dtype.itemsize)))
            # Not compressed: real-valued means shrink by a seventh and take five times as long to write.
            dataset = parent.create_dataset(key, shape=shape, dtype=block.dtype, chunks=(chunk_rows, shape[1]))
            dataset.attrs["encoding-type"] = "array"
            dataset.attrs["encoding-version"] = "0.2.0"
        dataset[row : row + len(block)] = block
        row += len(block)
    assert row == shape[0], "the blocks of a layer must cover every row of obs"
