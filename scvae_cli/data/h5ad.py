"""Reading an .h5ad file, one element at a time.

Only the elements that a command needs are read, for example a column of obs, or a matrix in blocks of rows. The file is
opened for each read and closed afterwards, so that other programs can open it between two reads.
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

from scvae_cli.data.atomic import check_new_file, check_writable, fingerprint
from scvae_cli.data.h5ad_edit import edit_h5ad
from scvae_cli.data.h5ad_rows import is_matrix, row_blocks, shape_of
from scvae_cli.data.hdf5_filters import load_filters, refuse_missing_filter
from scvae_cli.data.labels import values_of
from scvae_cli.data.slots import Slot
from scvae_cli.data.store import category_labels, category_order, refuse_twins
from scvae_cli.errors import DataError

# The matrix and the genes of raw before anndata 0.7.
_RAW_BEFORE_07 = ("raw.X", "raw.var")


class H5adFile:
    """The cells of an .h5ad file (a `CellStore`).

    Raises a DataError if the file does not exist, is a folder, is not HDF5, is truncated, or is not an AnnData.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        load_filters()
        with self._open() as file:
            for group in ("obs", "var"):
                if group not in file:
                    raise DataError(f"{path} is HDF5, but not an AnnData: it has no {group}", "write it with anndata")
        self._read_as = fingerprint(path)

    @property
    def title(self) -> str:
        return self.path.name

    @cached_property
    def cell_names(self) -> np.ndarray:
        return self._index("obs")

    @cached_property
    def gene_names(self) -> np.ndarray:
        return self._index("var")

    @cached_property
    def obs_keys(self) -> list[str]:
        with self._open() as file:
            return _columns(file["obs"])

    @cached_property
    def layer_keys(self) -> list[str]:
        return self.existing("layers")

    @cached_property
    def matrix_names(self) -> list[str]:
        with self._open() as file:
            names = ['layers["counts"]'] if "counts" in file.get("layers", {}) else []
            names += ["X"] if "X" in file and is_matrix(file["X"]) else []
            names += ["raw"] if _RAW_BEFORE_07[0] in file or _has_raw(file) else []
        return names

    def obs_column(self, key: str) -> np.ndarray:
        return values_of(self._column("obs", key))

    def var_column(self, key: str) -> np.ndarray:
        return values_of(self._column("var", key))

    def obs_order(self, key: str) -> list[str] | None:
        return category_order(self._column("obs", key))

    def obs_categories(self, key: str) -> list[str] | None:
        return category_labels(self._column("obs", key))

    def _column(self, group: str, key: str) -> Any:
        with self._open() as file:
            frame = file[group]
            refuse_twins(self.title, group, _columns(frame), key)
            if isinstance(frame, h5py.Dataset):
                return _field(frame, key, file.get(f"uns/{key}_categories"))
            categories = frame.get(f"__categories/{key}")
            return self._element(frame[key]) if categories is None else self._categorical(frame[key], categories)

    def obsm(self, key: str) -> np.ndarray | None:
        with self._open() as file:
            element = file.get(f"obsm/{key}")
            return np.asarray(element) if isinstance(element, h5py.Dataset) else None

    def matrix_genes(self, name: str) -> np.ndarray:
        if name != "raw":
            return self.gene_names
        with self._open() as file:
            location = _RAW_BEFORE_07[1] if _RAW_BEFORE_07[0] in file else "raw/var"
        return self._index(location)

    def row_blocks(self, name: str) -> Iterator[sp.csr_matrix]:
        with self._open() as file:
            item = file[_location(name, file)]
            expected = (len(self.cell_names), len(self.matrix_genes(name)))
            if shape_of(item) != expected:
                raise DataError(
                    f"{self.title}: {name} has shape {shape_of(item)}, but there are {expected[0]} cells and "
                    f"{expected[1]} genes", "write the file again with anndata"
                )  # fmt: skip
            yield from row_blocks(item, self.title)

    def existing(self, group: str) -> list[str]:
        with self._open() as file:
            if group in ("obs", "var"):
                return _columns(file[group])
            if group not in file:
                return []
            if isinstance(file[group], h5py.Dataset):
                return list(file[group].dtype.names or ())
            if group != "uns":
                return list(file[group])
            paths: list[str] = []
            file["uns"].visit(paths.append)
            return paths

    def uns_text(self, key: str) -> str | None:
        with self._open() as file:
            item = file.get(f"uns/{key}")
            if not isinstance(item, h5py.Dataset) or item.shape != () or h5py.check_string_dtype(item.dtype) is None:
                return None
            value: str = item.asstr()[()]
            return value

    def check_destination(self, paths: Sequence[str], *, output: Path | None, force: bool) -> None:
        """Check before a computation that the file can be written, and that its format is not too old for additions."""
        target = output or self.path
        if target.resolve() != self.path.resolve():
            check_new_file(target, force=force)
        check_writable(target)
        with self._open() as file:
            for group in sorted({path.split("/")[0] for path in paths}):
                if isinstance(file.get(group), h5py.Dataset):
                    raise DataError(
                        f"{self.path}: {group} is in the format of anndata before 0.7, to which nothing can be added",
                        "convert it once: anndata.read_h5ad(FILE).write_h5ad(FILE)",
                    )

    def write(self, slots: Sequence[Slot], *, output: Path | None, force: bool) -> None:
        """Write results to the file (or to a copy of it at `output`), either all or none."""
        self.check_destination([slot.path for slot in slots], output=output, force=force)
        edit_h5ad(self.path, output or self.path, slots, read_as=self._read_as)
        self._read_as = fingerprint(self.path)

    def _index(self, location: str) -> np.ndarray:
        with self._open() as file:
            frame = file[location]
            if isinstance(frame, h5py.Dataset):
                names = _field(frame, frame.dtype.names[0])
            else:
                key = frame.attrs.get("_index", "index" if "index" in frame else "_index")
                names = self._strings(frame[key])
        return np.asarray([n.decode() if isinstance(n, bytes) else str(n) for n in np.asarray(names)], dtype=object)

    def _strings(self, item: h5py.Group | h5py.Dataset) -> Any:
        """Read names; names in the usual format are read without anndata, because anndata is slow to import."""
        if isinstance(item, h5py.Dataset) and item.attrs.get("encoding-type") == "string-array":
            kind = h5py.check_string_dtype(item.dtype)
            if kind is not None and kind.length is None:
                with contextlib.suppress(UnicodeDecodeError):  # anndata explains the error below
                    return item.asstr()[()]
        return self._element(item)

    def _element(self, item: h5py.Group | h5py.Dataset) -> Any:
        """Read an element with anndata."""
        from anndata.io import read_elem

        try:
            return read_elem(item)
        except Exception as error:  # anndata raises various errors for unknown or damaged encodings
            refuse_missing_filter(item, str(self.path))
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"{self.path}: {item.name} cannot be read: {reason}", "update anndata, or write the file again"
            ) from error

    def _categorical(self, codes: h5py.Dataset, categories: h5py.Dataset) -> Any:
        """Read a categorical column as anndata before 0.8 wrote it: the codes and the categories apart.

        anndata itself can only read all columns of such a data frame at once.
        """
        import pandas as pd

        ordered = bool(categories.attrs.get("ordered", False))
        try:
            return pd.Categorical.from_codes(self._element(codes), self._element(categories), ordered=ordered)
        except ValueError as error:
            raise DataError(f"{self.path}: {codes.name} cannot be read: {error}", "write the file again") from error

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
                refuse_missing_filter(file, str(self.path))
                # HDF5 reports a damaged part of a file only when this part is read.
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
        return f"{path} is open for writing in another program", "close it there and run the command again"
    return f"{path} cannot be opened: {text.splitlines()[0]}", "check the file"


