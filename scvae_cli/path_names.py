"""Names of files and folders that the file system accepts.

A name that is too long is refused before a training or another long computation, not when its result is written.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from scvae_cli.errors import ConfigError

# Room for what is added to the name of a model folder while it is trained and written, such as ".partial".
FOR_A_MODEL = 40


def refuse_long_name(path: Path, *, reserve: int = 0) -> None:
    """Raise a ConfigError if a file or folder cannot have this name.

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
    except (OSError, ValueError):  # the folder does not exist, which other checks say
        return
    length = len(os.fsencode(path.name))
    if length > most:
        raise ConfigError(
            f"the name {path.name[:20]}... has {length} bytes, and {most} are allowed here", "choose a shorter name"
        )


def name_too_long(error: BaseException) -> ConfigError | None:
    """Return the error to show for an exception that says that a name is too long; None for another exception."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    name = Path(os.fsdecode(error.filename)).name if isinstance(error.filename, str | bytes) else ""
    return ConfigError(f"the name {name[:20]}... has {len(os.fsencode(name))} bytes, which is too long", "shorten it")
