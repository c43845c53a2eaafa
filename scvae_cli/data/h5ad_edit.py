"""Writing results to an existing .h5ad file without changing any other element.

A copy of the file is edited element by element and then replaces the file. All elements that are not results keep their
values, attributes and encodings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scvae_cli.data.atomic import Fingerprint, replacing
from scvae_cli.data.h5ad_blocks import write_dense
from scvae_cli.data.patient_file import PatientFile, open_to_write
from scvae_cli.data.slots import RowBlocks, Slot


def edit_h5ad(source: Path, target: Path, slots: Sequence[Slot], *, read_as: Fingerprint, force: bool = True) -> None:
    """Write slots (elements of an AnnData) to a copy of the file `source`, and save the copy as `target`.

    `source` and `target` may be the same file. Existing elements with the names of the slots are replaced. The caller
    must have checked that existing elements and `target` may be replaced. `read_as` is the fingerprint (size, times and
    other numbers) that `source` had when the results were computed. `force` says whether an existing file other than
    `source` may be replaced. If the target cannot be written, the disk is full, or `source` has changed, a DataError is
    raised and the target is not changed.
    """
    with (
        replacing(target, copy_of=source, read_as=read_as, force=force) as sibling,
        open_to_write(sibling, new=False) as (file, patient),
    ):
        for slot in patient.watch(slots):
            _write(file, slot, patient)


def _write(file: h5py.File, slot: Slot, patient: PatientFile) -> None:
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
        write_dense(parent, key, patient.watch(slot.value.blocks), slot.value.shape, compress=True)
    else:
        write_elem(parent, key, slot.value)


def _write_column(frame: h5py.Group, slot: Slot) -> None:
    from anndata.io import write_elem

    if slot.key in frame:
        del frame[slot.key]
    write_elem(frame, slot.key, slot.value)
    order = [str(name) for name in frame.attrs.get("column-order", [])]
    if slot.key not in order:
        frame.attrs["column-order"] = np.array([*order, slot.key], dtype=h5py.string_dtype())


def _dict_group(parent: h5py.Group, key: str) -> h5py.Group:
    """Return the HDF5 subgroup `key`, which anndata reads as a dict. The subgroup is created if it does not exist.

    An element called `key` that is not a dict is replaced.
    """
    if isinstance(parent.get(key), h5py.Group) and _is_mapping(parent[key]):
        group: h5py.Group = parent[key]
        return group
    if key in parent:
        del parent[key]
    group = parent.create_group(key)
    group.attrs["encoding-type"] = "dict"
    group.attrs["encoding-version"] = "0.1.0"
    return group


def _is_mapping(group: h5py.Group) -> Any:
    """Whether anndata reads an HDF5 group as a dict, and not as a data frame or a sparse matrix.

    In files of anndata before 0.8, dicts have no attribute encoding-type.
    """
    return group.attrs.get("encoding-type", "dict") == "dict"
