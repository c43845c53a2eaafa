"""numba's cache of compiled functions, repaired if it is damaged.

The cache consists of pickles in a folder of the user. A truncated or empty file would end every training. A damaged
file is therefore removed, and the function is compiled again.
"""

from __future__ import annotations

import contextlib
from typing import Any


def mended(dispatcher: Any) -> Any:
    """Return a function compiled with `cache=True`, after making its cache survive damaged files."""
    cache = dispatcher._cache
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any, **named: Any) -> Any:
        try:
            return load(*arguments, **named)
        except Exception:  # pickle raises errors of many types
            _forget(cache)
            return None

    def save_overload(*arguments: Any, **named: Any) -> None:
        try:
            save(*arguments, **named)
        except Exception:  # the index is read again before it is written
            _forget(cache)
            with contextlib.suppress(Exception):  # the next run compiles again
                save(*arguments, **named)

    cache.load_overload, cache.save_overload = load_overload, save_overload
    return dispatcher


def _forget(cache: Any) -> None:
    """Replace the index of the cache by an empty one; without an index, its other files are not read."""
    with contextlib.suppress(Exception):  # the folder cannot be written to
        cache.flush()
