"""numba's cache of compiled functions, which is repaired if files of the cache are damaged.

numba's cache consists of pickle files in a folder of the user. A truncated or empty pickle file would end every
training with an error. If a file of the cache is damaged, the cache of the function is therefore emptied, and the
function is compiled again.
"""

from __future__ import annotations

import contextlib
from typing import Any


def mended(dispatcher: Any) -> Any:
    """Change the cache of a function compiled with `cache=True` such that damaged files cause no error."""
    cache = dispatcher._cache
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*arguments: Any, **named: Any) -> Any:
        try:
            return load(*arguments, **named)
        except Exception:  # For a damaged file, pickle raises errors of many types.
            _forget(cache)
            return None

    def save_overload(*arguments: Any, **named: Any) -> None:
        try:
            save(*arguments, **named)
        except Exception:  # Saving may fail too, because numba reads the index of the cache before writing it.
            _forget(cache)
            with contextlib.suppress(Exception):  # If saving fails again, the next run compiles the function again.
                save(*arguments, **named)

    cache.load_overload, cache.save_overload = load_overload, save_overload
    return dispatcher


def _forget(cache: Any) -> None:
    """Replace the index of the cache by an empty index. numba reads only files that the index lists."""
    with contextlib.suppress(Exception):  # An exception means that the folder of the cache cannot be written to.
        cache.flush()
