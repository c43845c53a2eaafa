"""Errors that a user can fix. Each error has a message, a hint and an exit code.

Library code raises errors of the class `ScvaeError`, and one function of the command line prints them. An exception of
any other class is a bug, and its traceback is shown. `assert` checks invariants of the code and never input from the
user.
"""

from __future__ import annotations

from unicodedata import category


def one_line(text: str) -> str:
    """Escape control characters, such as line breaks, so that a name in a file cannot add false lines to a message.

    >>> one_line("CD4\\nerror: all is lost")
    'CD4\\\\nerror: all is lost'
    """
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def _is_shown(character: str) -> bool:
    # Bytes of a file name that are not UTF-8 are not escaped, so that the user can paste the name into a shell.
    of_name = "\udca0" <= character <= "\udcff"
    return character.isprintable() or category(character) == "Zs" or of_name


class ScvaeError(Exception):
    """A problem that the user can fix.

    Parameters
    ----------
    message
        Description of the problem in one line, including the name of the file, option or value.
    hint
        How to fix the problem: a command, an option, or something to check.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        self.message = one_line(message)
        self.hint = one_line(hint)
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ScvaeError):
    """An option or configuration value is invalid."""

    exit_code = 2


class DataError(ScvaeError):
    """The cells, the genes or the data file have a problem."""

    exit_code = 3


class ChoiceError(DataError):
    """The data have several parts, such as modalities, and an option must say which one is meant."""


class ModelError(ScvaeError):
    """A model folder is missing or damaged, or the model does not match the data."""

    exit_code = 4


class DeviceError(ScvaeError):
    """The requested device or precision is not available."""

    exit_code = 5


class Interrupted(ScvaeError):
    """The user interrupted a training. The training can be resumed, because its state was saved."""

    exit_code = 130


class ScvaeWarning(UserWarning):
    """A warning for the user, in one line; the command line prints it to stderr."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
