"""Tables in the text that commands print."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

from scvae_cli.errors import one_line

_BETWEEN = "  "


def table_lines(rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,), indent: str = "") -> list[str]:
    """Return the lines of a table whose columns are as wide as their widest cells, with two spaces between columns.

    Parameters
    ----------
    rows
        Cells of each row, as text. All rows have the same number of cells; titles of the columns are rows like others.
    left
        Positions of the columns that are aligned on the left. The other columns are aligned on the right.
    indent
        Text before every line.

    >>> print("\\n".join(table_lines([("gene", "change"), ("HLA-DRB1", "+12.50"), ("CD3", "-1.00")])))
    gene      change
    HLA-DRB1  +12.50
    CD3        -1.00
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    columns = list(zip(*cells, strict=True))
    widths = [max(map(shown_width, column)) for column in columns]
    lines = []
    for row in cells:
        parts = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - shown_width(cell))
            parts.append(cell + space if i in left else space + cell)
        lines.append(indent + _BETWEEN.join(parts).rstrip())
    return lines


def shown_width(text: str) -> int:
    """Return the number of columns of a terminal that a text takes. Characters of Chinese take two columns.

    >>> shown_width("T cell"), shown_width("细胞"), shown_width("e\\u0301")
    (6, 4, 1)
    """
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )
