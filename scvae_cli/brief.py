"""Short representations of results and models for notebooks; an array is represented by its shape."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

_LENGTH = 60


def brief(result: Any) -> str:
    """Return a short text that shows the fields of a dataclass."""
    shown = ", ".join(f"{field.name}={_shown(getattr(result, field.name))}" for field in fields(result) if field.repr)
    return f"{type(result).__name__}({shown})"


def _shown(value: Any) -> str:
    if getattr(value, "ndim", 0):
        return f"<array {' × '.join(map(str, value.shape))}>"
    if isinstance(value, tuple | list | dict) and len(value) > 3:
        return f"<{len(value)} {'items' if isinstance(value, dict) else 'values'}>"
    text = repr(value)
    return text if len(text) <= _LENGTH else f"<{type(value).__name__}>"
