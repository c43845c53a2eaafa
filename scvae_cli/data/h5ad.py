"""Reading an .h5ad file, one element at a time.

Only what a command needs is read: names, one column of obs, one matrix in blocks of rows. A file is opened for each
read and closed again, so no lock outlives it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from scvae_cli.data.h5ad_edit import edit_h5ad
from scvae_cli.data.slots import Slot
from scvae_cli.errors import DataError

# A block of rows is about this many stored (or, in a dense matrix, all) values: 64 MiB of float32.
_BLOCK_VALUES = 1 << 24


class H5adFile:
    """The cells of an .h5ad file (a `CellStore`).

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    DataError
        When it is missing, a folder, not HDF5, truncated, or not an AnnData.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            for group in ("obs", "var"):
                if group not in file:
                    raise DataError(f"{path} is HDF5, but not an AnnData: it has no {group}", "write it with anndata")

    @property
    def title(self) -> str:
        """The file's name."""
        return self.path.name

    @cached_property
    def cell_names(self) -> np.ndarray:
        """obs_names."""
        return self._index("obs")

    @cached_property
    def gene_names(self) -> np.ndarray:
        """var_names."""
        return self._index("var")

    @cached_property
    def obs_keys(self) -> list[str]:
        """Columns of obs."""
        with self._open() as file:
            return _columns(file["obs"])

    @cached_property
    def layer_keys(self) -> list[str]:
        """Names of the layers."""
        return self.existing("layers")

    @cached_property
    def matrix_names(self) -> list[str]:
        """Matrices that could hold counts, in the order they are tried."""
        with self._open() as file:
            names = ['layers["counts"]'] if "counts" in file.get("layers", {}) else []
            names += ["X"] if "X" in file and _is_matrix(file["X"]) else []
            names += ["raw"] if "raw" in file and "X" in file["raw"] else []
        return names

    def obs_column(self, key: str) -> np.ndarray:
        """One column of obs as n values."""
        from anndata.io import read_elem

        with self._open() as file:
            obs = file["obs"]
            # Before anndata 0.7 the frame was one compound array, and until 0.8 categories stood in a group apart:
            # a column alone would then be read as its codes.
            legacy = isinstance(obs, h5py.Dataset) or "__categories" in obs
            column = read_elem(obs)[key] if legacy else read_elem(obs[key])
        return np.asarray(column, dtype=object) if getattr(column, "dtype", None) == "category" else np.asarray(column)

    def matrix_genes(self, name: str) -> np.ndarray:
        """Gene names of a matrix's columns."""
        return self._index("raw/var") if name == "raw" else self.gene_names

    def row_blocks(self, name: str) -> Iterator[sp.csr_matrix]:
        """A matrix as consecutive CSR blocks of rows."""
        with self._open() as file:
            yield from _row_blocks(file[_location(name)], self.title)

    def existing(self, group: str) -> list[str]:
        """Keys of one AnnData mapping; for "uns" the paths of all that is in it."""
        with self._open() as file:
            if group in ("obs", "var"):
                return _columns(file[group])
            if group not in file:
                return []
            if group != "uns":
                return list(file[group])
            paths: list[str] = []
            file["uns"].visit(paths.append)
            return paths

    def uns_text(self, key: str) -> str | None:
        """The string at `uns[key]`, or None."""
        with self._open() as file:
            item = file.get(f"uns/{key}")
            if not isinstance(item, h5py.Dataset) or item.shape != () or h5py.check_string_dtype(item.dtype) is None:
                return None
            value: str = item.asstr()[()]
            return value

    def write(self, slots: Sequence[Slot], *, output: Path | None, force: bool) -> None:
        """Put results into the file (or a copy of it at `output`), all or nothing."""
        edit_h5ad(self.path, output or self.path, slots, force=force)

    def _index(self, location: str) -> np.ndarray:
        from anndata.io import read_elem

        with self._open() as file:
            frame = file[location]
            if isinstance(frame, h5py.Dataset):
                names = read_elem(frame).index
            else:
                key = frame.attrs.get("_index", "index" if "index" in frame else "_index")
                names = read_elem(frame[key])
        return np.asarray([n.decode() if isinstance(n, bytes) else str(n) for n in np.asarray(names)], dtype=object)

    @contextlib.contextmanager
    def _open(self) -> Iterator[h5py.File]:
        if not self.path.exists():
            raise DataError(f"{self.path} does not exist", "check the path")
        if self.path.is_dir():
            raise DataError(f"{self.path} is a folder, not an .h5ad file", "name the .h5ad file")
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            raise DataError(*_why_not_open(self.path, error)) from error
        with file:
            try:
                yield file
            except (OSError, KeyError) as error:
                # HDF5 reports a damaged chunk or header only when it is touched.
                reason = str(error).splitlines()[0]
                raise DataError(f"{self.path} is damaged: {reason}", "copy or download it again") from error


