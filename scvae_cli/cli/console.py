"""Output of the command line: results are printed to stdout, and all other messages to stderr.

With `--json`, stdout contains one JSON object and nothing else. With `--quiet`, stderr contains only warnings and
errors. Progress bars are shown only if stderr is a terminal.
"""

from __future__ import annotations

import contextlib
import json as json_module
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from scvae_cli.errors import ScvaeError, ScvaeWarning, one_line
from scvae_cli.interruption import SIGNALS, note_asked
from scvae_cli.progress import Advance, silent


class Console:
    """The output of the command line (a `Shell`): results, messages and progress bars.

    Parameters
    ----------
    json
        Print the result as one JSON object.
    quiet
        Print only the result, warnings and errors.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def info(self, text: str) -> None:
        """Print a message on stderr, unless `quiet` is True."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Print a warning on stderr, even if `quiet` is True."""
        print(f"warning: {one_line(text)}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[Callable[[], bool]]:
        """Treat the first signal (Ctrl-C, SIGTERM or SIGHUP) as a request to stop; a second signal ends the command."""
        asked = False
        before: dict[int, Any] = {}

        def ask(number: int, _frame: object) -> None:
            nonlocal asked
            if asked:
                restore()
                signal.raise_signal(number)
                return
            asked = True
            note_asked(number)
            with contextlib.suppress(OSError):  # the terminal may have been closed
                self.info("stopping after this epoch (press Ctrl-C again to stop at once)")

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, ask)
        try:
            yield lambda: asked
        finally:
            restore()

    def next_step(self, text: str) -> None:
        """Print the command to run next."""
        self.info(f"next: {one_line(text)}")

    def result(self, values: dict[str, Any], text: str) -> None:
        """Print the result, as a JSON object if `json` is True and otherwise as text."""
        lines = json_module.dumps(_plain(values), indent=1, allow_nan=False) if self.json else text
        print("\n".join(map(one_line, lines.split("\n"))), flush=True)

    @contextlib.contextmanager
    def progress(self, title: str, total: float | None) -> Iterator[Advance]:
        """Show a progress bar on stderr, and remove the bar when the `with` block ends."""
        if self.quiet or not sys.stderr.isatty():
            with silent(title, total) as advance:
                yield advance
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        # The bar is narrow, so that the note fits into 80 columns.
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total, note="")

            def advance(amount: float = 1, note: str = "", total: float | None = None) -> None:
                bar.update(task, advance=amount, total=total, note=note)

            yield advance


def print_error(error: ScvaeError) -> None:
    """Print an error: one line with the message and one line with the hint."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def print_warnings() -> None:
    """Make Python print each warning of scvae once and as one line, and hide the warnings of other packages."""
    printed: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, ScvaeWarning) and str(message) not in printed:
            printed.add(str(message))
            print(f"warning: {message}", file=sys.stderr, flush=True)

    warnings.simplefilter("always", ScvaeWarning)
    warnings.showwarning = show


def _plain(value: Any) -> Any:
    """Convert a value to JSON types: numpy scalars become numbers, NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value - value != 0:
        return None
    return value
