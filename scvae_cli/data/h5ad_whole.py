"""A check of a whole HDF5 file, for readers that load all of its arrays at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from scvae_cli.data.h5ad_damage import check_stored
from scvae_cli.data.h5ad_heaps import check_heaps


def check_all_stored(path: Path) -> None:
    """Raise a ValueError if far fewer bytes are stored for an array of the file than the array declares.

    Errors of h5py are not caught.
    """

    def check(_: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            check_stored(item)

    with h5py.File(path, "r") as file:
        check_heaps(path)
        file.visititems(check)
