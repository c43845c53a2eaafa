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
    keys = _Keys(verb)
    stated: dict[str, Any] = {}
    for name, section in _read(file).items():
        if not isinstance(section, dict):
            if name in keys.sections:
                raise ConfigError(f"{file}: {name!r} is not a section", f"write [{name}] on a line above the keys")
            raise ConfigError(f"{file}: {name!r} is outside a section", keys.hint(name, None))
        if name not in keys.sections:
            raise ConfigError(f"{file}: unknown section [{name}]", keys.hint_for_section(name))
        for key, value in section.items():
            if key not in keys.sections[name]:
                raise ConfigError(f"{file}: unknown key {key!r} in [{name}]", keys.hint(key, name))
            found = keys.mine.get((name, key))
            if found is None:
                continue
            if found.parse is not None and isinstance(value, str):
                value = found.parse(found.spelled, value)
            stated["/".join(filter(None, (found.section, key)))] = value
    return stated


class _Keys:
    """The keys that a TOML file may contain.

    Parameters
    ----------
    verb
        The command whose options are read. Hints prefer the sections that the command reads.
    """

    def __init__(self, verb: Verb) -> None:
        # Other spellings of each key: the names of its flags, as they would be written in a TOML file.
        self.sections: dict[str, set[str]] = {}
        self._spellings: dict[str, dict[str, str]] = {}
        for one in VERBS:
            for declared in declarations(one.options):
                if "Callable" in declared.annotation and not declared.on_command_line:
                    continue  # a TOML file cannot contain a function
                section = _section_of(one, declared)
                self.sections.setdefault(section, set()).add(declared.name)
                flags = {_as_key(flag): declared.name for flag in declared.spellings if flag.startswith("--")}
                self._spellings.setdefault(section, {}).update(flags | {declared.name: declared.name})
        self.mine = {(_section_of(verb, d), d.name): d for d in declarations(verb.options, hidden=True)}

    def hint(self, key: str, section: str | None) -> str:
        """Return a hint for an unknown key in a section, or outside a section: which key to write in which section."""
        places = self._places(_as_key(key), section)
        if not places:
            known = sorted({spelling for names in self._spellings.values() for spelling in names})
            near = difflib.get_close_matches(_as_key(key), known, n=1)
            if not near:
                return f"known keys: {', '.join(sorted(self.sections[section]))}" if section else "remove this key"
            places = self._places(near[0], section)
        names = dict.fromkeys(name for _, name in places)
        return " or ".join(
            f"write {name} under {' or '.join(f'[{of}]' for of, other in places if other == name)}" for name in names
        )

    def hint_for_section(self, name: str) -> str:
        """Return a hint for an unknown section."""
        match = difflib.get_close_matches(name, self.sections, n=1)
        return f"did you mean [{match[0]}]?" if match else f"known sections: {', '.join(sorted(self.sections))}"

    def _places(self, spelling: str, section: str | None) -> list[tuple[str, str]]:
        """Return the sections that have a key with this spelling, and the name of the key in each section.

        If the given section has the key, or the command reads the key in some sections, other sections are left out.
        """
        places = [(of, names[spelling]) for of, names in self._spellings.items() if spelling in names]
        here = [place for place in places if place[0] == section]
        return here or [place for place in places if place in self.mine] or places


def _as_key(text: str) -> str:
    """Return the spelling of a flag, or of a name with hyphens, as a key of a TOML file.

    >>> _as_key("--label-weight"), _as_key("Label weight")
    ('label_weight', 'label_weight')
    """
    return text.strip().lstrip("-").replace("-", "_").replace(" ", "_").lower()


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
