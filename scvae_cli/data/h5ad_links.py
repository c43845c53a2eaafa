"""Parts of an .h5ad file that lie in other files: external links, virtual datasets and external storage.

When data are read, links to other HDF5 files are followed. Results are never written through a link to another file,
because only one file can be replaced at once. A result never replaces a link. Data in a missing file, and data stored
as raw bytes outside HDF5, are refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py

from scvae_cli.errors import DataError

# Elements of an AnnData are nested by a few levels: a group, a data frame, a categorical column, its codes.
_DEEPEST = 6


def refuse_outside(item: h5py.Group | h5py.Dataset, title: str) -> None:
    """Raise a DataError if some values of an element are stored outside HDF5 or in a file that is missing.

    A virtual dataset shows values of other HDF5 files. If a source file of a virtual dataset is missing, HDF5 would
    silently return fill values.
    """
    for dataset in _datasets(item, _DEEPEST):
        if dataset.external is not None:
            raise DataError(
                f"{title}: the values of {dataset.name} are not in the file, but in {dataset.external[0][0]!r}",
                "write the file again with anndata, which stores all values in it",
            )
        if dataset.is_virtual:
            for source in dataset.virtual_sources():
                if not _has_source(dataset, source.file_name, source.dset_name):
                    raise DataError(
                        f"{title}: {dataset.name} takes its values from {source.file_name!r}, which is missing",
                        "put the missing file into the same folder, or write the data again with anndata",
                    )


def refuse_links(file: h5py.File, paths: Sequence[str], title: str) -> None:
    """Raise a DataError if slots would be written into another file through a link, or would replace a link.

    A link to a group within the file itself is followed.
    """
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            place = "/".join(parts[:depth])
            link = file.get(place, getlink=True) if _has_parent(file, parts[:depth]) else None
            there = None if link is None else file.get(place)
            if isinstance(link, h5py.ExternalLink) or (there is not None and there.file != file):
                raise DataError(
                    f"{title}: {place} is a link to another file, and scvae does not write into linked files",
                    "replace the link by the data: anndata.read_h5ad(FILE).write_h5ad(NEW)",
                )
            if isinstance(link, h5py.SoftLink) and (depth == len(parts) or there is None):
                raise DataError(
                    f"{title}: {place} is a link to {link.path!r} of the same file; results would replace the link",
                    "remove the link, or use --key-added NAME to write under another name",
                )


def refuse_relative_links(file: h5py.File, folder: Path, title: str) -> None:
    """Raise a DataError if a copy of the file in the folder `folder` would have links to missing files."""
    here = Path(os.fsdecode(file.filename)).resolve().parent
    if folder.resolve() == here:
        return
    found: list[tuple[str, str]] = []

    def visit(name: str, link: Any) -> None:
        if isinstance(link, h5py.ExternalLink):
            found.append((name, link.filename))
        elif isinstance(link, h5py.HardLink) and isinstance(item := file.get(name), h5py.Dataset):
            found.extend((name, source) for source in _outside(item))

    file.visititems_links(visit)
    for name, source in found:
        if not Path(source).is_absolute():
            raise DataError(
                f"{title}: {name} refers to another file, {source!r}, which would not be found from {folder}",
                f"choose an output file in {here}, or write all data into one file with anndata",
            )


def describe_dangling(file: h5py.File, path: str) -> str | None:
    """Describe a link whose target does not exist. Return None if the path is no link, or if the target exists."""
    link = file.get(path, getlink=True) if path in file else None
    if isinstance(link, h5py.ExternalLink) and file.get(path) is None:
        return f"{path} is a link to {link.filename!r}, which is missing"
    if isinstance(link, h5py.SoftLink) and file.get(path) is None:
        return f"{path} is a link to {link.path!r}, which is missing"
    return None


def _has_parent(file: h5py.File, parts: list[str]) -> bool:
    parent = file.get("/".join(parts[:-1])) if parts[:-1] else file
    return isinstance(parent, h5py.Group) and parts[-1] in parent


def _datasets(item: Any, depth: int) -> Iterator[h5py.Dataset]:
    if isinstance(item, h5py.Dataset):
        yield item
    elif isinstance(item, h5py.Group) and depth > 0:
        for name in item:
            # `get` returns None for a broken link; reading such a link raises HDF5's error.
            yield from _datasets(item.get(name), depth - 1)


def _outside(dataset: h5py.Dataset) -> list[str]:
    if dataset.external is not None:
        return [str(part[0]) for part in dataset.external]
    if dataset.is_virtual:
        return [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    return []


def _has_source(dataset: h5py.Dataset, file_name: str, name: str) -> bool:
    """Whether HDF5 finds the file and the dataset from which a virtual dataset takes its values."""
    if file_name == ".":
        return name in dataset.file
    beside = Path(os.fsdecode(dataset.file.filename)).resolve().parent / file_name
    for path in (beside, Path(file_name)):
        if path.is_file():
            try:
                with h5py.File(path, "r") as source:
                    return name in source
            except OSError:
                return False
    return False
