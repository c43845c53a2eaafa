"""Safe reading of files that may come from strangers: only regular files are read, and only up to a maximum size.

Without the checks of this module, reading a named pipe could wait forever, and a device could supply data without end.
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
        If the file cannot be opened, is not a regular file, or is larger than `most`. The attribute `strerror` of the
        error gives the reason.
    """
    refuse_irregular(path)
    # The kind of the file is checked again after opening, because the file may have been replaced in between.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _unusable(path, what_it_is(status.st_mode))
        if status.st_size > most:
            raise _unusable(path, f"it has {status.st_size:,} bytes, but at most {most:,} are allowed")
        # Files in the folder /proc of Linux report a size of 0 bytes, but can be endless.
        content = file.read(most + 1)
    if len(content) > most:
        raise _unusable(path, f"it has more than {most:,} bytes")
    return content


def refuse_irregular(path: Path) -> None:
    """Raise an OSError if a path does not exist, or is not a regular file; the file is not opened."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise _unusable(path, what_it_is(mode))


def refuse_irregular_within(folder: Path) -> None:
    """Raise an OSError if a folder contains, at any depth, an entry that is neither a regular file nor a folder.

    Symbolic links are followed. An OSError is also raised if a folder is reached twice, for example through a link to
    its parent folder.
    """
    seen = {_identity(folder.stat())}
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                status = entry.stat()
                if stat.S_ISDIR(status.st_mode):
                    if _identity(status) in seen:
                        raise _unusable(Path(entry.path), "it is a link to a folder that was already read")
                    seen.add(_identity(status))
                    waiting.append(Path(entry.path))
                elif not stat.S_ISREG(status.st_mode):
                    raise _unusable(Path(entry.path), what_it_is(status.st_mode))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def what_it_is(mode: int) -> str:
    """Return a text that says what a path is, such as "it is a folder, not a file"."""
    return f"it is {_KINDS.get(stat.S_IFMT(mode), 'not a regular file')}, not a file"


def _unusable(path: Path, reason: str) -> OSError:
    return OSError(errno.EINVAL, reason, str(path))
