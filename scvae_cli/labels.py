"""What a label is: the name of a group, whatever type the column or the caller gives it."""

from __future__ import annotations

from typing import Any


def as_label(value: Any) -> str:
    """The label that a caller means: numbers and booleans as text, whole floats as whole numbers.

    >>> as_label(1), as_label(1.0), as_label(True), as_label("CD4+ T")
    ('1', '1', 'True', 'CD4+ T')
    """
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
