"""Writing a file completely or not at all.

A temporary file next to the target is written, flushed to the disk, and renamed to the target. After a crash at any
moment, the target is therefore either the old or the new file. A killed process may leave its temporary file behind.
The next write to the same target removes this file.
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

# Inode, size and modification time, which change when a file is edited or replaced.
Fingerprint = tuple[int, int, int]

# From linux/fs.h: share the blocks of the source instead of copying them, if the file system supports this.
_FICLONE = 0x40049409


@contextlib.contextmanager
def replacing(target: Path, *, copy_of: Path | None = None, read_as: Fingerprint | None = None) -> Iterator[Path]:
    """Context manager that yields a temporary path and renames it to `target` if the `with` block raises no error.

    Parameters
    ----------
    target
        File to write. If it is a symbolic link, the file to which it points is written.
    copy_of
        File that is copied to the temporary path first. If another program changes this file before the block ends,
        the target is not written.
    read_as
        Fingerprint of `copy_of` at the time when the caller read the file; by default the current fingerprint.

    Raises
    ------
    DataError
        If the folder cannot be written to, the disk is full, or another program changed `copy_of`.
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
    """Return an error that explains why a file could not be written."""
    # HDF5 includes the reason of the operating system in its message and does not set errno.
    text = str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text or "File too large" in text:
        return DataError(
            f"no room to write {target}: the disk (or your quota) is full; nothing was changed",
            "free some space, or choose an output file on another disk",
        )
    reason = error.strerror or text.splitlines()[0]
    return DataError(
        f"cannot write {target}: {reason}; nothing was changed", "check the folder, or choose another output file"
    )


def check_new_file(target: Path, *, force: bool) -> None:
    """Check that a new .h5ad file may be written to the path `target`.

    Raises a DataError if the name does not end in .h5ad, if `target` is a folder, or if the file exists and `force`
    is False.
    """
    if target.suffix != ".h5ad":
        raise DataError(f"{target} does not end in .h5ad", "choose a name that ends in .h5ad")
    if target.is_dir():
        raise DataError(f"{target} is a folder, not a file", "choose the name of a file")
    if target.exists() and not force:
        raise DataError(f"{target} exists", "use --force to replace it, or choose another name")


def check_writable(target: Path) -> None:
    """Check before a computation that a file can be written.

    Raises a DataError if the folder does not exist or is read-only, the target is a folder, or the file is read-only.
    """
    target = target.resolve()
    folder = target.parent
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "create it first, or choose another output file")
    if target.is_dir():
        raise DataError(f"{target} is a folder, not a file", "choose the name of a file")
    if not may_write(folder):
        raise DataError(f"{folder} is read-only", "choose an output file in another folder")
    if target.exists() and not may_write(target):
        raise DataError(f"{target} is read-only", f"run chmod u+w {target.name}, or choose another output file")


def may_write(path: Path) -> bool:
    """Whether a file or folder may be changed. A read-only one may not, even if the superuser runs scvae."""
    return bool(path.stat().st_mode & 0o222) and os.access(path, os.W_OK)


def fingerprint(path: Path) -> Fingerprint:
    """Return the inode, size and modification time of a file, which identify its current state."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def sibling_of(target: Path) -> Path:
    """Return the temporary path next to `target` to which this process writes."""
    return target.parent / f"{_prefix(target)}{os.getpid()}.tmp"


def remove_orphans(target: Path) -> None:
    """Remove temporary files and folders for `target` that killed processes on this machine left behind."""
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
    """Give `copy` the owner of the file `of`; only the superuser may do this, so a lack of permission is ignored."""
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
