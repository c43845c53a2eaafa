"""Compression methods (filters) of HDF5, such as Blosc, that h5py lacks and that the package hdf5plugin adds."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

import h5py

from scvae_cli.errors import DataError

# Registered numbers of filters: https://github.com/HDFGroup/hdf5_plugins/blob/master/docs/RegisteredFilterPlugins.md
_NAMES = {
    307: "bzip2", 32000: "LZF", 32001: "Blosc", 32004: "LZ4", 32008: "Bitshuffle", 32013: "ZFP", 32015: "Zstandard",
    32017: "SZ", 32026: "Blosc2",
}  # fmt: skip


def load_filters() -> None:
    """Load the compression filters of the package hdf5plugin, if the package is installed."""
    with contextlib.suppress(ImportError):
        importlib.import_module("hdf5plugin")


def refuse_missing_filter(path: Path) -> None:
    """Raise a DataError if an element of a file needs a compression filter that is not installed.

    Call this function when reading has failed, because HDF5 reports a missing filter in the same way as damage.
    """
    found: list[str] = []

    def look(_name: str, part: h5py.Group | h5py.Dataset) -> None:
        if isinstance(part, h5py.Dataset):
            settings = part.id.get_create_plist()
            codes = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
            found.extend(_NAMES.get(code, f"number {code}") for code in codes if not h5py.h5z.filter_avail(code))

    # If the file is damaged, the caller reports the damage.
    with contextlib.suppress(Exception), h5py.File(path, "r") as file:
        file.visititems(look)
    if found:
        raise DataError(
            f"{path} is compressed with the HDF5 filter {found[0]}, which is not installed",
            "pip install hdf5plugin, and run the command again",
        )