def _columns(frame: h5py.Group | h5py.Dataset) -> list[str]:
    if isinstance(frame, h5py.Dataset):
        return list(frame.dtype.names or ())[1:]
    ordered = frame.attrs.get("column-order")
    if ordered is not None and np.asarray(ordered).dtype.kind in "OSU":
        # The name of a column may contain "/", which HDF5 stores as nested groups.
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in np.asarray(ordered).ravel()]
        return [name for name in names if not name.startswith("/") and name in frame]
    index = frame.attrs.get("_index", "_index")
    return [key for key in frame if key not in (index, "__categories")]


def _has_raw(file: h5py.File) -> bool:
    # A missing raw may be stored as null.
    return isinstance(file.get("raw"), h5py.Group) and "X" in file["raw"]


def _location(name: str, file: h5py.File) -> str:
    if name == "raw":
        return _RAW_BEFORE_07[0] if _RAW_BEFORE_07[0] in file else "raw/X"
    return f"layers/{name[8:-2]}" if name.startswith('layers["') else name


def _field(frame: h5py.Dataset, key: str, categories: h5py.Dataset | None = None) -> np.ndarray:
    """Read a column of a data frame that anndata before 0.7 wrote as a compound array.

    The categories of such a column are in uns.
    """
    values: np.ndarray = frame[key]
    if categories is not None:
        codes, values = values, categories[()]
        values = np.asarray([values[code] if code >= 0 else None for code in codes], dtype=object)
    if values.dtype.kind in "OS":
        values = np.asarray([v.decode() if isinstance(v, bytes) else v for v in values], dtype=object)
    return values
