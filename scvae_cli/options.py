"""Declaration of options: each option is a dataclass field with a type, default, range, help text and spelling.

The command line, the Python functions, the keys of `--config` files, the checks of values and the reference pages are
all made from the declarations of the options.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from scvae_cli.errors import ConfigError
from scvae_cli.labels import as_label

# Whole numbers must be smaller than _LARGEST, to fit into int64. Messages show at most _SHOWN characters of a value.
_LARGEST, _SHOWN = 2**63, 80
# REQUIRED replaces the default of an option for which the user must give a value.
REQUIRED: Any = ...

INPUT, OUTPUT, COMPUTE, DECODING = "Input", "Output", "Compute", "Decoding"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One of several command-line flags, such as --from and --to, whose values are joined into one option.

    Parameters
    ----------
    name, help, metavar
        Name, help text and placeholder of the flag on the command line.
    repeated
        Whether the flag may be left out or given several times. A flag that is not `repeated` must be given if any
        other flag of the same option is given.
    """

    name: str
    help: str
    metavar: str = ""
    repeated: bool = False


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The declaration of one option.

    The function `option` creates a declaration, and `declarations` adds the name, the type and the default.

    Parameters
    ----------
    help
        One line that says what the option does, for `--help`, docstrings and the reference.
    python_help
        Text that replaces `help` in docstrings, if `help` would be wrong for the Python function.
    panel
        Heading under which `--help` shows the option; "" for an option that only one command has.
    flags
        Spellings on the command line. If the tuple is empty, the spelling is made from the name of the option. If the
        tuple contains `Flag`s, the values of all these flags are joined into one value.
    least, most, above, below
        Range of a number. The bounds `least` and `most` are allowed values; the bounds `above` and `below` are not
        allowed values.
    choices
        Allowed words, for an option that takes a word or a number.
    takes
        Description of the allowed values for the hint of an error. If the description is empty, a description is
        made from the type and the range of the option.
    metavar, shown_default
        Placeholder for the value, and text for the default, in `--help`.
    parse
        Function that converts the text on the command line to a value. The arguments of the function are the flag,
        which error messages name, and the text. If `repeated` is True, the second argument contains the texts of all
        uses of the flag.
    repeated
        Whether the flag may be given several times.
    label
        Whether the value names a group; callers may then give a number or boolean instead of a text.
    on_command_line, in_python, in_record
        Whether the option exists on the command line, in the Python functions, and in the provenance of a result.
    positional
        Whether the Python function accepts the option as a positional argument.
    """

    help: str
    python_help: str = ""
    panel: str = ""
    flags: tuple[str | Flag, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    takes: str = ""
    metavar: str = ""
    shown_default: str = ""
    parse: Callable[[str, Any], Any] | None = None
    repeated: bool = False
    label: bool = False
    on_command_line: bool = True
    in_python: bool = True
    in_record: bool = True
    positional: bool = False
    name: str = ""
    kind: Any = None
    default: Any = REQUIRED
    section: str = ""
    hidden: bool = False

    @property
    def joined(self) -> tuple[Flag, ...]:
        """The `Flag`s whose values are joined into one value; the tuple is empty if the option has a single flag."""
        return tuple(flag for flag in self.flags if isinstance(flag, Flag))

    @property
    def spellings(self) -> tuple[str, ...]:
        """All flags of the option, the long form first."""
        if not self.on_command_line:
            return ()
        names = tuple(flag.name if isinstance(flag, Flag) else flag for flag in self.flags)
        return names or ("--" + self.name.replace("_", "-"),)

    @property
    def spelled(self) -> str:
        """The name of the option in messages: its flag, or its Python name if the command line lacks the option."""
        if self.joined:
            return " and ".join(flag.name for flag in self.joined if not flag.repeated)
        return self.spellings[0] if self.spellings else self.name

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """The types that the value may have, including NoneType if the value may be None."""
        return get_args(self.kind) if get_origin(self.kind) in (Union, UnionType) else (self.kind,)

    @property
    def optional(self) -> bool:
        """Whether the value may be None."""
        return type(None) in self.alternatives

    @property
    def words(self) -> tuple[str, ...]:
        """The words that the option accepts, or an empty tuple if the option is not limited to certain words."""
        for kind in self.alternatives:
            if get_origin(kind) is Literal:
                return get_args(kind)
        return self.choices

    @property
    def annotation(self) -> str:
        """The type of the option, as a Python annotation."""
        return " | ".join("None" if kind is type(None) else _written(kind) for kind in self.alternatives)

    @property
    def expected(self) -> str:
        """Description of the values that the option accepts."""
        if self.takes:
            return self.takes
        kinds = self.alternatives
        number = "a whole number" if int in kinds else "a number" if float in kinds else ""
        if any(get_origin(kind) is tuple and float in get_args(kind) for kind in kinds):
            number = "numbers"
        if self.least is not None and self.most is not None:
            number += f" from {self.least:,g} to {self.most:,.15g}"
        elif self.above is not None and self.below is not None:
            number += f" above {self.above:g} and below {self.below:g}"
        elif self.above is not None and self.most is not None:
            number += f" above {self.above:g}, up to {self.most:g}"
        elif self.least is not None and self.below is not None:
            number += f" from {self.least:g} to below {self.below:g}"
        elif self.least is not None:
            number += f", {self.least:,g} or more"
        elif self.above is not None:
            number += f" above {self.above:g}"
        if self.words:
            return f"one of: {', '.join(self.words)}" + (f"; or {number}" if number else "")
        simple = {bool: "true or false", str: "a word", Path: "a path"}
        return number or next((text for kind, text in simple.items() if kind in kinds), "names")

    def checked(self, value: Any) -> Any:
        """Return the value, converted to the type of the field.

        Raises
        ------
        ConfigError
            If the value has the wrong type or is out of range.
        """
        if value is None and self.optional:
            return None
        value = value if self.label else _scalar(value)
        for kind in self.alternatives:
            fitting = self._as(kind, value)
            if fitting is not None:
                return fitting
        raise ConfigError(f"{self.spelled} is {self._refused(value)}", f"it takes {self.expected}")

    def _refused(self, value: Any) -> str:
        """Return an invalid value as text for a message; of several values, the first invalid value is shown."""
        kinds = [get_args(kind)[0] for kind in self.alternatives if get_origin(kind) is tuple]
        if kinds and isinstance(value, list | tuple) and value:
            one = dataclasses.replace(self, kind=kinds[0])
            wrong = next((item for item in value if one._as(kinds[0], item) is None), value)
            return f"{_shown(wrong)} in {','.join(map(_plain, value))!r}"
        return _shown(value)

    def _as(self, kind: Any, value: Any) -> Any:
        """Convert a value to the type `kind`; return None if the value cannot be converted."""
        origin = get_origin(kind)
        if kind is bool:
            return value if isinstance(value, bool) else None
        if kind is int:
            return value if _is_number(value, int) and self._in_range(value) else None
        if kind is float:
            either = str in self.alternatives
            number = _number(value) if either and isinstance(value, str) else value
            if number is None or not (_is_number(number, (int, float)) and self._in_range(number)):
                return None
            return float(number) if either else number
        if origin is Literal:
            return value if isinstance(value, str) and value in get_args(kind) else None
        if kind is str:
            if self.label:
                return as_label(value) if _is_scalar(value) else None
            return value if isinstance(value, str) and value and (not self.choices or value in self.choices) else None
        if kind is Path:
            return Path(value) if isinstance(value, str | Path) and str(value) else None
        if origin is tuple:
            return self._as_tuple(get_args(kind)[0], value)
        if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
            return self._as_mapping(get_args(kind)[1], value) if isinstance(value, Mapping) else None
        if origin is Callable:
            return value if callable(value) else None
        return None

    def _as_tuple(self, kind: Any, value: Any) -> tuple[Any, ...] | None:
        """Convert several values to a tuple; a single value becomes a tuple of one."""
        if callable(value) or isinstance(value, Mapping | set | frozenset):
            return None
        one = dataclasses.replace(self, kind=kind)
        try:
            many = [value] if _is_scalar(value) else list(value)
        except TypeError:
            return None
        fitting = [one._as(kind, item if self.label else _scalar(item)) for item in many]
        return None if None in fitting else tuple(fitting)

    def _as_mapping(self, kind: Any, value: Mapping[Any, Any]) -> dict[str, Any] | None:
        """Convert each value of a mapping to the type `kind`; return None if any value cannot be converted."""
        one = dataclasses.replace(self, kind=kind)
        fitting = {str(key): one._as(kind, item) for key, item in value.items()}
        return None if None in fitting.values() else fitting

    def _in_range(self, value: float) -> bool:
        return (
            (abs(value) < _LARGEST if isinstance(value, int) else math.isfinite(value))
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def option(default: Any = MISSING, **declared: Any) -> Any:
    """Make a dataclass field that declares an option; the parameters are those of `Declared`."""
    return field(default=default, metadata={"option": Declared(**declared)})


def section(options: type[Options], *, without: frozenset[str] = frozenset()) -> Any:
    """Make a dataclass field that contains a group of options. The command line does not show the grouping.

    Parameters
    ----------
    options
        Class of the options in the group.
    without
        Names of the options that can be set only in a `--config` file.
    """
    return field(default_factory=options, metadata={"section": (options, without)})


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of dataclasses whose fields are options. The values are checked when an object is created.

    Raises
    ------
    ConfigError
        If a value has the wrong type or is out of range, or if two values exclude each other.
    """

    def __post_init__(self) -> None:
        for declared in declarations(type(self), nested=False):
            object.__setattr__(self, declared.name, declared.checked(getattr(self, declared.name)))
        self.check()

    def check(self) -> None:
        """Raise a ConfigError if two values exclude each other."""

    @property
    def needs_batch(self) -> bool:
        """Whether the command needs the batch of each cell if the model has batches."""
        return False

    @property
    def maps_batches(self) -> bool:
        """Whether the command maps new batches onto the model, so that new batches cause no warning."""
        return False

    def record(self) -> dict[str, Any]:
        """Return the options that may change a result, by name, for the provenance of the result."""
        return {
            declared.name: getattr(self, declared.name)
            for declared in declarations(type(self), nested=False)
            if declared.in_record
        }


