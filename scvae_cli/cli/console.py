"""The one sink: results on stdout, everything else on stderr.

With `--json` the result is one object and stdout holds nothing else; with `--quiet` stderr holds only warnings and
errors. Progress bars are drawn on a terminal and nowhere else.
"""

from __future__ import annotations

import contextlib
import json as json_module
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from scvae_cli.errors import ScvaeError, ScvaeWarning
from scvae_cli.progress import Advance, silent


class Console:
    """Where a command says what it has to say.

    Parameters
    ----------
    json
        Print the result as one JSON object.
    quiet
        Say nothing beyond the result, warnings and errors.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet

    def info(self, text: str) -> None:
        """Something worth knowing on the way."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Something that may need a change; said even when quiet."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[Callable[[], bool]]:
        """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one stops at once."""
        asked = False

        def ask(_signal: int, _frame: object) -> None:
            nonlocal asked
            if asked:
                raise KeyboardInterrupt
            asked = True
            self.info("stopping after this epoch (press Ctrl-C again to stop at once)")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield lambda: asked
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def next_step(self, text: str) -> None:
        """What to run next."""
        self.info(f"next: {text}")

    def result(self, values: dict[str, Any], text: str) -> None:
        """The answer: an object for pipelines, or text for people."""
        shown = json_module.dumps(_plain(values), indent=1, allow_nan=False) if self.json else text
        print(shown, flush=True)

    @contextlib.contextmanager
    def progress(self, title: str, total: float | None) -> Iterator[Advance]:
        """A progress bar on stderr, gone when the block ends."""
        if self.quiet or not sys.stderr.isatty():
            with silent(title, total) as advance:
                yield advance
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        # Narrow enough that the note fits into 80 columns.
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
    """One line for what is wrong, one for what mends it."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def print_warnings() -> None:
    """From now on, show scvae's own warnings as one line each and nobody else's."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if issubclass(category, ScvaeWarning):
            print(f"warning: {message}", file=sys.stderr, flush=True)

    warnings.simplefilter("always", ScvaeWarning)
    warnings.showwarning = show


def _plain(value: Any) -> Any:
    """Values as JSON has them: numpy scalars as numbers, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and value - value != 0:
        return None
    return value
