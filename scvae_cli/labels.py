"""What a label is: the text that names a group of cells, whatever type the column or the caller gives it.

One rule for columns of obs and for what a caller names. A missing value (None, NaN, NA) is no label. A string is its
own label, so "1.0" in a column of strings stays "1.0". A whole number reads "1", be it 1 or 1.0 or a category of
either: pandas turns integers into floats when one is missing, and the cells are still those of lane 1. True and False
read "True" and "False". Bytes are decoded. A date without a time of day reads "2024-05-31".
"""

from __future__ import annotations

import datetime
from typing import Any


def as_label(value: Any) -> str | None:
    """The label that a value is, None for a missing one.

    >>> as_label(1), as_label(1.0), as_label(0.5), as_label(True), as_label("1.0"), as_label(b"T cell")
    ('1', '1', '0.5', 'True', '1.0', 'T cell')
    >>> as_label(None), as_label(float("nan")), as_label(datetime.datetime(2024, 5, 31))
    (None, None, '2024-05-31')
    >>> import numpy as np
    >>> [as_label(value) for value in (np.float32(1), np.int8(1), np.array(1.0), np.bool_(False), np.str_("B"))]
    ['1', '1', '1', 'False', 'B']
    """
    if isinstance(value, str):
        # Of an enumeration of strings the string itself.
        return str.__str__(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if _is_missing(value):
        return None
    plain = value
    # Values of numpy, which is not imported for those of Python.
    if getattr(value, "shape", None) == () and hasattr(value, "dtype"):
        plain = (value.astype("datetime64[us]") if value.dtype.kind == "M" else value).item()
    if isinstance(plain, float) and plain.is_integer():
        return str(int(plain))
    if isinstance(plain, datetime.datetime) and plain.time() == datetime.time() and plain.tzinfo is None:
        return plain.date().isoformat()
    if isinstance(plain, float):
        # Of float32, as short as its own precision allows: 0.1, not 0.10000000149.
        return str(value)
    return as_label(plain) if isinstance(plain, str | bytes) else str(plain)


def _is_missing(value: Any) -> bool:
    if value is None:
        return True
    try:
        return bool(value != value)
    except TypeError:  # pandas' NA answers neither yes nor no
        return True
    except ValueError:  # an array of several values
        return False
