"""Numbers with a noun in the singular or plural, for messages."""

from __future__ import annotations


def amount(n: int, one: str, many: str | None = None) -> str:
    """Return a number and its noun, or its noun and verb.

    >>> amount(1, "cell"), amount(2000, "batch"), amount(0, "anomaly")
    ('1 cell', '2,000 batches', '0 anomalies')
    >>> amount(1, "cell has", "cells have"), amount(2, "cell has", "cells have")
    ('1 cell has', '2 cells have')
    """
    return f"{n:,} {noun(n, one, many)}"


def noun(n: int, one: str, many: str | None = None) -> str:
    """Return `one` if the number is 1, and otherwise `many`, which by default is the regular plural of `one`.

    >>> noun(1, "gene"), noun(2, "gene"), noun(2, "epoch")
    ('gene', 'genes', 'epochs')
    """
    return one if n == 1 else many or _plural(one)


def _plural(one: str) -> str:
    if one.endswith("y") and not one.endswith(("ay", "ey", "oy")):
        return f"{one[:-1]}ies"
    # "epoch" ends with the sound k.
    return one + ("es" if one.endswith(("s", "x", "tch", "sh")) else "s")
