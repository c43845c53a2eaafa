"""Replacements for standard output and standard error that accept any text and never interrupt a command.

Standard output may be closed, may be a file on a full disk, or may have an encoding without characters such as "→". A
command that has finished its work must not fail because its last line cannot be printed. Standard output and standard
error are therefore replaced by streams that store the first error that occurs while text is printed. At the end of the
command, `Streams.finish` raises an error if the result could not be printed.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from dataclasses import dataclass
from typing import Any, TextIO

from scvae_cli.errors import DataError

# ASCII text that replaces a character, if the encoding of a stream lacks the character.
_PLAIN = {"→": "->", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "≈": "~", "β": "beta"}
_PLAIN |= {"‘": "'", "’": "'", "“": '"', "”": '"', "·": ".", "•": "*"}
# Name of the error handler (as in `codecs.register_error`) that replaces missing characters by ASCII text.
ERRORS = "scvae_plain"


class PatientStream(io.RawIOBase):
    """A stream whose writes raise no errors.

    After a failed write, the stream stores the error and discards all data.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Always True: the stream accepts data."""
        return True

    def fileno(self) -> int:
        """The number of the file descriptor."""
        return self.descriptor

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return os.isatty(self.descriptor)

    def write(self, data: Any) -> int:
        """Write all data, and store the error if writing fails."""
        view = memoryview(data).cast("B")
        done = 0
        while self.error is None and done < len(view):
            try:
                done += os.write(self.descriptor, view[done:])
            except BlockingIOError:  # another program made the pipe non-blocking
                select.select([], [self.descriptor], [])
            except OSError as error:
                self.error = error
        return len(view)


@dataclass(frozen=True, kw_only=True)
class Streams:
    """The stream that replaces the standard output of this process.

    Parameters
    ----------
    out
        The stream, which stores the first error of a write.
    """

    out: PatientStream

    def finish(self) -> None:
        """Write the text that is still in the buffer to standard output.

        If the program that reads the output has ended, as in `scvae ... | head`, no error is raised.

        Raises
        ------
        DataError
            If the result could not be written to standard output.
        """
        sys.stdout.flush()
        if self.out.error is not None and self.out.error.errno != errno.EPIPE:
            raise DataError(
                f"the result could not be written to standard output: {self.out.error.strerror}",
                "all files of the command were written; send standard output to another place",
            )


def replace_streams() -> Streams:
    """Replace standard output and standard error of this process.

    A closed stream is first connected to the null device, which discards all data. If a stream stayed closed, a data
    file could take the place of the stream, and messages would be written into the data file.
    """
    register_plain_characters()
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # `os.open` returns the lowest free number, which is `descriptor`.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    out, err = PatientStream(1), PatientStream(2)
    sys.stdout = _text(out, sys.stdout, line_buffering=out.isatty())
    sys.stderr = _text(err, sys.stderr, line_buffering=True)
    return Streams(out=out)


def register_plain_characters() -> None:
    """Register the error handler `ERRORS`, which replaces characters that are not in an encoding."""
    codecs.register_error(ERRORS, _plainly)


def _text(stream: PatientStream, old: TextIO | None, *, line_buffering: bool) -> TextIO:
    # If a stream was closed when the process started, Python sets the stream to None.
    encoding = "utf-8" if old is None else old.encoding
    return io.TextIOWrapper(io.BufferedWriter(stream), encoding=encoding, errors=ERRORS, line_buffering=line_buffering)


def _plainly(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace a character that the encoding of a stream does not have.

    A byte that is not valid UTF-8, for example in a file name, is written unchanged.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character, after = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), after
    return _PLAIN.get(character) or character.encode("ascii", "backslashreplace").decode(), after
