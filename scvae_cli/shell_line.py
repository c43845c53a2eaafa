"""Command lines that messages suggest to the user, quoted so that they can be pasted into a shell."""

from __future__ import annotations

import shlex


def shell_line(verb: str, *arguments: object, **options: object) -> str:
    """Return a command of scvae, quoted for a shell.

    Parameters
    ----------
    verb, arguments
        The command, such as "embed", and its positional arguments.
    options
        Options by name. An option with the value None or False is left out. If a value is True, the flag is written
        without a value. If a value is a tuple, the flag is repeated for each item.

    >>> shell_line("embed", "my cells.h5ad", m="a.scvae", refine=100, drop_empty=True, layer=None)
    "scvae embed 'my cells.h5ad' -m a.scvae --refine 100 --drop-empty"
    """
    # A file name that starts with "-" would be read as an option, so it gets the prefix "./".
    words = ["scvae", verb, *(f"./{word}" if str(word).startswith("-") else str(word) for word in arguments)]
    for name, given in options.items():
        flag = f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-")
        for value in given if isinstance(given, tuple) else (given,):
            text = str(value)
            if value is None or value is False:
                continue
            if value is True:
                words.append(flag)
            elif not text.startswith("-"):
                words += [flag, text]
            else:  # every option with a one-letter flag takes a file
                words += [flag, f"./{text}"] if len(name) == 1 else [f"{flag}={text}"]
    return shlex.join(words)
