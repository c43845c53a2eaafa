"""Writing a file completely or not at all.

A temporary file next to the target is written, flushed to the disk, and renamed to the target. After a crash at any
moment, the target is therefore either the old or the new file. If a killed process leaves its temporary file behind,
the next write to the same target removes the temporary file.

Temporary files have random names, never replace an existing file, and can only be read by their owner until they are
complete. During a write, signals such as Ctrl-C are delayed (`scvae_cli.interruption`), and other writers of the same
target wait (`scvae_cli.data.writers_lock`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import stat
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

from scvae_cli.data.file_metadata import keep_metadata, new_file_mode
from scvae_cli.data.writers_lock import locked_by_another, only_writer, stem
from scvae_cli.errors import DataError, ScvaeError, ScvaeWarning
from scvae_cli.interruption import deferred, note_written, stop_if_asked

# Five numbers of a file: device, inode, size, time of the last modification and time of the last status change. A
# program that edits a file can keep the size and set the modification time back, but not the time of the status change.
Fingerprint = tuple[int, int, int, int, int]

# Request code from linux/fs.h: a copy shares the disk blocks of the source, if the file system supports this.
_FICLONE = 0x40049409
_COPIED_AT_ONCE = 1 << 24


@contextlib.contextmanager
def replacing(
    target: Path,
    *,
    copy_of: Path | None = None,
    read_as: Fingerprint | None = None,
    force: bool = True,
    result: bool = True,
) -> Iterator[Path]:
    """Context manager that yields a temporary path and renames it to `target` if the `with` block raises no error.

    The temporary file exists when the `with` block starts. The `with` block must write into this file and must not
    replace the file. The new file gets the owner, group, permissions (with access control lists) and extended
    attributes of the old file. A warning names the attributes that could not be kept. During the `with` block, signals
    are delayed, and no other process of scvae can write the same target.

    Parameters
    ----------
    target
        File to write. If the path is a symbolic link, the file to which the link points is written.
    copy_of
        File that is copied to the temporary path first. If another program changes the copied file before the `with`
        block ends, the target is not written.
    read_as
        Fingerprint of `copy_of` at the time when the caller read the file; by default the current fingerprint.
    force
        Whether an existing file is replaced. If False, a file that another program creates at the path `target` during
        the `with` block is kept, too.
    result
        Whether the user asked for the file. If True, the message about an interruption names the file.

    Raises
    ------
    DataError
        If the folder cannot be written to, if the disk is full, if another process of scvae writes the target for more
        than a minute, or if another program changed `copy_of` or the target.
    """
    target = resolved(target)
    check_writable(target)
    there = fingerprint(target) if target.exists() else None
    written, lost = False, list[str]()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(deferred())
            if stack.enter_context(only_writer(target)):
                _remove_orphans(target)
            sibling, descriptor = _temporary(target)
            stack.callback(_close_and_remove, sibling, descriptor)
            if copy_of is not None:
                read_as = read_as or fingerprint(copy_of)
                _clone(stack.enter_context(_reading(copy_of, read_as)), descriptor)
            yield sibling
            if copy_of is not None and read_as is not None:
                _check_unchanged(copy_of, read_as)
            _check_target(target, there, force=force)
            lost = _finish(descriptor, sibling, target, copy_of)
            _put(sibling, target, force=force)
            written = True
            if result:
                note_written(target)
            sync_folder(target.parent)
    except OSError as error:
        raise _unsynced(target, error) if written else write_error(target, error) from error
    warn_of_lost(target, lost)


def write_error(target: Path, error: OSError) -> ScvaeError:
    """Return an error that explains why a file could not be written."""
    # HDF5 includes the reason of the operating system in its message and does not set errno.
    text = str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in text or "File too large" in text:
        return DataError(
            f"cannot write {target}: the disk (or your quota) is full; nothing was changed",
            "free some space, or choose an output file on another disk",
        )
    reason = error.strerror or text.splitlines()[0]
    return DataError(
        f"cannot write {target}: {reason}; nothing was changed", "check the folder, or choose another output file"
    )


def check_new_file(target: Path, *, force: bool, of_same_cells: bool = False) -> None:
    """Check that a new .h5ad file may be written to the path `target`.

    `of_same_cells` says whether the file would contain the cells of the data. If such a file exists, the hint says how
    to add the results to it.

    Raises a DataError if the name does not end in .h5ad, if `target` is a folder, or if the file exists and `force`
    is False.
    """
    if target.suffix != ".h5ad":
        raise DataError(f"{target} does not end in .h5ad", "choose a name that ends in .h5ad")
    if target.is_dir():
        raise DataError(f"{target} is a folder, not a file", "choose the name of a file")
    if target.exists() and not force:
        hint = "use --force to replace it, or choose another name"
        if of_same_cells:
            hint += f"; if it has the same cells, {target} can be the input (with -m), to which the results are added"
        raise DataError(f"{target} exists", hint)


def check_writable(target: Path) -> None:
    """Check before a computation that a file can be written.

    Raises a DataError if the folder does not exist, if the folder or the file is read-only, or if the target is not a
    regular file.
    """
    target = resolved(target)
    folder = target.parent
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "create it first, or choose another output file")
    if target.is_dir():
        raise DataError(f"{target} is a folder, not a file", "choose the name of a file")
    if target.exists() and not target.is_file():
        raise DataError(f"{target} is a device or a pipe, not a file", "choose the name of a file")
    if not may_write(folder):
        raise DataError(f"{folder} is read-only", "choose an output file in another folder")
    if target.exists() and not may_write(target):
        raise DataError(f"{target} is read-only", f"run chmod u+w {target.name}, or choose another output file")


def resolved(path: Path) -> Path:
    """Return the path of a file without symbolic links and "..".

    Raises a DataError if symbolic links lead in a circle.
    """
    try:
        result = path.resolve()
        circle = result.is_symlink()
    except RuntimeError:  # Python before 3.13 raises this error
        circle = True
    if circle:
        raise DataError(f"{path} is a symbolic link that leads back to itself", "remove the link")
    return result


def may_write(path: Path) -> bool:
    """Whether a file or folder may be changed: False for a read-only file, even if the superuser runs scvae."""
    return bool(path.stat().st_mode & 0o222) and os.access(path, os.W_OK)


def fingerprint(path: Path) -> Fingerprint:
    """Return numbers that identify the current state of a file, so that a later change is noticed."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def temporary_name(target: Path) -> Path:
    """Return a new random path next to `target`."""
    return target.parent / f".{stem(target)}.scvae-{secrets.token_hex(8)}.tmp"


