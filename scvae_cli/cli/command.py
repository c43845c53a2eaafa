"""Functions that make a Typer command from the declaration of a command of scvae (a `Verb`)."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from scvae_cli.cli.console import Console
from scvae_cli.config_file import resolve
from scvae_cli.errors import ConfigError
from scvae_cli.importing import importing
from scvae_cli.memory_limit import refuse_small_limit
from scvae_cli.options import INPUT, OUTPUT, REQUIRED, Declared, Flag, declarations
from scvae_cli.verb import Request, Verb


def command_of(verb: Verb) -> Callable[..., None]:
    """Return the Python function from which Typer makes a command."""

    def command(**typed: Any) -> None:
        console = Console(json=typed.pop("json"), quiet=typed.pop("quiet"))
        data, model, config = typed.pop("data"), typed.pop("model", None), typed.pop("config")
        flags = dict(_given(verb, typed))
        options = resolve(verb, flags, config)
        refuse_small_limit()
        with importing():
            from scvae_cli.question import perform
        given = {"config": config} | flags
        request = Request(verb=verb, data=data, model=model, options=options, flags=given, reported=True)
        outcome = perform(request, console)
        report = outcome.report()
        console.result(report.facts, report.text)
        for warning in outcome.warnings:
            console.warn(warning)
        for note in report.notes:
            console.info(note)
        if report.next_step is not None:
            console.next_step(report.next_step)
        if report.exit_code:
            raise typer.Exit(report.exit_code)

    parameters = list(_parameters(verb))
    command.__name__ = verb.name
    # Each paragraph is one line, so that it is wrapped to the width of the terminal.
    paragraphs = [" ".join(paragraph.split()) for paragraph in verb.about.split("\n\n")]
    command.__doc__ = "\n\n".join([*paragraphs, f"Example: {verb.example}"])
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # mypy does not know this attribute
    return command


def _parameters(verb: Verb) -> Iterator[inspect.Parameter]:
    shown = [d for d in declarations(verb.options) if d.on_command_line]
    own = [d for d in shown if not d.panel]
    yield _keyword(
        "data",
        Path,
        typer.Argument(metavar=verb.argument, help=verb.argument_help, show_default=False),
        inspect.Parameter.empty,
    )
    for declared in own:
        yield from _of(declared)
    if verb.takes_model:
        written, read = "Folder of the new model, which is written.", "Folder of the trained model, which is only read."
        help = f"{written if verb.trains else read} \\[default: DATA.scvae next to the data]"
        flag = typer.Option("--model", "-m", help=help, rich_help_panel=OUTPUT if verb.trains else INPUT)
        yield _keyword("model", Path | None, flag, None)
    for declared in shown:
        if declared.panel:
            yield from _of(declared)
    help = "TOML file with options. Options on the command line override the options in the file."
    yield _keyword("config", Path | None, typer.Option(help=help, metavar="FILE", rich_help_panel=INPUT), None)
    help = "Print the result as one JSON object."
    yield _keyword("json", bool, typer.Option("--json", metavar="", help=help, rich_help_panel=OUTPUT), False)
    help = "Print only the result, warnings and errors."
    yield _keyword("quiet", bool, typer.Option("--quiet", "-q", metavar="", help=help, rich_help_panel=OUTPUT), False)


def _keyword(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    annotation = Annotated[kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _of(declared: Declared) -> Iterator[inspect.Parameter]:
    """Yield the Typer parameters of one option.

    An option that joins several flags, such as --from and --to, has one parameter for each flag.
    """
    panel = declared.panel or None
    for flag in declared.joined:
        kind = list[str] | None if flag.repeated else str | None
        option = typer.Option(flag.name, help=flag.help, metavar=flag.metavar or None, rich_help_panel=panel)
        yield _keyword(_slot(declared, flag), kind, option, None)
    if declared.joined:
        return
    spellings = list(declared.spellings)
    if bool in declared.alternatives and declared.optional:
        spellings = [f"{spellings[0]}/--no-{spellings[0].removeprefix('--')}"]
    option = typer.Option(
        *spellings,
        help=declared.help + _shown_default(declared),
        show_default=False,
        metavar=_metavar(declared),
        autocompletion=_completion(declared),
        rich_help_panel=panel,
    )
    yield _keyword(declared.name, _typed(declared), option, None)


def _slot(declared: Declared, flag: Flag) -> str:
    return f"{declared.name}{flag.name.replace('-', '_')}"


def _typed(declared: Declared) -> Any:
    """Return the type of an option for Typer. The type allows None, which means that the option was not given."""
    kinds = declared.alternatives
    if declared.parse is not None:
        return list[str] | None if declared.repeated else str | None
    if any(get_origin(kind) is tuple for kind in kinds):
        return list[get_args(kinds[0])[0]] | None  # type: ignore[misc]  # mypy cannot check types that are made at run time
    # Typer passes numbers on as text, so that the same check is used on the command line and in Python.
    return next((kind for kind in (bool, Path) if kind in kinds), str) | None


def _metavar(declared: Declared) -> str | None:
    if declared.metavar:
        return declared.metavar
    kinds = declared.alternatives
    if bool in kinds:
        return ""  # a flag takes no value
    if not declared.words:
        return "INTEGER" if int in kinds else "NUMBER" if float in kinds else None
    number = ["NUMBER"] if float in kinds else []
    return f"[{'|'.join([*declared.words, *number])}]"


def _shown_default(declared: Declared) -> str:
    if declared.default is REQUIRED:
        return " \\[required]"
    text = declared.shown_default
    if not text and declared.default not in (None, ()) and declared.default is not False:
        text = f"{declared.default:g}" if isinstance(declared.default, float) else str(declared.default)
    # Without the backslash, rich would read the brackets as markup.
    return f" \\[default: {text}]" if text else ""


def _completion(declared: Declared) -> Callable[[str], list[str]] | None:
    words = declared.words
    return (lambda incomplete: [word for word in words if word.startswith(incomplete)]) if words else None


def _given(verb: Verb, typed: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each option that was given, in the form that the options class accepts."""
    for declared in declarations(verb.options):
        if not declared.on_command_line:
            continue
        if declared.joined:
            value = _joined(declared, {flag: typed[_slot(declared, flag)] for flag in declared.joined})
        else:
            value = typed[declared.name]
            value = tuple(value) if isinstance(value, list) else value
            if value and declared.parse is not None:
                value = declared.parse(declared.spelled, value)
            elif isinstance(value, str):
                value = _number(declared, value)
        if value is not None and value != ():
            yield declared.name, value


def _number(declared: Declared, text: str) -> Any:
    """Convert a text to a number if the option takes a number. A text that is not a number is returned unchanged."""
    for kind in (int, float):
        if kind in declared.alternatives and (str not in declared.alternatives or declared.choices):
            with contextlib.suppress(ValueError):
                return kind(text)
    return text


def _joined(declared: Declared, values: dict[Flag, Any]) -> tuple[str, ...]:
    given = [flag for flag, value in values.items() if value]
    if given:
        for flag, value in values.items():
            if not value and not flag.repeated:
                raise ConfigError(f"{given[0].name} was given without {flag.name}", f"use both: {declared.spelled}")
    joined: list[str] = []
    for value in values.values():
        joined += [] if value is None else [value] if isinstance(value, str) else value
    return tuple(joined)
