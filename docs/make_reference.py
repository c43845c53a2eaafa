"""Make docs/reference.md and scvae_cli/__init__.pyi from the options that every verb declares.

    python docs/make_reference.py

A test fails if one of the two files is out of date.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from scvae_cli.api import function_of
from scvae_cli.options import Declared, declarations
from scvae_cli.verb import Verb
from scvae_cli.verbs import VERBS

ROOT = Path(__file__).parents[1]
REFERENCE, STUB = ROOT / "docs" / "reference.md", ROOT / "scvae_cli" / "__init__.pyi"

_STUB_HEAD = '''"""The Python API; made by docs/make_reference.py from the options that every verb declares."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from anndata import AnnData

from scvae_cli.errors import ConfigError as ConfigError
from scvae_cli.errors import DataError as DataError
from scvae_cli.errors import DeviceError as DeviceError
from scvae_cli.errors import ModelError as ModelError
from scvae_cli.errors import ScvaeError as ScvaeError
from scvae_cli.errors import ScvaeWarning as ScvaeWarning
from scvae_cli.model.bundle import Model as Model
from scvae_cli.model.bundle import load as load

__version__: str
'''


def reference() -> str:
    """Make the reference page: every command and function, with all options."""
    lines = [
        "# Reference",
        "",
        "Every verb is a command, `scvae VERB`. All verbs except `info` and `simulate` are also functions with the same",
        "options, `scvae_cli.VERB(data, model)`. A command finds the model with `-m/--model` (default: DATA.scvae). A function",
        "writes into the data, or returns the result with `inplace=False`.",
        "",
        "Options can also be read from a TOML file (`--config FILE`, `config=`). The options of a training are in the sections",
        "`[data]`, `[model]`, `[train]` and `[compute]`. The options of any other verb are in a section with the name of the",
        "verb. They have the same names as in Python. An option that is given directly overrides the same option in the file.",
        "",
        "Every command also has `--json` (print the result as one JSON object) and `--quiet` (print only the result, warnings",
        "and errors).",
        "",
        "This page is made by `python docs/make_reference.py`.",
    ]
    for verb in VERBS:
        lines += ["", *_section(verb)]
    return "\n".join(lines) + "\n"


def _section(verb: Verb) -> Iterator[str]:
    yield f"## {verb.name}"
    yield ""
    for paragraph in verb.about.split("\n\n"):
        yield " ".join(paragraph.split())
        yield ""
    yield "```sh"
    yield verb.example
    yield "```"
    if verb.in_python:
        yield ""
        yield f"In Python, `scvae_cli.{verb.name}` returns: {verb.returns}"
    yield ""
    yield "| option | in Python | values | default | |"
    yield "|---|---|---|---|---|"
    for declared in declarations(verb.options):
        if declared.on_command_line or (verb.in_python and declared.in_python):
            yield _row(declared, python=verb.in_python)


def _row(declared: Declared, *, python: bool) -> str:
    flags = ", ".join(f"`{spelling}`" for spelling in declared.spellings) or "–"
    name = f"`{declared.name}`" if python and declared.in_python else "–"
    words = ", ".join(f"`{word}`" for word in declared.words) or declared.annotation.replace("|", "\\|")
    words += " or a number" if declared.words and float in declared.alternatives else ""
    default = declared.shown_default or ("required" if declared.default is ... else f"`{declared.default!r}`")
    help = " ".join(f"`{flag.name}`: {flag.help}" for flag in declared.joined) or declared.help
    return f"| {flags} | {name} | {words} | {default} | {help} |"


def stub() -> str:
    """Make the type stub: the functions as type checkers and editors see them."""
    functions = []
    for verb in VERBS:
        if not verb.in_python:
            continue
        signature = inspect.signature(function_of(verb))
        lines = [f"def {verb.name}("]
        star = False
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not star:
                lines.append("    *,")
                star = True
            default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
            lines.append(f"    {parameter.name}: {parameter.annotation}{default},")
        returned = "Model" if verb.name == "train" else "Any"
        functions.append("\n".join([*lines, f") -> {returned}: ..."]).replace("'", '"'))
    return _STUB_HEAD + "\n".join(["", *functions]) + "\n"


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
    STUB.write_text(stub(), encoding="utf-8")
