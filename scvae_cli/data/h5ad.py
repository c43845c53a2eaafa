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

from scvae_cli.amounts import amount
from scvae_cli.data.atomic import check_new_file, check_writable, fingerprint, resolved
from scvae_cli.data.h5ad_damage import (
    check_column,
    check_stored,
    check_vector,
    damaged,
    keys_of,
    reason_of,
    text_attribute,
)
from scvae_cli.data.h5ad_edit import edit_h5ad
from scvae_cli.data.h5ad_heaps import check_heaps
from scvae_cli.data.h5ad_links import describe_dangling, refuse_links, refuse_outside, refuse_relative_links
from scvae_cli.data.h5ad_rows import is_matrix, row_blocks, shape_of
from scvae_cli.data.hdf5_filters import load_filters, refuse_missing_filter
from scvae_cli.data.labels import values_of
from scvae_cli.data.slots import DEFAULT_KEY, Slot
from scvae_cli.data.store import category_labels, category_order, refuse_twins
from scvae_cli.errors import DataError, ScvaeError
from scvae_cli.regular_file import what_it_is

# Names of the matrix and the genes of raw in files of anndata before 0.7.
_RAW_BEFORE_07 = ("raw.X", "raw.var")


class H5adFile:
    """The cells of an .h5ad file (a `CellStore`).

    Raises a DataError if the file does not exist, is not a regular file, is not HDF5, is truncated, or is not an
    AnnData. Each method raises a DataError if the element that it reads is damaged.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        load_filters()
        with self._open("the file") as file:
            # The state of the file is recorded before anything is read, so that a later change by another program is
            # noticed.
            self._read_as = fingerprint(path)
            check_heaps(path)
            for group in ("obs", "var"):
                if (dangling := describe_dangling(file, group)) is not None:
                    raise DataError(f"{path}: {dangling}", "put the other file where the link expects it")
                if group not in file:
                    raise DataError(f"{path} is HDF5, but not an AnnData: it has no {group}", "write it with anndata")

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
        with self._open("obs") as file:
            return _columns(file["obs"])

    @cached_property
    def layer_keys(self) -> list[str]:
        return self.existing("layers")

    @cached_property
    def matrix_names(self) -> list[str]:
        names = ['layers["counts"]'] if "counts" in self.layer_keys else []
        with self._open("X") as file:
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
        length = len(self.cell_names if group == "obs" else self.gene_names)
        with self._open(f"{group}[{key!r}]") as file:
            frame = file[group]
            refuse_twins(self.title, group, _columns(frame), key)
            if isinstance(frame, h5py.Dataset):
                refuse_outside(frame, self.title)
                check_vector(frame, length)
                return _field(frame, key, file.get(f"uns/{key}_categories"))
            check_column(frame[key], length)
            categories = frame.get(f"__categories/{key}")
            return self._element(frame[key]) if categories is None else self._categorical(frame[key], categories)

    def obsm(self, key: str) -> np.ndarray | None:
        with self._open(f"obsm[{key!r}]") as file:
            element = file.get(f"obsm/{key}")
            if not isinstance(element, h5py.Dataset):
                return None
            refuse_outside(element, self.title)
            if check_stored(element).dtype.kind not in "fiub" or element.shape[:1] != self.cell_names.shape:
                raise ValueError(f"the element has type {element.dtype} and shape {element.shape}")
            return np.asarray(element)

    def matrix_genes(self, name: str) -> np.ndarray:
        if name != "raw":
            return self.gene_names
        with self._open(name) as file:
            location = _RAW_BEFORE_07[1] if _RAW_BEFORE_07[0] in file else "raw/var"
        return self._index(location)

    def row_blocks(self, name: str) -> Iterator[sp.csr_matrix]:
        expected = (len(self.cell_names), len(self.matrix_genes(name)))
        with self._open(name) as file:
            item = file[_location(name, file)]
            if shape_of(item) != expected:
                raise DataError(
                    f"{self.title}: {name} has shape {shape_of(item)}, but there are {amount(expected[0], 'cell')} and "
                    f"{amount(expected[1], 'gene')}", "write the file again with anndata"
                )  # fmt: skip
            yield from row_blocks(item, self.title)

    def existing(self, group: str) -> list[str]:
        with self._open(group) as file:
            if group in ("obs", "var"):
                return _columns(file[group])
            item = file
            for name in group.split("/"):
                if not isinstance(item, h5py.Group) or name not in item:
                    return []
                item = item[name]
            if isinstance(item, h5py.Dataset):
                return list(item.dtype.names or ())
            return keys_of(item)

    def uns_text(self, key: str) -> str | None:
        with self._open(f"uns/{key}") as file:
            item = file.get(f"uns/{key}")
            if not isinstance(item, h5py.Dataset) or item.shape != () or h5py.check_string_dtype(item.dtype) is None:
                return None
            refuse_outside(item, self.title)
            value: str = check_stored(item).asstr()[()]
            return value

    def uns_texts(self, key: str) -> list[str] | None:
        with self._open(f"uns/{key}") as file:
            item = file.get(f"uns/{key}")
            if not isinstance(item, h5py.Dataset) or item.ndim != 1 or h5py.check_string_dtype(item.dtype) is None:
                return None
            refuse_outside(item, self.title)
            return [str(text) for text in check_stored(item).asstr()[()]]

    def check_destination(self, paths: Sequence[str], *, output: Path | None, force: bool) -> None:
        """Check before a computation that the file can be written, and that anndata 0.7 or later wrote the file."""
        target = output or self.path
        if resolved(target) != resolved(self.path):
            check_new_file(target, force=force, of_same_cells=True)
        check_writable(target)
        with self._open("the file") as file:
            for group in sorted({path.split("/")[0] for path in paths}):
                if isinstance(file.get(group), h5py.Dataset):
                    raise DataError(
                        f"{self.path}: {group} is in the format of anndata before 0.7, to which nothing can be added",
                        "convert it once: anndata.read_h5ad(FILE).write_h5ad(FILE)",
                    )
            # The record of the run is written to uns.
            refuse_links(file, [*paths, f"uns/{DEFAULT_KEY}/runs"], self.title)
            refuse_relative_links(file, resolved(target).parent, self.title)

    def write(self, slots: Sequence[Slot], *, output: Path | None, force: bool) -> None:
        """Write results to the file, or to a copy of the file at `output`; either all results are written, or none."""
        self.check_destination([slot.path for slot in slots], output=output, force=force)
        target = output or self.path
        same = resolved(target) == resolved(self.path)
        try:
            edit_h5ad(self.path, target, slots, read_as=self._read_as, force=force or same)
        except (ScvaeError, MemoryError):
            raise
        except Exception as error:  # the file has a damaged part that was not read before
            reason = f"{self.path} is damaged: results cannot be written into it: {reason_of(error)}"
            raise DataError(f"{reason}; nothing was changed", "copy or download it again") from error
        if same:
            self._read_as = fingerprint(self.path)

    def _index(self, location: str) -> np.ndarray:
        with self._open(f"the index of {location}") as file:
            frame = file[location]
            if isinstance(frame, h5py.Dataset):
                refuse_outside(frame, self.title)
                names = _field(check_vector(frame), (frame.dtype.names or ("index",))[0])
            else:
                key = text_attribute(frame, "_index") or ("index" if "index" in frame else "_index")
                names = self._strings(frame[key])
            if np.ndim(names) != 1:
                raise ValueError(f"the index has {amount(np.ndim(names), 'dimension')} instead of one")
            return np.asarray([n.decode() if isinstance(n, bytes) else str(n) for n in np.asarray(names)], dtype=object)

    def _strings(self, item: h5py.Group | h5py.Dataset) -> Any:
        """Read the names of cells or genes.

        Names in the format "string-array" are read without anndata, because anndata is slow to import.
        """
        refuse_outside(item, self.title)
        if isinstance(item, h5py.Dataset):
            check_vector(item)
            kind = h5py.check_string_dtype(item.dtype)
            if text_attribute(item, "encoding-type") == "string-array" and kind is not None and kind.length is None:
                return item.asstr()[()]
        else:
            check_column(item, len(item.get("codes", item.get("mask", ()))))
        return self._element(item)

    def _element(self, item: h5py.Group | h5py.Dataset) -> Any:
        """Read an element with anndata."""
        from anndata.io import read_elem

        refuse_outside(item, self.title)
        return read_elem(item)

    def _categorical(self, codes: h5py.Dataset, categories: h5py.Dataset) -> Any:
        """Read a categorical column in the format of anndata before 0.8.

        Before version 0.8, anndata stored the codes and the categories of a column in different places. anndata can
        read a data frame in the format before 0.8 only as a whole, and not column by column.
        """
        import pandas as pd

        ordered = bool(categories.attrs.get("ordered", False))
        check_vector(categories)
        return pd.Categorical.from_codes(self._element(codes), self._element(categories), ordered=ordered)

    @contextlib.contextmanager
    def _open(self, element: str) -> Iterator[h5py.File]:
        """Context manager that opens the file to read one element. If reading fails, the error names the element."""
        if not self.path.exists():
            raise DataError(f"{self.path} does not exist", "check the path")
        if self.path.is_dir():
            raise DataError(f"{self.path} is a folder, not an .h5ad file", "name the .h5ad file")
        if not self.path.is_file():
            raise DataError(f"{self.path} cannot be read: {what_it_is(self.path.stat().st_mode)}", "name an .h5ad file")
        try:
            file = h5py.File(self.path, "r")
        except OSError as error:
            raise DataError(*_why_not_open(self.path, error)) from error
        except Exception as error:  # h5py raises various errors for a damaged beginning of a file
            raise damaged(self.path, "the file", reason_of(error)) from error
        try:
            with file:
                yield file
        except (ScvaeError, MemoryError):
            raise
        except Exception as error:  # h5py, anndata, pandas and numpy raise various errors for damaged elements
            refuse_missing_filter(self.path)
            raise damaged(self.path, element, reason_of(error)) from error


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
    index = text_attribute(frame, "_index") or "_index"
    keys = keys_of(frame)
    ordered = frame.attrs.get("column-order")
    if ordered is not None and np.asarray(ordered).dtype.kind in "OSU":
        # The name of a column may contain "/", which HDF5 stores as nested groups.
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in np.asarray(ordered).ravel()]
        return [name for name in names if not name.startswith("/") and name in frame]
    return [key for key in keys if key not in (index, "__categories")]


def _has_raw(file: h5py.File) -> bool:
    # If an AnnData has no raw, the file may contain a null element called raw.
    return isinstance(file.get("raw"), h5py.Group) and "X" in file["raw"]


def _location(name: str, file: h5py.File) -> str:
    if name == "raw":
        return _RAW_BEFORE_07[0] if _RAW_BEFORE_07[0] in file else "raw/X"
    return f"layers/{name[8:-2]}" if name.startswith('layers["') else name


def _field(frame: h5py.Dataset, key: str, categories: h5py.Dataset | None = None) -> np.ndarray:
    """Read a column of a data frame from a file of anndata before 0.7.

    Before version 0.7, anndata stored a data frame as one array with named fields. The categories of a categorical
    column were stored in uns.
    """
    values: np.ndarray = frame[key]
    if categories is not None:
        codes, values = values, categories[()]
        values = np.asarray([values[code] if code >= 0 else None for code in codes], dtype=object)
    if values.dtype.kind in "OS":
        values = np.asarray([v.decode() if isinstance(v, bytes) else v for v in values], dtype=object)
    return values
