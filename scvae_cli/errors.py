"""Errors a user can mend: one message, one hint, one exit code each.

Library code raises them; the command line's single boundary prints them. Anything else that escapes is a bug
and keeps its traceback. `assert` is for invariants, never for a user's mistake.
"""

from __future__ import annotations


class ScvaeError(Exception):
    """A problem the user can mend.

    Parameters
    ----------
    message
        What is wrong, in one line, naming the thing that is wrong.
    hint
        What mends it: a command, an option, or the fact to check.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(ScvaeError):
    """An option or configuration value that cannot be meant."""

    exit_code = 2


class DataError(ScvaeError):
    """Something about the cells, the genes or the file that holds them."""

    exit_code = 3


class ModelError(ScvaeError):
    """A model folder that is missing, damaged, or does not fit the data."""

    exit_code = 4


class DeviceError(ScvaeError):
    """A device or precision that was asked for and is not there."""

    exit_code = 5


class Interrupted(ScvaeError):
    """The user ended it before it was done; what can be resumed was saved."""

    exit_code = 130


class ScvaeWarning(UserWarning):
    """Something the user should know; the command line prints it on stderr."""
