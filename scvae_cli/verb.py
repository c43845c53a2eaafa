"""What a verb is: its options, and where its work is done. Light: `scvae --help` imports every verb's."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scvae_cli.importing import importing
from scvae_cli.options import Options


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One thing that users ask for, by a command and by a Python function of the same name.

    Parameters
    ----------
    name
        Of both.
    panel
        Heading under which `scvae --help` lists it.
    options
        What may be asked: a class of checked options.
    home
        "module:name" of what does the work, imported when it is first needed: a subclass of
        `scvae_cli.question.Question` or a function of a `Request` and a `Shell` that returns an `Outcome`.
    about
        Help: a line that says what it does, then paragraphs.
    example
        A command line.
    python_about
        The same as `about` for the Python function's docstring, where that would mislead.
    argument, argument_help
        Metavar and help of the first argument.
    takes_model
        Whether it works with a trained model.
    trains
        Whether `--model` names the folder to write, and not one to read.
    in_python
        Whether the Python API has it as a function made of its options.
    returns
        What the Python function returns, for its docstring.
    """

    name: str
    panel: str
    options: type[Options]
    home: str
    about: str
    example: str
    python_about: str = ""
    argument: str = "DATA"
    argument_help: str = "Cells: an .h5ad file; with --output, also a 10x .h5 file or an mtx folder."
    takes_model: bool = True
    trains: bool = False
    in_python: bool = True
    returns: str = "None; with `inplace=False` the result, and nothing is written."

    def load(self) -> Any:
        """What does the work."""
        module, _, name = self.home.partition(":")
        with importing():
            return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One use of a verb.

    Parameters
    ----------
    verb
        Which.
    data
        An AnnData, or a path.
    model
        A model in memory, its folder, or None for the folder beside the data.
    options
        Checked.
    inplace
        Whether results are written; only Python says no.
    flags
        The options that were given on the command line, for the next command that needs them too.
    reported
        Whether a report is shown, as a command line does.
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
        """The model meant: the one named, else DATA.scvae beside the data."""
        if self.model is not None or not isinstance(self.data, Path):
            return self.model
        return self.data.parent / f"{self.data.stem}.scvae"
