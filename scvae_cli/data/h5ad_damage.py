"""Detection of damage in an .h5ad file: checks before memory is allocated, and messages for errors of libraries.

If a few bytes of a file are damaged, an array may declare an enormous size. The checks of this module compare the
declared size of an element with the number of bytes that are stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scvae_cli.errors import DataError

# Arrays of at most _SMALL_BYTES are not checked. gzip compresses at most by a factor of 1,032, so a compressed array is
# damaged if its declared size is more than _MOST_COMPRESSED times the stored size. For an array without compression, in
# which chunks of zeros may be left out, the limit is _MOST_LEFT_OUT.
_SMALL_BYTES, _MOST_COMPRESSED, _MOST_LEFT_OUT = 1 << 26, 2000, 4
# Largest size, in bytes, of a text or number of fixed size.
_LONGEST_VALUE = 1 << 16
_HINT = "copy or download it again, or write it again with anndata"


def damaged(path: Path, element: str, reason: str) -> DataError:
    """Return the error for an element that cannot be read."""
    return DataError(f"{path} is damaged: {element} cannot be read: {reason}", _HINT)


def reason_of(error: Exception) -> str:
    """Return the first line of an error message of a library, or the type of the error if the message is empty."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def check_stored(item: h5py.Dataset) -> h5py.Dataset:
    """Return an HDF5 dataset, or raise a ValueError if far fewer bytes are stored than the dataset declares."""
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{item.name} is a group, not an array")
    if item.dtype.itemsize > _LONGEST_VALUE:
        raise ValueError(f"{item.name} declares values of {item.dtype.itemsize:,} bytes, which is too long")
    declared = item.dtype.itemsize
    for length in item.shape or ():
        declared *= int(length)
    # The stored size of small arrays is not checked, because the check takes time.
    if declared > _SMALL_BYTES and declared > _factor(item) * int(item.id.get_storage_size()):
        raise ValueError(f"{item.name} declares {declared:,} bytes, but few of them are stored")
    return item


def _factor(item: h5py.Dataset) -> int:
    return _MOST_COMPRESSED if item.id.get_create_plist().get_nfilters() else _MOST_LEFT_OUT


def check_vector(item: Any, length: int | None = None) -> h5py.Dataset:
    """Return an HDF5 dataset, or raise a ValueError if the dataset is not a vector of `length` values.

    If `length` is None, a vector of any length is accepted.
    """
    shape = check_stored(item).shape
    if shape is None or len(shape) != 1:
        raise ValueError(f"{item.name} has shape {shape}, not one dimension")
    if length is not None and shape[0] != length:
        raise ValueError(f"{item.name} has {shape[0]:,} values instead of {length:,}")
    dataset: h5py.Dataset = item
    return dataset


def check_column(item: Any, length: int) -> None:
    """Check a column of a data frame before anndata reads it.

    Raises a ValueError if the column does not have `length` values, or if the values are neither numbers nor text.
    Categorical and nullable columns are accepted.
    """
    if not isinstance(item, h5py.Group):
        values = check_vector(item, length)
    else:
        encoding = text_attribute(item, "encoding-type") or ""
        if not encoding.startswith(("categorical", "nullable")):
            raise ValueError(f"{item.name} is a group, not a column")
        values = check_vector(item["categories"] if encoding == "categorical" else item["values"])
        check_vector(item["codes" if encoding == "categorical" else "mask"], length)
    if h5py.check_string_dtype(values.dtype) is None and values.dtype.kind not in "fiubS":
        raise ValueError(f"{item.name} holds neither numbers nor text")


def text_attribute(item: h5py.Group | h5py.Dataset, name: str) -> str | None:
    """Return a text attribute of an HDF5 element, or None if the attribute does not exist.

    Raises a ValueError if the attribute is not a text.
    """
    value = item.attrs.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the attribute {name} of {item.name} is not a text")
    return value


def keys_of(group: Any) -> list[str]:
    """Return the names of the elements in an HDF5 group.

    Raises a ValueError if `group` is not a group, or if a name is not UTF-8.
    """
    if not isinstance(group, h5py.Group):
        raise ValueError(f"{group.name} is not a group")
    keys = list(group)
    for key in keys:
        if not _is_utf8(key):
            raise ValueError(f"the name {key!r} in {group.name} is not UTF-8")
    return keys


def whole_numbers(values: np.ndarray, name: str) -> np.ndarray:
    """Return the indices or pointers (indptr) of a sparse matrix as integers.

    Some programs store indices and pointers as floats. Raises a ValueError if the floats are not whole numbers.
    """
    if values.dtype.kind == "i" or (values.dtype.kind == "u" and values.dtype.itemsize < 8):
        return values
    if values.dtype.kind not in "uf" or (values != np.rint(values)).any():
        raise ValueError(f"{name} holds values that are not whole numbers")
    if len(values) and not (values.min() > -(2.0**62) and values.max() < 2.0**62):
        raise ValueError(f"{name} holds values that are too large")
    return values.astype(np.int64)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # h5py returns bytes that are not UTF-8 as invalid characters
        return False
    return True
