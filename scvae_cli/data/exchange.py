"""Exchange of two folders in one step, so that at every moment both names refer to complete folders."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

# Constants from linux/fs.h and linux/fcntl.h.
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two files or folders in one step.

    Returns False, and does nothing, if the system cannot exchange two names in one step.

    Raises an OSError if the exchange fails for another reason, for example because permission is denied.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):  # not Linux, or an old C library
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    problem = ctypes.get_errno()
    if problem in _UNSUPPORTED:
        return False
    raise OSError(problem, os.strerror(problem), str(other))
