"""Definition of a verb: a command of scvae, and the Python function of the same name.

This module imports little, because `scvae --help` loads the definitions of all commands and should start quickly.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scvae_cli.importing import importing
from scvae_cli.options import Options


@dataclass(frozen=True, kw_only=True)
class Verb:
    """An operation of scvae, available as a command and as a Python function of the same name.

    Parameters
    ----------
    name
        Name of the command and of the Python function.
    panel
        Heading under which `scvae --help` lists the command.
    options
        Class of the command's options.
    home
        Place of the implementation, as "module:name". The module is imported when it is first needed. The
        implementation is a subclass of `scvae_cli.question.Question`, or a function that takes a `Request` and a
        `Shell` and returns an `Outcome`.
    about
        Help text of the command: a line that says what the command does, then further paragraphs.
    example
        An example of a command line.
    python_about
        Text that replaces `about` in the Python docstring, if `about` would be wrong for the Python function.
    argument, argument_help
        Placeholder and help text of the first argument on the command line.
    takes_model
        Whether the command has the option `--model`, which names a trained model.
    trains
        Whether `--model` names a folder to write (True) or a folder to read (False).
    in_python
        Whether the Python API has a function that corresponds to the command.
    inplace
        Whether results are written into the data, so that the Python function has the argument `inplace`.
    returns
        Text for the docstring of the Python function that says what the function returns.
    """

    name: str
    panel: str
    options: type[Options]
    home: str
    about: str
    example: str
    python_about: str = ""
    argument: str = "DATA"
    argument_help: str = "File with the cells: .h5ad or, with --output, also 10x .h5, .h5mu, .zarr or a 10x mtx folder."
    takes_model: bool = True
    trains: bool = False
    in_python: bool = True
    inplace: bool = True
    returns: str = "None. With `inplace=False`, the result is returned and nothing is written."

    def load(self) -> Any:
        """Import and return the implementation of the command."""
        module, _, name = self.home.partition(":")
        with importing():
            return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call of a command or of its Python function.

    Parameters
    ----------
    verb
        The command to run.
    data
        An AnnData, or a path.
    model
        A model in memory, or a model folder. None means the folder DATA.scvae next to the data.
    options
        The checked options.
    inplace
        Whether results are written; only Python callers can set this to False.
    flags
        The options that were given on the command line, so that they can be repeated in a suggested next command.
    reported
        Whether the result is shown to the user as a report; True on the command line, False in Python.
    """

    verb: Verb
    data: Any
    model: Any = None
    options: Any
    inplace: bool = True
    flags: dict[str, Any] = field(default_factory=dict)
    reported: bool = False

    @property
    def model_folder(self) -> Any:
        """The model of the request. The default is the folder DATA.scvae next to the data file.

        The value is None if the request names no model and the data are not a file.
        """
        if self.model is not None or not isinstance(self.data, Path):
            return self.model
        return self.data.parent / f"{self.data.stem}.scvae"
