"""Functions that report the progress of a long computation, with or without a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar


class Advance(Protocol):
    """A function that reports how much of a computation was done since the last report."""

    def __call__(self, amount: float = 1, note: str = "", total: float | None = None) -> None:
        """Add `amount` to the work that is done; `note` and `total` replace the note and the total that are shown."""


class Progress(Protocol):
    """A function that opens a progress bar; some implementations show nothing."""

    def __call__(self, title: str, total: float | None) -> AbstractContextManager[Advance]:
        """Return a context manager that shows a title, and the share of the work that is done, until its block ends."""


@contextlib.contextmanager
def silent(title: str, total: float | None) -> Iterator[Advance]:  # noqa: ARG001  # the signature is Progress's
    """Show no progress bar, but accept the same arguments as functions that show one (`Progress`)."""

    def advance(amount: float = 1, note: str = "", total: float | None = None) -> None:
        pass

    yield advance


class _Rows(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


Block = TypeVar("Block", bound=_Rows)
Item = TypeVar("Item")


def counted(blocks: Iterable[Block], advance: Advance) -> Iterator[Block]:
    """Yield blocks of rows, and report the number of rows of each block as work done."""
    for block in blocks:
        yield block
        advance(block.shape[0])


def tracked(items: Iterable[Item], progress: Progress, title: str, total: float | None) -> Iterator[Item]:
    """Yield items, and show how many of them are done."""
    with progress(title, total) as advance:
        for item in items:
            yield item
            advance(1)
