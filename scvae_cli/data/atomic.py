"""Putting a file in place whole or not at all.

A sibling is written, synced, and renamed over the target, so a crash at any moment leaves the old file or the new
one. What a killed process left behind is removed by the next write to the same target.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from scvae_cli.errors import DataError, ScvaeError

# linux/fs.h: share the source's blocks instead of copying them, where the file system can.
_FICLONE = 0x40049409


@contextlib.contextmanager
def replacing(target: Path, *, copy_of: Path | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `target` that takes its place when the block ends well.

    Parameters
    ----------
    target
        Where the result goes; a symbolic link keeps pointing at the same place.
    copy_of
        A file the sibling starts as a copy of. If that file changes in the meantime, nothing is put in place.

    Raises
    ------
    DataError
        When the folder cannot be written to, the disk is full, or `copy_of` changed under the hands.
    """
    target = target.resolve()
    check_writable(target)
    _remove_orphans(target)
    sibling = target.parent / f".{target.name}.scvae-{socket.gethostname()}-{os.getpid()}.tmp"
    before = fingerprint(copy_of) if copy_of is not None else None
    try:
        if copy_of is not None:
            _clone(copy_of, sibling)
            sibling.chmod(stat.S_IMODE(copy_of.stat().st_mode))
        yield sibling
        with sibling.open("rb") as written:
            os.fsync(written.fileno())
        if copy_of is not None and fingerprint(copy_of) != before:
            raise DataError(
                f"{copy_of} was changed by another program while scvae was working on it; nothing was written",
                "run the command again",
            )
        sibling.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        sibling.unlink(missing_ok=True)


def write_error(target: Path, error: OSError) -> ScvaeError:
    """Say in one line why a file could not be written."""
    # HDF5 hides the system's reason inside its own text and leaves errno unset.
    text = str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text or "File too large" in text:
        return DataError(
            f"no room to write {target}: the disk (or your quota) is full; nothing was changed",
            "free some space, or write elsewhere with -o",
        )
    reason = error.strerror or text.splitlines()[0]
    return DataError(
        f"cannot write {target}: {reason}; nothing was changed", "check the folder, or write elsewhere with -o"
    )


def check_writable(target: Path) -> None:
    """Refuse early what would fail, or be rude, late.

    Raises
    ------
    DataError
        For a missing or read-only folder, a directory in the way, or a file marked read-only.
    """
    folder = target.parent
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "make it first")
    if target.is_dir():
        raise DataError(f"{target} is a folder, not a file", "name a file")
    if not os.access(folder, os.W_OK):
        raise DataError(f"{folder} is not writable", "write elsewhere with -o")
    # The superuser may write to anything; a file whose owner took the permission away is left alone all the same.
    if target.exists() and not (target.stat().st_mode & 0o222 and os.access(target, os.W_OK)):
        raise DataError(f"{target} is read-only", f"chmod u+w {target.name}, or write elsewhere with -o")


def fingerprint(path: Path) -> tuple[int, int, int]:
    """What changes when a file is edited or replaced: inode, size and time of modification."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _clone(source: Path, copy: Path) -> None:
    with source.open("rb") as src, copy.open("wb") as dst:
        try:
            fcntl.ioctl(dst.fileno(), _FICLONE, src.fileno())
            return
        except OSError:
            pass
    shutil.copyfile(source, copy)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_orphans(target: Path) -> None:
    prefix = f".{target.name}.scvae-{socket.gethostname()}-"
    for path in target.parent.glob(f"{_escape(prefix)}*.tmp"):
        pid = path.name[len(prefix) : -len(".tmp")]
        if pid.isdigit() and not _is_alive(int(pid)):
            path.unlink(missing_ok=True)


def _escape(text: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
