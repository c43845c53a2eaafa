"""Checks whether the name of a file or folder is too long for the file system.

A name that is too long is refused before a training or another long computation starts, not when the result is written.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from scvae_cli.errors import ConfigError

# Number of bytes that are reserved for a suffix such as ".partial", which is added to the name of a model folder while
# the folder is written.
FOR_A_MODEL = 40


def refuse_long_name(path: Path, *, reserve: int = 0) -> None:
    """Raise a ConfigError if the name of a file or folder is too long for the file system.

    Parameters
    ----------
    path
        File or folder that will be written.
    reserve
        Number of bytes that will be added to the name.
    """
    folder = path.absolute().parent
    try:
        most = os.pathconf(folder, "PC_NAME_MAX") - reserve
    except (OSError, ValueError):  # the folder does not exist; other checks report this
        return
    length = len(os.fsencode(path.name))
    if length > most:
        raise ConfigError(
            f"the name {path.name[:20]}... has {length} bytes, but at most {most} are allowed here",
            "choose a shorter name",
        )


def name_too_long(error: BaseException) -> ConfigError | None:
    """Convert an exception about a long name to the error that the user sees. Return None for any other exception."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else ""
    return ConfigError(
        f"the name {name[:20]}... has {len(os.fsencode(name))} bytes, which is too long", "choose a shorter name"
    )
