"""A child process that stops at each system call, so that tests can kill or signal the process at any system call."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

# From sys/ptrace.h.
_TRACEME, _SYSCALL, _DETACH, _SETOPTIONS = 0, 24, 17, 0x4200
_SYSGOOD, _EXITKILL = 0x1, 0x100000
_WALL = 0x40000000
_STOP = signal.SIGTRAP | 0x80


@dataclass(frozen=True)
class Ended:
    """Result of a child process: exit code (minus the signal that killed it), output, number of stops at system calls.

    Each system call stops the process twice, before and after it. `sent` is whether the signal was sent.
    """

    code: int
    out: str
    err: str
    stops: int
    sent: bool


def can_trace() -> bool:
    """Whether this system lets a process follow the system calls of its children."""
    try:
        return sys.platform == "linux" and forked(lambda: 0, Path("/tmp"), until=None, number=0).stops > 0
    except OSError:
        return False


def forked(work: Callable[[], int], folder: Path, **how: Any) -> Ended:
    """Run `work`, which returns an exit code, in a fork of this process; see `fork_here`."""
    ended = fork_here(folder, **how)
    if ended is None:
        end_child(work)
    return ended


def fork_here(
    folder: Path,
    *,
    traced: bool = True,
    until: int | None = None,
    number: int = 0,
    prepare: Callable[[], None] = lambda: None,
) -> Ended | None:
    """Fork this process; return None in the child, and the result of the child in the parent.

    The child calls `prepare` before its system calls are followed.

    If `traced` is True, the child gets the signal `number` when the child is stopped for the nth time (`until`). The
    stdout and stderr of the child are kept in `folder` until the child ends. The child must end with `end_child`.
    """
    outputs = [folder / f".{os.getpid()}.{name}" for name in ("out", "err")]
    descriptors = [os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600) for path in outputs]
    for path in outputs:
        path.unlink()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        for place, descriptor in zip((1, 2), descriptors, strict=True):
            os.dup2(descriptor, place)
        sys.stdout, sys.stderr = (os.fdopen(place, "w", closefd=False) for place in (1, 2))
        prepare()
        if traced:
            _ptrace(_TRACEME, 0)
            os.kill(os.getpid(), signal.SIGSTOP)
        return None
    stops, sent, status = _follow(process, until, number) if traced else (0, False, None)
    if status is None:
        _, status = os.waitpid(process, _WALL)
    texts = []
    for descriptor in descriptors:
        os.lseek(descriptor, 0, os.SEEK_SET)
        with os.fdopen(descriptor, "rb") as file:
            texts.append(file.read().decode(errors="replace"))
    return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1], stops, sent)


def end_child(work: Callable[[], int]) -> NoReturn:
    """Run `work` and end this process with the exit code that `work` returns, or with 99 after an exception."""
    code = 99
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _follow(process: int, until: int | None, number: int) -> tuple[int, bool, int | None]:
    _, status = os.waitpid(process, _WALL)
    if not os.WIFSTOPPED(status):
        raise PermissionError("system calls cannot be followed here")
    _ptrace(_SETOPTIONS, process, _SYSGOOD | _EXITKILL)
    stops, passed_on = 0, 0
    while True:
        _ptrace(_SYSCALL, process, passed_on)
        _, status = os.waitpid(process, _WALL)
        if not os.WIFSTOPPED(status):
            return stops, False, status
        passed_on = os.WSTOPSIG(status)
        if passed_on != _STOP:
            continue
        passed_on = 0
        stops += 1
        if stops == until:
            os.kill(process, number)
            if number != signal.SIGKILL:
                _ptrace(_DETACH, process)
            return stops, True, None


def _ptrace(request: int, process: int, data: int = 0) -> None:
    if _call()(request, process, None, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _call() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).ptrace
    function.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_long
    return function