def declarations(options: type[Options], *, nested: bool = True, hidden: bool = False) -> tuple[Declared, ...]:
    """Return the options of a class: first those that the class declares, then those that it inherits.

    Parameters
    ----------
    nested
        Whether to include the options of sections.
    hidden
        Whether to include the options that can be set only in a `--config` file.
    """
    reading: Any = options  # mypy confuses the class with its instances, which cannot be hashed
    return tuple(declared for declared in _read_once(reading, nested) if hidden or not declared.hidden)


@functools.cache
def _read_once(options: Any, nested: bool) -> tuple[Declared, ...]:
    kinds = get_type_hints(options)
    own = set(inspect.get_annotations(options))
    ordered = sorted(fields(options), key=lambda f: f.name not in own)
    return tuple(_declared(ordered, kinds, nested=nested))


def _declared(ordered: list[Any], kinds: dict[str, Any], *, nested: bool) -> Iterator[Declared]:
    for f in ordered:
        if "option" in f.metadata:
            default = REQUIRED if f.default is MISSING else f.default
            yield dataclasses.replace(f.metadata["option"], name=f.name, kind=kinds[f.name], default=default)
        elif nested and "section" in f.metadata:
            options, without = f.metadata["section"]
            for declared in declarations(options, hidden=True):
                section = "/".join(filter(None, (f.name, declared.section)))
                hidden = declared.hidden or declared.name in without
                yield dataclasses.replace(declared, section=section, hidden=hidden)


