"""Imports of the large libraries, quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage while modules are imported.

    They make a million objects, all of which stay: looking through them again and again took a quarter of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # There and back, all that was made counts as old: the next search leaves it out.
            gc.freeze()
            gc.unfreeze()
        if was_enabled:
            gc.enable()