def orphans(target: Path) -> list[Path]:
    """Return the temporary files and folders that earlier writes of `target` left behind.

    The caller must hold `only_writer(target)`.
    """
    return sorted(target.parent.glob(f"{glob.escape(f'.{stem(target)}.scvae-')}*.tmp"))


def discard(target: Path) -> None:
    """Remove a file that was written with `replacing`, and temporary files that killed processes left behind."""
    with contextlib.suppress(OSError, DataError), deferred(), only_writer(target) as locked:
        target.unlink(missing_ok=True)
        if locked:
            _remove_orphans(target)


def remove_folder(folder: Path, names: Collection[str]) -> None:
    """Remove the files `names` of a folder, and then the folder if it is empty. Errors are ignored."""
    for name in names:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are stored on the disk, if the file system supports such a wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def warn_of_lost(target: Path, lost: Collection[str]) -> None:
    """Warn if properties of a replaced file or folder, such as the owner, were lost."""
    if lost:
        text = f"{target} was replaced by a new file, which could not keep {', '.join(dict.fromkeys(lost))}"
        warnings.warn(ScvaeWarning(text), stacklevel=3)


def _temporary(target: Path) -> tuple[Path, int]:
    """Create a temporary file that only this user can read; the file is locked until its descriptor is closed."""
    sibling = temporary_name(target)
    descriptor = os.open(sibling, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    locked_by_another(descriptor)
    return sibling, descriptor


def _close_and_remove(sibling: Path, descriptor: int) -> None:
    sibling.unlink(missing_ok=True)
    os.close(descriptor)


def _remove_orphans(target: Path) -> None:
    """Remove the temporary files of killed processes: those that no process has locked."""
    for path in orphans(target):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode) and not locked_by_another(descriptor):
                    path.unlink()
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _reading(path: Path, seen: Fingerprint) -> Iterator[int]:
    """Open a file and lock it against writing by HDF5 programs; raise a DataError if the file was changed before."""
    _check_unchanged(path, seen)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{path} is open for writing in another program; nothing was written",
                "close it there and run the command again",
            ) from error
        except OSError:
            pass  # the file system has no locks
        yield descriptor
    finally:
        os.close(descriptor)


def _check_unchanged(path: Path, seen: Fingerprint) -> None:
    if not path.exists() or fingerprint(path) != seen:
        raise DataError(
            f"{path} was changed by another program while scvae was working on it; nothing was written",
            "run the command again",
        )


def _check_target(target: Path, there: Fingerprint | None, *, force: bool) -> None:
    """Raise a DataError if another program has written the target since the write began."""
    if there is not None:
        _check_unchanged(target, there)
    elif target.exists():
        raise _appeared(target, force=force)


def _appeared(target: Path, *, force: bool) -> DataError:
    hint = "run the command again" if force else "use --force to replace it, or choose another name"
    return DataError(f"{target} was created by another program while scvae was working; nothing was written", hint)


def _clone(source: int, copy: int) -> None:
    """Copy the content of an open file into another open file. A signal such as Ctrl-C ends the copying."""
    try:
        fcntl.ioctl(copy, _FICLONE, source)
    except OSError:
        with os.fdopen(source, "rb", closefd=False) as src, os.fdopen(copy, "wb", closefd=False) as dst:
            while part := src.read(_COPIED_AT_ONCE):
                stop_if_asked()
                dst.write(part)


def _finish(descriptor: int, sibling: Path, target: Path, copy_of: Path | None) -> list[str]:
    """Copy the permissions and attributes of the target to the temporary file; return what could not be copied."""
    here, there = os.fstat(descriptor), os.stat(sibling, follow_symlinks=False)
    if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
        raise OSError(errno.ESTALE, "another program replaced the temporary file")
    lost: list[str] = []
    if target.exists():
        lost = keep_metadata(descriptor, target)
    else:
        # A copy of a read-only file must be writable.
        mode = new_file_mode() if copy_of is None else stat.S_IMODE(copy_of.stat().st_mode) | 0o200
        os.fchmod(descriptor, mode)
    os.fsync(descriptor)
    return lost


def _put(sibling: Path, target: Path, *, force: bool) -> None:
    """Give the temporary file the name of the target."""
    if not force and not target.exists():
        try:
            # A rename would replace a file that another program creates at this moment; a hard link does not replace a
            # file.
            os.link(sibling, target)
            return
        except FileExistsError:
            raise _appeared(target, force=force) from None
        except OSError:  # the file system has no hard links
            pass
    os.replace(sibling, target)


def _unsynced(target: Path, error: OSError) -> DataError:
    return DataError(
        f"{target} was written, but the disk reports: {error.strerror}",
        "check the disk, and check the file with scvae info",
    )
