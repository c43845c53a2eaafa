"""Checks that results are finite numbers. NaN is allowed only in results that may have missing values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scvae_cli.data.slots import RowBlocks, Slot
from scvae_cli.errors import ModelError

_GROUPS = ("obs", "var", "obsm", "varm", "layers")


def finite_slots(slots: Sequence[Slot]) -> list[Slot]:
    """Check that the values of slots (elements of an AnnData) are finite numbers.

    A matrix in blocks of rows is checked later, when each block is read. Tables of results in uns are not checked,
    because they may have missing values.

    Raises
    ------
    ModelError
        If a value is infinite, or if a value is NaN in a slot that cannot have missing values.
    """
    checked = []
    for slot in slots:
        if slot.group in _GROUPS and isinstance(slot.value, RowBlocks):
            blocks = _finite_blocks(slot.value.blocks, slot.path, may_lack=slot.may_lack)
            checked.append(replace(slot, value=replace(slot.value, blocks=blocks)))
            continue
        if slot.group in _GROUPS:
            refuse_not_finite(slot.value, slot.path, may_lack=slot.may_lack)
        checked.append(slot)
    return checked


def refuse_not_finite(values: Any, what: str, *, may_lack: bool = False) -> None:
    """Raise a ModelError if an array of floats contains infinity or NaN. If `may_lack` is True, NaN is allowed."""
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        return
    if np.isinf(values).any() if may_lack else not np.isfinite(values).all():
        raise ModelError(
            f"the model gives values of {what} that are not finite numbers",
            "look for extreme counts with scvae check, or train the model again",
        )


def _finite_blocks(blocks: Iterator[np.ndarray], what: str, *, may_lack: bool) -> Iterator[np.ndarray]:
    for block in blocks:
        refuse_not_finite(block, what, may_lack=may_lack)
        yield block
