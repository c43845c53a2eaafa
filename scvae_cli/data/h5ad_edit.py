"""Writing results into an .h5ad without touching anything else in it.

A copy is edited element by element and then takes the file's place; the user's own elements keep their values,
attributes and encodings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scvae_cli.data.atomic import replacing
from scvae_cli.data.slots import RowBlocks, Slot
from scvae_cli.errors import DataError

# About this many bytes of a streamed layer make one compressed chunk.
_CHUNK_BYTES = 1 << 20


def edit_h5ad(source: Path, target: Path, slots: Sequence[Slot], *, force: bool) -> None:
    """Write slots into a copy of `source` and put it at `target`.

    Parameters
    ----------
    source, target
        The file read and the file written; they may be the same.
    slots
        What to write. Elements already there under the same names are replaced: whether they may be is decided
        before (`slots.refuse_foreign`).
    force
        Allow `target` to exist when it is not `source`.

    Raises
    ------
    DataError
        When the target exists, cannot be written, or has no room; the target is then as it was.
    """
    if target.resolve() != source.resolve():
        check_new_file(target, force=force)
    with replacing(target, copy_of=source) as sibling:
        # A copy of a read-only file is the user's new file, and theirs to change.
        sibling.chmod(sibling.stat().st_mode | 0o200)
        with h5py.File(sibling, "r+") as file:
            for slot in slots:
                _write(file, slot)


def check_new_file(target: Path, *, force: bool) -> None:
    """Refuse an output that exists, or that is not an .h5ad by name."""
    if target.suffix != ".h5ad":
        raise DataError(f"{target} does not end in .h5ad", "results are written as .h5ad")
    if target.exists() and not force:
        raise DataError(f"{target} exists", "use --force to replace it, or another name")


def _write(file: h5py.File, slot: Slot) -> None:
    from anndata.io import write_elem

    if slot.group in ("obs", "var"):
        _write_column(file[slot.group], slot)
        return
    parent = _dict_group(file, slot.group)
    *folders, key = slot.key.split("/")
    for folder in folders:
        parent = _dict_group(parent, folder)
    if key in parent:
        del parent[key]
    if isinstance(slot.value, RowBlocks):
        _write_blocks(parent, key, slot.value)
    else:
        write_elem(parent, key, slot.value)


def _write_column(frame: Any, slot: Slot) -> None:
    from anndata.io import write_elem

    if isinstance(frame, h5py.Dataset):
        raise DataError(
            f"{slot.group} is stored in the format of anndata before 0.7, to which no column can be added",
            "convert it once: anndata.read_h5ad(FILE).write_h5ad(FILE)",
        )
    if slot.key in frame:
        del frame[slot.key]
    write_elem(frame, slot.key, slot.value)
    order = [str(name) for name in frame.attrs.get("column-order", [])]
    if slot.key not in order:
        frame.attrs["column-order"] = np.array([*order, slot.key], dtype=h5py.string_dtype())


def _dict_group(parent: h5py.Group, key: str) -> h5py.Group:
    """A subgroup that anndata reads as a dict, replacing a value that stands in its place."""
    if key in parent and not isinstance(parent[key], h5py.Group):
        del parent[key]
    group = parent.require_group(key)
    group.attrs.setdefault("encoding-type", "dict")
    group.attrs.setdefault("encoding-version", "0.1.0")
    return group


def _write_blocks(parent: h5py.Group, key: str, rows: RowBlocks) -> None:
    n_rows, n_columns = rows.shape
    chunk_rows = max(1, min(n_rows, _CHUNK_BYTES // (n_columns * rows.dtype.itemsize)))
    # gzip is in every HDF5 build, so R and Julia read it too; the shuffle filter makes floats compressible.
    dataset = parent.create_dataset(
        key, shape=rows.shape, dtype=rows.dtype, chunks=(chunk_rows, n_columns), compression="gzip",
        compression_opts=1, shuffle=True,
    )  # fmt: skip
    dataset.attrs["encoding-type"] = "array"
    dataset.attrs["encoding-version"] = "0.2.0"
    start = 0
    for block in rows.blocks:
        dataset[start : start + len(block)] = block
        start += len(block)
    assert start == n_rows, "the blocks of a layer must cover every row"
