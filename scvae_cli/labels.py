"""Conversion of values to labels. A label is the text that names a group of cells.

The rules for labels are the same for columns of obs and for values that a caller passes. A missing value (None, NaN,
NA) has no label. A string is its own label, so "1.0" in a column of strings stays "1.0". The numbers 1 and 1.0 have the
same label "1", because pandas turns the integers of a column into floats if a value is missing. The categories 1 and
1.0 of a categorical column have the label "1", too. The labels of True and False are "True" and "False". Bytes are
decoded as UTF-8. The label of a date without a time of day has the form "2024-05-31".
"""

from __future__ import annotations

import datetime
from typing import Any

# Predicted label of the cells that belong to none of the known types.
UNKNOWN = "unknown"
# Text between the labels of a prediction set.
BETWEEN = " | "


def is_reserved(label: str) -> bool:
    """Whether a text is not allowed as the label of a known cell type, because results would be ambiguous.

    >>> [is_reserved(label) for label in ("T cell", "unknown", "B | plasma", "B |", " ")]
    [False, True, True, True, True]
    """
    return label == UNKNOWN or BETWEEN in f" {label} " or not label.strip() or "\0" in label


def as_label(value: Any) -> str | None:
    """Return the label of a value, or None for a missing value.

    >>> as_label(1), as_label(1.0), as_label(0.5), as_label(True), as_label("1.0"), as_label(b"T cell")
    ('1', '1', '0.5', 'True', '1.0', 'T cell')
    >>> as_label(None), as_label(float("nan")), as_label(datetime.datetime(2024, 5, 31))
    (None, None, '2024-05-31')
    >>> import numpy as np
    >>> [as_label(value) for value in (np.float32(1), np.int8(1), np.array(1.0), np.bool_(False), np.str_("B"))]
    ['1', '1', '1', 'False', 'B']
    """
    if isinstance(value, str):
        # For a member of a string enumeration, `str.__str__` returns the plain string.
        return str.__str__(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if _is_missing(value):
        return None
    plain = value
    # A numpy scalar is recognized by its attributes, so that numpy need not be imported.
    if getattr(value, "shape", None) == () and hasattr(value, "dtype"):
        plain = (value.astype("datetime64[us]") if value.dtype.kind == "M" else value).item()
    if isinstance(plain, float) and plain.is_integer():
        return str(int(plain))
    if isinstance(plain, datetime.datetime) and plain.time() == datetime.time() and plain.tzinfo is None:
        return plain.date().isoformat()
    if isinstance(plain, float):
        # The text of the original value is used: float32(0.1) is shown as 0.1, but float(float32(0.1)) as
        # 0.10000000149.
        return str(value)
    return as_label(plain) if isinstance(plain, str | bytes) else str(plain)


def _is_missing(value: Any) -> bool:
    if value is None:
        return True
    try:
        return bool(value != value)
    except TypeError:  # pandas' NA cannot be converted to a boolean
        return True
    except ValueError:  # the comparison of an array of several values is ambiguous
        return False