def build(
    options: type[Options], given: Mapping[str, Any], *, within: str = "", hidden: frozenset[str] = frozenset()
) -> Any:
    """Make an options object, and the options objects of its sections, from a mapping of names to values.

    Parameters
    ----------
    given
        Values by name ("beta"), or by section and name ("train/beta"). If both keys of an option are given, the value
        of the key without a section is used.
    within
        Section whose options are made, such as "train/"; an empty text means options outside sections.
    hidden
        Names of the options that can be set only by a key with section and name.

    Raises
    ------
    ConfigError
        If a value is missing, has the wrong type or is out of range, or if two values exclude each other.
    """
    values: dict[str, Any] = {}
    for f in fields(options):
        if "section" in f.metadata:
            part, without = f.metadata["section"]
            values[f.name] = build(part, given, within=f"{within}{f.name}/", hidden=hidden | without)
        elif f.name in given and f.name not in hidden:
            values[f.name] = given[f.name]
        elif within and f"{within}{f.name}" in given:
            values[f.name] = given[f"{within}{f.name}"]
        elif f.default is MISSING:
            [needed] = [d for d in declarations(options, nested=False) if d.name == f.name]
            raise ConfigError(f"{needed.spelled} is missing", f"it takes {needed.expected}")
    return options(**values)


def _written(kind: Any) -> str:
    if kind is Path:
        return "Path | str"
    if isinstance(kind, type) and not get_args(kind):
        return kind.__name__
    if get_origin(kind) is tuple:
        return f"Sequence[{_written(get_args(kind)[0])}]"
    return re.sub(r"\b(?:typing|collections\.abc|pathlib|numpy)\.", "", str(kind))


def _is_number(value: Any, kinds: Any) -> bool:
    # A boolean is an integer to Python, but `n_latent = true` is a mistake.
    return isinstance(value, kinds) and not isinstance(value, bool)


def _is_scalar(value: Any) -> bool:
    """Whether a value can be a label or a number: False for arrays, Series, lists and functions."""
    several = isinstance(value, list | tuple | Mapping | set | frozenset) or getattr(value, "ndim", 0) > 0
    return not (several or callable(value))


def _scalar(value: Any) -> Any:
    """Return the Python value of a numpy scalar."""
    return value.item() if hasattr(value, "item") and _is_scalar(value) else value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "a number of more than 18 digits"
    text = f"{value:g}" if isinstance(value, float) else " ".join(repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _shown(value)
