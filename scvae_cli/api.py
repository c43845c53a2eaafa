"""The Python API: one function for each command of scvae, with the options of the command as arguments.

As in scanpy, the first argument of a function is the data, and the results are written into the data. With
`inplace=False`, a function returns its result and leaves the data unchanged.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scvae_cli.config_file import resolve
from scvae_cli.errors import ConfigError, ScvaeError, ScvaeWarning
from scvae_cli.options import REQUIRED, Declared, declarations
from scvae_cli.progress import Progress, silent
from scvae_cli.question import perform
from scvae_cli.respelling import respelled
from scvae_cli.verb import Request, Verb
from scvae_cli.verbs import VERBS


class PythonShell:
    """The `Shell` (interface to the user) of the Python API: it issues Python warnings, and shows no other messages.

    Warnings name the arguments of a Python function instead of command-line options.
    """

    def __init__(self, verb: Verb) -> None:
        self.verb = verb

    progress: Progress = staticmethod(silent)

    def info(self, text: str) -> None:
        """Show nothing, because the Python API shows only warnings."""

    def warn(self, text: str) -> None:
        """Issue a Python warning."""
        warnings.warn(ScvaeWarning(respell(text, self.verb)), stacklevel=2)

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[Callable[[], bool]]:
        """Yield a function that always returns False, because Python functions are not asked to stop.

        Ctrl-C stops a Python function with a KeyboardInterrupt.
        """
        yield lambda: False


def function_of(verb: Verb) -> Callable[..., Any]:
    """Make the Python function that corresponds to a command of scvae."""
    signature = inspect.Signature(_parameters(verb))

    def function(*args: Any, **kwargs: Any) -> Any:
        given = _bound(verb, signature, args, kwargs)
        data, model = given.pop("data"), given.pop("model", None)
        inplace, config = given.pop("inplace", verb.inplace), given.pop("config", None)
        try:
            if not isinstance(inplace, bool):
                raise ConfigError(f"inplace is {inplace!r}", "it takes True or False")
            if config is not None and not isinstance(config, str | Path):
                raise ConfigError(f"--config has type {type(config).__name__}", "it takes the path of a TOML file")
            options = resolve(verb, given, config)
            if verb.inplace and not inplace and options.output is not None:
                raise ConfigError("--output was given with inplace=False", "use only one of the two")
            request = Request(
                verb=verb,
                data=Path(data) if isinstance(data, str) else data,
                model=model,
                options=options,
                inplace=inplace,
            )
            outcome = perform(request, PythonShell(verb))
        except ScvaeError as error:
            error.message, error.hint = (respell(text, verb) for text in (error.message, error.hint))
            error.args = (error.message,)
            raise
        for text in outcome.warnings:
            warnings.warn(ScvaeWarning(respell(text, verb)), stacklevel=2)
        return outcome.value

    function.__name__ = function.__qualname__ = verb.name
    function.__doc__ = _docstring(verb)
    function.__module__ = "scvae_cli"
    function.__signature__ = signature  # type: ignore[attr-defined]  # mypy does not know this attribute
    return function


def respell(text: str, verb: Verb) -> str:
    """Replace command-line options in a message by the names of the corresponding arguments in Python."""
    return respelled(text, verb.options, [other.options for other in VERBS])


def _bound(verb: Verb, signature: inspect.Signature, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call as a dict.

    If an argument has an unknown name, raise a TypeError that suggests a similar name.
    """
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        unknown = [name for name in kwargs if name not in signature.parameters]
        near = difflib.get_close_matches(unknown[0], signature.parameters, n=1) if unknown else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise TypeError(f"{verb.name}() {error}{hint}") from None


def _parameters(verb: Verb) -> list[inspect.Parameter]:
    positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    declared = [d for d in declarations(verb.options) if d.in_python]
    parameters = [inspect.Parameter("data", positional, annotation="AnnData | Path | str")]
    if verb.takes_model and not verb.trains:
        parameters.append(inspect.Parameter("model", positional, annotation="Model | Path | str"))
    parameters += [_parameter(d, positional) for d in declared if d.positional]
    parameters += [_parameter(d, keyword) for d in declared if not d.positional]
    parameters.append(inspect.Parameter("config", keyword, default=None, annotation="Path | str | None"))
    if verb.inplace:
        parameters.append(inspect.Parameter("inplace", keyword, default=True, annotation="bool"))
    return parameters


def _parameter(declared: Declared, kind: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if declared.default is REQUIRED else declared.default
    return inspect.Parameter(declared.name, kind, default=default, annotation=declared.annotation)


def _docstring(verb: Verb) -> str:
    about = verb.python_about or respell(inspect.cleandoc(verb.about), verb)
    lines = [*inspect.cleandoc(about).splitlines(), "", "Parameters", "----------"]
    lines += ["data", "    The cells and their counts: an AnnData, or the path of a file or folder."]
    if verb.takes_model and not verb.trains:
        lines += ["model", "    A trained model, or its folder."]
    for declared in declarations(verb.options):
        if declared.in_python:
            help = declared.python_help or respell(declared.help, verb)
            default = f" Default: {declared.shown_default}." if declared.shown_default else ""
            lines += [declared.name, f"    {help}{default}"]
    lines += ["config", "    TOML file with options. Arguments of the function override the options in the file."]
    if verb.inplace:
        lines += ["inplace", "    Whether to write the result into the data instead of returning the result."]
    lines += ["", "Returns", "-------", verb.returns]
    lines += ["", "Raises", "------", "ScvaeError", "    If the data, the model or an option cannot be used."]
    return "\n".join(lines)


def __getattr__(name: str) -> Any:
    for verb in VERBS:
        if verb.name == name and verb.in_python:
            globals()[name] = function_of(verb)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
