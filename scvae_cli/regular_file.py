"""Reading small files that may come from strangers: only regular files, and only up to a size.

A named pipe would wait forever, and a device may have no end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def read_regular(path: Path, *, most: int) -> bytes:
    """Return the content of a file.

    Parameters
    ----------
    path
        The file; a symbolic link is followed.
    most
        Largest size in bytes.

    Raises
    ------
    OSError
        If the file cannot be opened, is not a regular file, or is larger. `strerror` says why.
    """
    refuse_irregular(path)
    # The kind is asked again of the open file, since the file may be replaced in between.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(path, what_it_is(status.st_mode))
        if status.st_size > most:
            raise _unusable(path, f"it has {status.st_size:,} bytes, more than {most:,}")
        # A file below /proc says that it is empty, and may be endless.
        content = file.read(most + 1)
    if len(content) > most:
        raise _unusable(path, f"it has more than {most:,} bytes")
    return content


def refuse_irregular(path: Path) -> None:
    """Raise an OSError if a path does not exist, or is not a regular file; the file is not opened."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise _unusable(path, what_it_is(mode))


def what_it_is(mode: int) -> str:
    """Describe a file that is not regular."""
    return f"it is {_KINDS.get(stat.S_IFMT(mode), 'not a regular file')}, not a file"


def _unusable(path: Path, reason: str) -> OSError:
    return OSError(errno.EINVAL, reason, str(path))
