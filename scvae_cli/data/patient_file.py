"""Opening an HDF5 file to write to, so that a full disk or Ctrl-C ends in an error and not in a crash."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py

Block = TypeVar("Block")


class PatientFile(io.FileIO):
    """A file that never fails in HDF5's hands, and remembers that it should have.

    HDF5 does not survive a failed write: closing its objects fails in turn, with a page of messages and, at worst, a
    segmentation fault. So what finds no room is kept in memory (the rest of one block and HDF5's own caches), HDF5
    closes in good order, and what went wrong is raised by who wrote. A Ctrl-C during a write waits in the same way.

    Parameters
    ----------
    path
        The file.
    new
        Start from nothing instead of from what is there.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        super().__init__(path, "w+b" if new else "r+b")
        self._error: OSError | KeyboardInterrupt | None = None
        self._late: list[tuple[int, bytes]] = []

    def write(self, data: Any) -> int:
        """Write all of `data` here, or keep it."""
        view = memoryview(data).cast("B")
        start, done = self.tell(), 0
        while self._error is None and done < len(view):
            try:
                done += super().write(view[done:]) or 0
            except (OSError, KeyboardInterrupt) as error:
                self._error = error
        if done < len(view):
            self._late.append((start, bytes(view)))
            self.seek(start + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with what was written, kept or not."""
        view = memoryview(buffer).cast("B")
        start, done = self.tell(), 0
        while done < len(view) and (got := super().readinto(view[done:])):
            done += got
        view[done:] = bytes(len(view) - done)
        for at, kept in self._late:
            low, high = max(at, start), min(at + len(kept), start + len(view))
            if low < high:
                view[low - start : high - start] = kept[low - at : high - at]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or remember why it could not be set."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return self.tell() if size is None else size

    def check(self) -> None:
        """Raise what HDF5 was spared."""
        if self._error is not None:
            raise self._error

    def watch(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Pass blocks on until there is no room for them."""
        for block in blocks:
            self.check()
            yield block


@contextmanager
def open_to_write(path: Path, *, new: bool) -> Iterator[tuple[h5py.File, PatientFile]]:
    """Open an HDF5 file for writing; leaving the block raises what could not be written.

    Raises
    ------
    OSError
        When there was no room.
    """
    with PatientFile(path, new=new) as patient:
        with h5py.File(patient, "w" if new else "r+") as file:
            yield file, patient
        patient.check()
