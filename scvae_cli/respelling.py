"""Conversion of messages for Python callers: command-line flags become names of Python arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable

from scvae_cli.options import Options, declarations


def respelled(text: str, options: type[Options], others: Iterable[type[Options]] = ()) -> str:
    """Replace the flags in a message by the names of Python arguments.

    Whole command lines and quoted values in the message are not changed. `options` are the options of the function, and
    `others` are the options of other functions, whose flags a message may also name.

    >>> from dataclasses import dataclass
    >>> from scvae_cli.options import option
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Steps(Options):
    ...     n_steps: int = option(50, help="Number of steps.", flags=("--steps",))
    >>> respelled("--steps is 0; see scvae interpolate --steps", Steps)
    'n_steps is 0; see scvae interpolate --steps'
    """
    names = {"-m": "model", "--config": "config"}
    for one in (*others, options):
        names |= {flag: declared.name for declared in declarations(one) for flag in declared.spellings}

    def spelled(part: str) -> str:
        # The flags --from and --to set one Python argument, whose name replaces the phrase "--from and --to".
        for declared in declarations(options):
            part = part.replace(declared.spelled, declared.name) if declared.joined else part
        return re.sub(r"(?<![\w-])--?[a-z][a-z0-9-]*", lambda found: names.get(found[0], found[0]), part)

    # Command lines and quoted values are not changed.
    parts = re.split(r"(\bscvae [a-z]+[^;,)]*|(?<!\w)'[^']*'(?!\w))", text)
    joined = "".join(part if i % 2 else spelled(part) for i, part in enumerate(parts))
    # If several flags of one argument were replaced, the name of the argument is shown only once.
    return re.sub(r"\b(\w+)(?:, \1)*,? (?:and|or) \1\b", r"\1", joined)
