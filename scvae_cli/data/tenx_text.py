"""Reading the three text files of a 10x mtx folder; the header of the matrix limits how much of each file is read.

Without a limit, a few bytes of a gzipped file may be unpacked to gigabytes. A broken download often ends in zero bytes,
and scipy's reader of matrices crashes on zero bytes.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path

_BLOCK_BYTES = 1 << 20
# Largest number of bytes in a line. Names have tens of characters, and values of a matrix have fewer.
_LONGEST_LINE = 1 << 12
# Largest number of empty lines in a table.
_EMPTY_LINES = 100


def open_text(path: Path) -> io.BufferedIOBase:
    """Open a file, gzipped or not, to read its text as bytes."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def check_matrix(matrix: Path) -> tuple[int, int, int]:
    """Return the numbers of rows, columns and values that the header of a matrix.mtx declares.

    Raises a ValueError if the header is not in the first MiB, if the file has zero bytes (NUL), or if the file is
    longer than its header allows.
    """
    from scipy.io import mminfo

    with open_text(matrix) as file:
        head = file.read(_BLOCK_BYTES)
        _refuse_nul(head, matrix)
        # If the last line were cut off, its numbers would be read as smaller numbers.
        whole = head[: head.rfind(b"\n") + 1] if len(head) == _BLOCK_BYTES else head
        n_rows, n_columns, n_values = mminfo(io.BytesIO(whole))[:3]
        left = n_values * _LONGEST_LINE
        while block := file.read(_BLOCK_BYTES):
            _refuse_nul(block, matrix)
            left -= len(block)
            if left < 0:
                raise ValueError(f"{matrix.name} is longer than the {n_values:,} values that it declares")
    return int(n_rows), int(n_columns), int(n_values)


def read_rows(table: Path, n: int) -> list[list[str]]:
    """Return the fields of each line of a table without a header; empty lines are skipped.

    Raises a ValueError if the table has too many lines, a line that is too long, or zero bytes (NUL).
    """
    rows: list[list[str]] = []
    with open_text(table) as file:
        for number in range(1, n + _EMPTY_LINES + 2):
            line = file.readline(_LONGEST_LINE + 1)
            if not line:
                return rows
            if len(line) > _LONGEST_LINE:
                raise ValueError(f"line {number:,} of {table.name} has more than {_LONGEST_LINE:,} bytes")
            _refuse_nul(line, table)
            text = line.decode().removesuffix("\n").rstrip("\r")
            if text.strip():
                rows.append(text.split("\t"))
    raise ValueError(f"{table.name} has more than {n + _EMPTY_LINES:,} lines, but the matrix declares {n:,}")


def _refuse_nul(text: bytes, path: Path) -> None:
    if b"\0" in text:
        raise ValueError(f"{path.name} has NUL bytes (zeros), so the file is damaged or incomplete")
