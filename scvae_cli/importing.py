"""Faster import of large libraries."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Context manager that turns off garbage collection while modules are imported.

    Importing the libraries that scvae uses creates a million objects that are never freed. Without `importing`, garbage
    collection examines the new objects many times, which takes a quarter of the import time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # `freeze` and `unfreeze` move all new objects to the oldest generation of objects, which the next garbage
            # collection does not examine.
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()
