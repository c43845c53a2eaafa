"""Progress of a long computation, reported to whoever shows it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar


class Advance(Protocol):
    """Reports that some units of work are done."""

    def __call__(self, amount: float = 1, note: str = "", total: float | None = None) -> None:
        """Add to the work done; a note or a new total replaces the one shown."""


class Progress(Protocol):
    """Opens a progress bar, or nothing that is seen."""

    def __call__(self, title: str, total: float | None) -> AbstractContextManager[Advance]:
        """Show a title and, until the block ends, how much of the total is done."""


@contextlib.contextmanager
def silent(title: str, total: float | None) -> Iterator[Advance]:  # noqa: ARG001  # the signature is Progress's
    """Progress that nobody sees."""

    def advance(amount: float = 1, note: str = "", total: float | None = None) -> None:
        pass

    yield advance


class _Rows(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


Block = TypeVar("Block", bound=_Rows)
Item = TypeVar("Item")


def counted(blocks: Iterable[Block], advance: Advance) -> Iterator[Block]:
    """Pass blocks of rows on, reporting the rows of each."""
    for block in blocks:
        yield block
        advance(block.shape[0])


def tracked(items: Iterable[Item], progress: Progress, title: str, total: float | None) -> Iterator[Item]:
    """Pass items on, showing how many of them are done."""
    with progress(title, total) as advance:
        for item in items:
            yield item
            advance(1)
