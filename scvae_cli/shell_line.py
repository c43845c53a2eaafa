"""Command lines that messages suggest: quoted for a shell, so that they run on the same cells and model."""

from __future__ import annotations

import shlex


def shell_line(verb: str, *arguments: object, **options: object) -> str:
    """A command of scvae, quoted for a shell.

    Parameters
    ----------
    verb, arguments
        What comes first.
    options
        By name; those that are None or False were not given, True is a flag.

    >>> shell_line("embed", "my cells.h5ad", m="a.scvae", refine=100, drop_empty=True, layer=None)
    "scvae embed 'my cells.h5ad' -m a.scvae --refine 100 --drop-empty"
    """
    # A name that begins like an option is given as a path.
    words = ["scvae", verb, *(f"./{word}" if str(word).startswith("-") else str(word) for word in arguments)]
    for name, value in options.items():
        if value is None or value is False:
            continue
        words.append(f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-"))
        words += [] if value is True else [str(value)]
    return shlex.join(words)
