"""Handling of signals, such as Ctrl-C, that end a command.

Signals are delayed while files are written. When a signal ends a command, a message says which files were written.

After Ctrl-C, Python raises a KeyboardInterrupt at any point of the program. If a KeyboardInterrupt is raised in a
Python function that HDF5 calls, HDF5 ignores the exception and leaves a wrong file. While files are written, signals
are therefore only recorded. A recorded signal takes effect after the write, or at the next call of `stop_if_asked`,
where the unfinished file can be discarded.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

# SIGINT is sent by Ctrl-C, SIGTERM by a system or scheduler that ends the process, and SIGHUP by a terminal that is
# closed.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Three variables: the signals that arrived during the current write, the handlers that will receive the signals after
# the write, and the files that were written.
_waiting: list[int] | None = None
_handlers: dict[int, object] = {}
_written: list[str] = []
# Id of the process that prints a message when a signal ends the command. Child processes print nothing.
_process = 0
# The signal that asked a training to stop.
_asked = signal.SIGINT


class Interruption(KeyboardInterrupt):
    """Raised in `stop_if_asked` if a signal has arrived, so that the unfinished file is discarded."""


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Context manager that delays SIGINT, SIGTERM and SIGHUP: their handlers are called after the `with` block.

    Nested `with` blocks are allowed; signals are handled after the outermost block. Signals that the process ignores
    remain ignored. Outside the main thread, no signal is delayed, because Python runs signal handlers only in the main
    thread.
    """
    global _waiting
    if _waiting is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _waiting = waiting = []
    _handlers.clear()

    def note(number: int, _frame: FrameType | None) -> None:
        waiting.append(number)

    try:
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):  # None: the handler was not set by Python and cannot be restored
                _handlers[number] = handler
                signal.signal(number, note)
        yield
    finally:
        _waiting = None
        # SIGINT is restored last, because from then on a KeyboardInterrupt can be raised at any point.
        for number in reversed(SIGNALS):
            if number in _handlers:
                signal.signal(number, _handlers[number])  # type: ignore[arg-type]  # `getsignal` returned this handler
        if waiting:
            signal.raise_signal(waiting[0])


def stop_if_asked() -> None:
    """Raise an `Interruption` if a signal that ends the process has arrived while a file is written.

    Call this function where an unfinished file can be discarded, and never in a function that HDF5 calls.
    """
    if _waiting and threading.current_thread() is threading.main_thread():
        handler = _handlers[_waiting[0]]
        if handler in (signal.SIG_DFL, signal.default_int_handler, end):
            raise Interruption


def note_written(path: Path) -> None:
    """Record that a file or folder was written, so that the message about an interruption can name it."""
    _written.append(str(path))


def note_asked(number: int) -> None:
    """Record which signal asked a training to stop, because the exit code depends on the signal."""
    global _asked
    _asked = signal.Signals(number)


def begin() -> None:
    """Forget which files earlier commands of this process wrote."""
    global _asked
    _written.clear()
    _asked = signal.SIGINT


def exit_code() -> int:
    """Return the exit code of an interrupted command: 128 plus the number of the signal."""
    return 128 + int(_asked)


def message() -> str:
    """Return the message of an interrupted command."""
    if not _written:
        return "interrupted; the data was not changed"
    return f"interrupted; the results were written to {', '.join(dict.fromkeys(_written))}"


def end_on_signals() -> None:
    """Make signals such as Ctrl-C end this process with a message. Signals that the process ignores remain ignored."""
    global _process
    _process = os.getpid()
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, end)


def end(number: int, _frame: FrameType | None = None) -> NoReturn:
    """End this process with a message and the exit code 128 + `number`.

    No exception is raised, because other code could catch the exception. No temporary files need to be removed, because
    temporary files exist only while signals are delayed.
    """
    if os.getpid() != _process:  # in a child process; only the main process prints a message
        os._exit(128 + number)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # A progress bar may have hidden the cursor and left an incomplete line.
        terminal = b"\r\x1b[K\x1b[?25h" if sys.stderr.isatty() else b""
        os.write(2, terminal + os.fsencode(f"{message()}\n"))
    os._exit(128 + number)
