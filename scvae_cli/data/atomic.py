"""Putting a file in place whole or not at all.

A sibling is written, synced, and renamed over the target, so a crash at any moment leaves the old file or the new
one. What a killed process left behind is removed by the next write to the same target.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from scvae_cli.errors import DataError, ScvaeError

# What changes when a file is edited or replaced: inode, size and time of modification.
Fingerprint = tuple[int, int, int]

# linux/fs.h: share the source's blocks instead of copying them, where the file system can.
_FICLONE = 0x40049409


@contextlib.contextmanager
def replacing(target: Path, *, copy_of: Path | None = None, read_as: Fingerprint | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `target` that takes its place when the block ends well.

    Parameters
    ----------
    target
        Where the result goes; a symbolic link keeps pointing at the same place.
    copy_of
        A file the sibling starts as a copy of. If that file changes in the meantime, nothing is put in place.
    read_as
        What `copy_of` was when it was read, if that was before; now by default.

    Raises
    ------
    DataError
        When the folder cannot be written to, the disk is full, or `copy_of` changed under the hands.
    """
    target = target.resolve()
    check_writable(target)
    remove_orphans(target)
    sibling = sibling_of(target)
    try:
        if copy_of is not None:
            read_as = read_as or fingerprint(copy_of)
            _check_unchanged(copy_of, read_as)
            _clone(copy_of, sibling)
            sibling.chmod(stat.S_IMODE(copy_of.stat().st_mode))
        yield sibling
        with sibling.open("rb") as written:
            os.fsync(written.fileno())
        if copy_of is not None and read_as is not None:
            _check_unchanged(copy_of, read_as)
        if target.exists():
            _keep_owner(sibling, of=target)
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
            "free some space, or name an output on another disk",
        )
    reason = error.strerror or text.splitlines()[0]
    return DataError(
        f"cannot write {target}: {reason}; nothing was changed", "check the folder, or name another output"
    )


def check_new_file(target: Path, *, force: bool) -> None:
    """Refuse an output that exists, or that is not an .h5ad by name."""
    if target.suffix != ".h5ad":
        raise DataError(f"{target} does not end in .h5ad", "results are written as .h5ad")
    if target.is_dir():
        raise DataError(f"{target} is a folder, not a file", "name a file")
    if target.exists() and not force:
        raise DataError(f"{target} exists", "use --force to replace it, or another name")


def check_writable(target: Path) -> None:
    """Refuse early what would fail, or be rude, late.

    Raises
    ------
    DataError
        For a missing or read-only folder, a directory in the way, or a file marked read-only.
    """
    target = target.resolve()
    folder = target.parent
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "make it first, or name an output elsewhere")
    if target.is_dir():
        raise DataError(f"{target} is a folder, not a file", "name a file")
    if not may_write(folder):
        raise DataError(f"{folder} is read-only", "name an output in another folder")
    if target.exists() and not may_write(target):
        raise DataError(f"{target} is read-only", f"chmod u+w {target.name}, or name another output")


def may_write(path: Path) -> bool:
    """Whether a file or folder may be changed.

    The superuser may change anything; what its owner made read-only is left alone all the same.
    """
    return bool(path.stat().st_mode & 0o222) and os.access(path, os.W_OK)


def fingerprint(path: Path) -> Fingerprint:
    """What tells this state of a file from another."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def sibling_of(target: Path) -> Path:
    """The temporary name beside `target` that this process writes under."""
    return target.parent / f"{_prefix(target)}{os.getpid()}.tmp"


def remove_orphans(target: Path) -> None:
    """Remove what killed processes of this machine left under `sibling_of(target)`, files or folders."""
    prefix = _prefix(target)
    for path in target.parent.glob(f"{glob.escape(prefix)}*.tmp"):
        pid = path.name[len(prefix) : -len(".tmp")]
        if not pid.isdigit() or _is_alive(int(pid)):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.scvae-{socket.gethostname()}-"


def _check_unchanged(path: Path, seen: Fingerprint) -> None:
    if not path.exists() or fingerprint(path) != seen:
        raise DataError(
            f"{path} was changed by another program while scvae was working on it; nothing was written",
            "run the command again",
        )


def _clone(source: Path, copy: Path) -> None:
    with source.open("rb") as src, copy.open("wb") as dst:
        try:
            fcntl.ioctl(dst.fileno(), _FICLONE, src.fileno())
            return
        except OSError:
            pass
    shutil.copyfile(source, copy)


def _keep_owner(copy: Path, of: Path) -> None:
    """Ownership stays with who had it, where that is allowed: only the superuser may give a file away."""
    status = of.stat()
    with contextlib.suppress(PermissionError):
        os.chown(copy, status.st_uid, status.st_gid)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
