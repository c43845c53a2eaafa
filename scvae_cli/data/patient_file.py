"""Writing an HDF5 file so that a full disk, or any other problem, raises a Python error and does not crash HDF5."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py

from scvae_cli.interruption import stop_if_asked

Block = TypeVar("Block")


class PatientFile(io.FileIO):
    """A file that stores the errors of its operations and raises them after HDF5 has closed the file.

    HDF5 cannot handle a failed write: closing the file then also fails, with a page of messages and sometimes a crash.
    HDF5 calls the functions of this class. If a function of this class raised an exception, HDF5 would ignore the
    exception and leave a wrong file. Data that cannot be written are therefore kept in memory, HDF5 closes the file
    normally, and `check` then raises the error. Few data are kept in memory, because `watch` raises the error before
    the next block is written. If `new` is True, an empty file is created; otherwise an existing file is opened.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        super().__init__(path, "w+b" if new else "r+b")
        self._error: BaseException | None = None
        self._late: list[tuple[int, bytes]] = []

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in the file; an error is stored and raised later."""
        try:
            return super().seek(position, whence)
        except BaseException as error:
            self._error = self._error or error
            return position

    def write(self, data: Any) -> int:
        """Write `data` to the file, or keep `data` in memory if writing fails."""
        view = memoryview(data).cast("B")
        start, done = self.tell(), 0
        while self._error is None and done < len(view):
            try:
                done += super().write(view[done:]) or 0
            except BaseException as error:
                self._error = error
        if done < len(view):
            self._late.append((start, bytes(view)))
            self.seek(start + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with data from the file or from memory; an error is stored and raised later."""
        view = memoryview(buffer).cast("B")
        start, done = self.tell(), 0
        try:
            while done < len(view) and (got := super().readinto(view[done:])):
                done += got
        except BaseException as error:
            self._error = self._error or error
        view[done:] = bytes(len(view) - done)
        for at, kept in self._late:
            low, high = max(at, start), min(at + len(kept), start + len(view))
            if low < high:
                view[low - start : high - start] = kept[low - at : high - at]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file; an error is stored and raised later."""
        try:
            return super().truncate(size)
        except BaseException as error:
            self._error = self._error or error
            return self.tell() if size is None else size

    def flush(self) -> None:
        """Do nothing, because the file has no buffer."""

    def check(self) -> None:
        """Raise the stored error, if there is one."""
        if self._error is not None:
            raise self._error

    def watch(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield the given blocks; before each block, raise a stored error, or stop if Ctrl-C was pressed."""
        for block in blocks:
            self.check()
            stop_if_asked()
            yield block


@contextmanager
def open_to_write(path: Path, *, new: bool) -> Iterator[tuple[h5py.File, PatientFile]]:
    """Context manager that opens an HDF5 file for writing, and raises errors of writing after closing the file.

    Raises an OSError if the file could not be written, for example because the disk is full.
    """
    with PatientFile(path, new=new) as patient:
        with h5py.File(patient, "w" if new else "r+") as file:
            yield file, patient
        patient.check()
