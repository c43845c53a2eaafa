"""Reading options from a TOML file.

Values in a TOML file override the default values of the options. Options on the command line, and arguments in Python,
override the values in the file.

One TOML file may contain the options for a whole analysis. The options of a training are in the sections [data],
[model], [train] and [compute]. All other options of a command are in a section with the name of the command.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scvae_cli.errors import ConfigError
from scvae_cli.options import Declared, build, declarations
from scvae_cli.regular_file import read_regular
from scvae_cli.verb import Verb
from scvae_cli.verbs import VERBS

_MOST_BYTES = 1 << 24


def resolve(verb: Verb, given: Mapping[str, Any], file: Path | str | None = None) -> Any:
    """Make the options object of a command. Values in `given` override values in `file`, which override the defaults.

    Raises
    ------
    ConfigError
        If the file cannot be read, if it has an unknown section or key, or if a value is invalid.
    """
    stated = {} if file is None else _stated(verb, Path(file))
    return build(verb.options, stated | dict(given))


def _section_of(verb: Verb, declared: Declared) -> str:
    return declared.section.rsplit("/", 1)[-1] or verb.name


def _stated(verb: Verb, file: Path) -> dict[str, Any]:
    """Return the values that a TOML file sets for the options of a command, as a dict by section and name."""
    sections: dict[str, set[str]] = {}
    for one in VERBS:
        for declared in declarations(one.options):
            if "Callable" in declared.annotation and not declared.on_command_line:
                continue  # a TOML file cannot contain a function
            sections.setdefault(_section_of(one, declared), set()).add(declared.name)
    mine = {(_section_of(verb, d), d.name): d for d in declarations(verb.options, hidden=True)}
    stated: dict[str, Any] = {}
    for name, section in _read(file).items():
        if not isinstance(section, dict):
            hint = _belongs(name, sections, set().union(*sections.values()))
            raise ConfigError(f"{file}: {name!r} is outside a section", hint)
        if name not in sections:
            raise ConfigError(f"{file}: unknown section [{name}]", _closest(name, set(sections)))
        for key, value in section.items():
            if key not in sections[name]:
                hint = _belongs(key, sections, sections[name])
                raise ConfigError(f"{file}: unknown key {key!r} in [{name}]", hint)
            found = mine.get((name, key))
            if found is None:
                continue
            if found.parse is not None and isinstance(value, str):
                value = found.parse(found.spelled, value)
            stated["/".join(filter(None, (found.section, key)))] = value
    return stated


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_regular(file, most=_MOST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", "--config takes a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not a text in UTF-8", "save the file with the encoding UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{file} is not TOML: {error}",
            'write a line such as [model], and below it a line such as likelihood = "nb"',
        ) from error


def _belongs(key: str, sections: dict[str, set[str]], known: set[str]) -> str:
    """Return a hint for an unknown key: the section to which the key belongs, or the most similar key in `known`."""
    places = [f"[{section}]" for section, keys in sections.items() if key in keys]
    return f"this key belongs under {' or '.join(places)}" if places else _closest(key, known)


def _closest(word: str, known: set[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {match[0]!r}?" if match else "known names: " + ", ".join(sorted(known))
