"""The memory that this process can still allocate, and errors for computations that need more memory.

Linux grants almost every request for memory, and kills the process later, when too much memory is used. If an option
decides how much memory a computation needs, scvae therefore compares the needed memory with the free memory before the
computation starts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from scvae_cli.errors import ConfigError, DeviceError, ScvaeError

# Files in which Linux reports the free memory, and the memory limit and the memory use of a container.
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_STATM = Path("/proc/self/statm")
# Memory (address space) in bytes that torch, numba and their threads need. If less memory is free, C++ code ends the
# process without a message.
_LIBRARIES = 2**30
# Messages of operating systems and libraries that could not allocate memory. (The error ENOMEM has the same text in
# every C library of Linux.)
_REFUSALS = re.compile(
    r"can(no|')t allocate memory|unable to allocate|out of memory|failed to map segment|std::bad_alloc|"
    r"can't start new thread|resource temporarily unavailable",
    re.IGNORECASE,
)
_ASKED = re.compile(r"tried to allocate (?P<bytes>\d+) bytes|allocate (?P<size>[\d.]+ [KMGTPE]i?B)", re.IGNORECASE)


def free_bytes() -> int | None:
    """Return the number of bytes that this process can still allocate, or None if the system does not report it."""
    limits = [_of_machine(), _of_container(), _of_process()]
    return min((limit for limit in limits if limit is not None), default=None)


def refuse_small_limit() -> None:
    """Raise a DeviceError if the memory limit of the shell (`ulimit -v`) is too low to load torch and other libraries.

    If a library cannot get enough memory while the library is loaded, the process may end without a message.
    """
    free = _of_process()
    if free is not None and free < _LIBRARIES:
        raise DeviceError(
            f"not enough memory: ulimit -v leaves {shown_bytes(free)}, and libraries need {shown_bytes(_LIBRARIES)}",
            "raise the limit: ulimit -v unlimited",
        )


def refuse_too_large(n_bytes: float, what: str, hint: str | Callable[[int], str]) -> None:
    """Raise a ConfigError if a computation needs more memory than is free.

    Parameters
    ----------
    n_bytes
        Number of bytes that the computation needs.
    what
        The computation and its size, as the subject of a sentence: "--steps 1000000".
    hint
        Hint that says which size would fit into memory, or a function that makes this hint from the number of free
        bytes.
    """
    free = free_bytes()
    if free is None or n_bytes <= free:
        return
    raise ConfigError(
        f"{what} needs {shown_bytes(n_bytes)} of memory, but only {shown_bytes(free)} are free",
        hint if isinstance(hint, str) else hint(free),
    )


def out_of_memory(error: BaseException) -> ScvaeError | None:
    """Convert an exception about missing memory to the error that the user sees.

    Return None for any other exception.
    """
    kinds = (MemoryError, RuntimeError, OSError, ImportError, SystemError)
    if not isinstance(error, kinds):
        return None
    # Some libraries replace the exception of the system by their own exception, whose message is less specific. The
    # messages of all exceptions in the chain are therefore searched.
    chain: list[BaseException] = [error]
    while (earlier := chain[-1].__cause__ or chain[-1].__context__) is not None and earlier not in chain:
        chain.append(earlier)
    text = "\n".join(map(str, chain))
    if not (isinstance(error, MemoryError) or _REFUSALS.search(text)):
        return None
    found = _ASKED.search(text)
    asked = "" if found is None else f": {found['size'] or shown_bytes(int(found['bytes']))} were requested"
    free = free_bytes()
    rest = "" if free is None else f"{',' if asked else ':'} {shown_bytes(free)} are free"
    return DeviceError(
        f"not enough memory{asked}{rest}",
        "use a machine with more memory, fewer cells or genes (--n-top-genes), or smaller numbers in the options",
    )


def shown_bytes(n_bytes: float) -> str:
    """Return a number of bytes as text.

    >>> shown_bytes(3 * 2**30)
    '3.0 GiB'
    """
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} PiB"


def _of_machine() -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
        return None if found is None else int(found[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _of_container() -> int | None:
    try:
        most = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (_CGROUP / "memory.current").read_text(encoding="ascii").strip()
        return None if most == "max" else max(int(most) - int(used), 0)
    except (OSError, ValueError):
        return None


def _of_process() -> int | None:
    """Return how many bytes `ulimit -v` still allows this process to use, or None without a limit."""
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    try:
        used = int(_STATM.read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        used = 0
    return max(most - used, 0)
