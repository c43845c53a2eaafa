"""A lock that lets only one process of scvae at a time write a file or a folder.

The process that writes creates a lock file next to the target, and locks the lock file with the function flock of the
operating system. The operating system releases the lock when the process ends, even if the process is killed. The lock
also works between containers that share a folder, although process ids and host names may be the same in two
containers. The lock file is removed after the write. If a killed process left a lock file behind, the next writer uses
the same lock file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from scvae_cli.errors import DataError, ScvaeError, ScvaeWarning
from scvae_cli.interruption import stop_if_asked

WAIT_SECONDS = 60.0
_SILENT_SECONDS = 2.0
_PAUSE_SECONDS = 0.02
# Errors of file systems that have no locks, such as some network file systems.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
# File names of more than this number of bytes are shortened in the names of lock files and temporary files, because a
# file name may have at most 255 bytes.
_LONGEST = 180


@contextlib.contextmanager
def only_writer(
    target: Path, *, wait: float | None = None, error: type[ScvaeError] = DataError, work: str = "writing"
) -> Iterator[bool]:
    """Context manager in whose block no other process of scvae writes `target`.

    The context manager yields True, or False if the file system has no locks. If another process is writing, scvae
    waits for at most `wait` seconds (WAIT_SECONDS by default). A signal such as Ctrl-C ends the waiting. Each kind of
    `work`, such as "writing" or "training", has a separate lock, and the error message names the kind of work.

    Raises
    ------
    ScvaeError
        If another process still holds the lock after `wait` seconds, or if a folder or link has the name of the lock
        file. The argument `error` is the class of the error to raise.
    OSError
        If the lock file cannot be created.
    """
    path = target.parent / f".{stem(target)}{'' if work == 'writing' else '.' + work}.scvae.lock"
    descriptor = _lock(path, target, WAIT_SECONDS if wait is None else wait, error, work)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        # The file is removed while it is locked, so that a waiting process notices the removal and creates a new file.
        with contextlib.suppress(OSError):
            os.unlink(path)
        os.close(descriptor)


def stem(target: Path) -> str:
    """Return the name of a file, shortened if it is long, for the names of the lock file and temporary files."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST:
        return target.name
    return os.fsdecode(name[: _LONGEST // 2]) + hashlib.sha256(name).hexdigest()[:16]


def locked_by_another(descriptor: int) -> bool:
    """Try to lock an open file; return True if another process has locked the file, or if locking is impossible."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _lock(path: Path, target: Path, wait: float, error: type[ScvaeError], work: str) -> int | None:
    began = time.monotonic()
    warned = False
    while True:
        descriptor = _open(path, target, error)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(path, descriptor):
                return descriptor
        except BlockingIOError:
            pass
        except OSError as problem:
            os.close(descriptor)
            if problem.errno not in _NO_LOCKS:
                raise
            with contextlib.suppress(OSError):
                os.unlink(path)
            return None
        os.close(descriptor)
        waited = time.monotonic() - began
        if waited > wait:
            raise error(
                f"another scvae is {work} {target}; nothing was written",
                "run the command again when the other scvae has ended",
            )
        if waited > _SILENT_SECONDS and not warned:
            warned = True
            text = f"waiting at most {wait:.0f} s for another scvae, which is {work} {target}"
            warnings.warn(ScvaeWarning(text), stacklevel=4)
        stop_if_asked()
        time.sleep(_PAUSE_SECONDS)


def _open(path: Path, target: Path, error: type[ScvaeError]) -> int:
    """Open the lock file, or create it.

    If a link or a folder has the name of the lock file, an error is raised, and the link or folder is not changed.
    """
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:
            try:
                descriptor = os.open(path, os.O_RDWR | flags)
            except PermissionError:  # the lock file belongs to another user; a file that can be read can be locked
                descriptor = os.open(path, os.O_RDONLY | flags)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | flags, 0o644)
                # With the permissions 0o644, other users of the folder can lock the file too. `fchmod` sets permissions
                # regardless of the umask.
                os.fchmod(descriptor, 0o644)
                return descriptor
            continue
        except OSError as problem:
            if problem.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise _in_the_way(path, target, error) from problem
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _in_the_way(path, target, error)
        return descriptor


def _in_the_way(path: Path, target: Path, error: type[ScvaeError]) -> ScvaeError:
    return error(f"{path} is in the way of writing {target}: it is not a file", f"move or remove {path.name}")


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
