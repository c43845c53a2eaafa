"""Orders and ends that earlier runs of `scvae pseudotime` recorded in the data, with the same model.

Letters in array shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scvae_cli.data.obs_columns import read_numbers
from scvae_cli.data.provenance import read_runs
from scvae_cli.data.slots import SlotNames
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError
from scvae_cli.session import Session


def recorded_orders(session: Session, names: SlotNames) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the root of each order, and the position of each cell from 0 to 1, shape (n,).

    The position of a cell is NaN if the order leaves out the cell. A column that the user has replaced by other values
    than positions from 0 to 1 is skipped.
    """
    for record in read_runs(session.store, names.key_added).values():
        root, name = (record["options"].get(key) for key in ("root", "name"))
        if not (isinstance(root, str) and isinstance(name, str)) or record["model_hash"] != session.model.hash:
            continue
        key = names.pseudotime(name)
        if f"obs/{key}" in record["slots"] and key in session.store.obs_keys:
            position_n = _positions(session.store, key)
            if position_n is not None:
                yield root, position_n[session.kept]


def _positions(store: CellStore, key: str) -> np.ndarray | None:
    """Return a column of positions from 0 to 1; None if the column contains other values."""
    try:
        position_n = read_numbers(store, key, partly=True)
    except DataError:
        return None
    return None if ((position_n < 0) | (position_n > 1)).any() else position_n


def recorded_ends(session: Session, names: SlotNames, groupby: str | None) -> frozenset[str]:
    """Return the groups of a column of obs that were named as ends of an order."""
    ends = set()
    for record in read_runs(session.store, names.key_added).values():
        options = record["options"]
        if record["model_hash"] == session.model.hash and "root" in options and options.get("groupby") == groupby:
            named = options.get("ends")
            ends |= {end for end in named if isinstance(end, str)} if isinstance(named, list) else set()
    return frozenset(ends)
