"""Text for messages: a number with a noun in the singular or plural ("2 cells"), or a number beside a limit."""

from __future__ import annotations


def amount(n: int, one: str, many: str | None = None) -> str:
    """Return a number followed by a noun in the singular or plural, such as "2 cells". The noun may include a verb.

    >>> amount(1, "cell"), amount(2000, "batch"), amount(0, "anomaly")
    ('1 cell', '2,000 batches', '0 anomalies')
    >>> amount(1, "cell has", "cells have"), amount(2, "cell has", "cells have")
    ('1 cell has', '2 cells have')
    """
    return f"{n:,} {noun(n, one, many)}"


def noun(n: int, one: str, many: str | None = None) -> str:
    """Return a noun in the singular if `n` is 1, and otherwise in the plural.

    The plural is `many`, or the regular plural of `one`.

    >>> noun(1, "gene"), noun(2, "gene"), noun(2, "epoch")
    ('gene', 'genes', 'epochs')
    """
    return one if n == 1 else many or _plural(one)


def beside(value: float, limit: float) -> str:
    """Return a number with at least three decimal places, and with so many that it differs from a limit beside it.

    >>> beside(0.951, 0.95), beside(0.95004, 0.95), beside(0.95, 0.95)
    ('0.951', '0.95004', '0.950')
    """
    places = 3
    while value != limit and places < 9 and float(f"{value:.{places}f}") == limit:
        places += 1
    return f"{value:.{places}f}"


def _plural(one: str) -> str:
    if one.endswith("y") and not one.endswith(("ay", "ey", "oy")):
        return f"{one[:-1]}ies"
    # A noun that ends in "ch" may need only an "s" ("epochs"), but a noun that ends in "tch" needs "es" ("batches").
    return one + ("es" if one.endswith(("s", "x", "tch", "sh")) else "s")
