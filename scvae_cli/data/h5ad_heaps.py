"""A check for damaged texts in an .h5ad file that would make HDF5 run forever.

HDF5 stores texts in parts of the file that are called global heaps, and reads the texts of a heap one after the other.
If the stored size of a text was overwritten by zeros, HDF5 never reaches the next text. The module therefore checks all
texts of a file before HDF5 reads the texts. Large files are not checked, because the check would take too long.

The layout of a heap is described in the HDF5 File Format Specification, section III.E.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_MOST_BYTES = 1 << 25
_SIGNATURE, _VERSION = b"GCOL", b"\x01\x00\x00\x00"
_HEADER = struct.Struct("<4s4sQ")
_OBJECT = struct.Struct("<HH4xQ")


def check_heaps(path: Path) -> None:
    """Raise a ValueError if damaged texts in a file would make HDF5 run forever; files above 32 MiB are not checked."""
    size = path.stat().st_size
    if not 0 < size <= _MOST_BYTES:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(_SIGNATURE)
        while at >= 0:
            if at + _HEADER.size <= size:
                _check_heap(content, at)
            at = content.find(_SIGNATURE, at + 1)


def _check_heap(content: mmap.mmap, start: int) -> None:
    _, version, length = _HEADER.unpack_from(content, start)
    end = start + length
    if version != _VERSION or end > len(content):
        return  # HDF5 refuses the heap, or the bytes are not a heap
    at = start + _HEADER.size
    while at + _OBJECT.size <= end:
        index, _, size = _OBJECT.unpack_from(content, at)
        # Free space in a heap has the index 0, and its size includes its header.
        step = size if index == 0 else _OBJECT.size + (size + 7) // 8 * 8
        if step == 0:
            raise ValueError("the texts of the file are damaged: a text has no size")
        at += step