def _why_not_open(path: Path, error: OSError) -> tuple[str, str]:
    text = str(error)
    if isinstance(error, PermissionError) or "Permission denied" in text:
        return f"{path} may not be read: permission denied", "check the file's permissions"
    if "truncated" in text or "eof" in text.lower():
        return f"{path} is truncated", "copy or download it again"
    if path.stat().st_size == 0:
        return f"{path} is empty (0 bytes)", "copy or download it again"
    if "signature" in text:
        return f"{path} is not HDF5, so it is not an .h5ad file", "write it with adata.write_h5ad(...)"
    if "lock" in text:
        return f"{path} is open for writing in another program", "close it there and run again"
    return f"{path} cannot be opened: {text.splitlines()[0]}", "check the file"


def _columns(frame: h5py.Group | h5py.Dataset) -> list[str]:
    if isinstance(frame, h5py.Dataset):
        return list(frame.dtype.names or ())[1:]
    index = frame.attrs.get("_index", "_index")
    return [key for key in frame if key not in (index, "__categories")]


def _location(name: str) -> str:
    if name == "raw":
        return "raw/X"
    return f"layers/{name[8:-2]}" if name.startswith('layers["') else name


def _is_matrix(item: Any) -> bool:
    """Whether an element is a matrix at all: X may be null."""
    if isinstance(item, h5py.Group):
        return "indptr" in item
    return item.shape is not None and len(item.shape) == 2


def _row_blocks(item: h5py.Group | h5py.Dataset, title: str) -> Iterator[sp.csr_matrix]:
    if not _is_matrix(item):
        raise DataError(f"{title}: {item.name} is not a matrix", "write it with anndata")
    kind = item.dtype.kind if isinstance(item, h5py.Dataset) else item["data"].dtype.kind
    if kind not in "fiub":
        raise DataError(f"{title}: {item.name} does not hold numbers", "counts are integers or floats")
    if isinstance(item, h5py.Dataset):
        step = max(1, _BLOCK_VALUES // max(1, item.shape[1]))
        for start in range(0, item.shape[0], step):
            yield sp.csr_matrix(_plain(item[start : start + step]))
        return
    shape = tuple(int(n) for n in item.attrs["shape" if "shape" in item.attrs else "h5sparse_shape"])
    encoding = str(item.attrs.get("encoding-type", item.attrs.get("h5sparse_format", "csr")))
    if encoding.startswith("csc"):
        # Columns are stored together, so rows can only be had from the whole of it.
        whole = (_plain(item["data"][:]), item["indices"][:], item["indptr"][:])
        yield sp.csc_matrix(whole, shape=shape).tocsr()
        return
    indptr = item["indptr"][:].astype(np.int64)
    start = 0
    while start < shape[0]:
        end = int(np.searchsorted(indptr, indptr[start] + _BLOCK_VALUES, side="right")) - 1
        end = min(max(end, start + 1), shape[0])
        values = slice(int(indptr[start]), int(indptr[end]))
        parts = (_plain(item["data"][values]), item["indices"][values], indptr[start : end + 1] - indptr[start])
        yield sp.csr_matrix(parts, shape=(end - start, shape[1]))
        start = end


def _plain(values: np.ndarray) -> np.ndarray:
    """float16 and bool are storage formats; scipy's sparse matrices compute with neither."""
    if values.dtype == np.float16:
        return values.astype(np.float32)
    return values.astype(np.uint8) if values.dtype == bool else values
