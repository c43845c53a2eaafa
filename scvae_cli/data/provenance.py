"""The record of what scvae wrote into a store, and what follows from it: which slots are ours to replace."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from scvae_cli.data.slots import DEFAULT_KEY, Slot, SlotNames, slug
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError, ScvaeWarning


def provenance(
    store: CellStore | None, names: SlotNames, run: str, slots: Sequence[Slot], facts: dict[str, Any]
) -> Slot:
    """The record of one command's results, which also marks its slots as ours.

    Slots that an earlier run of this name left and this one does not replace stay ours, but are told apart, with the
    model they are of: beside the new results they would be taken for a part of them. So a warning names them. Without a
    store the slots go into a file of their own.
    """
    paths = [slot.path for slot in slots]
    record = facts | {"slots": paths}
    before = None if store is None else read_runs(store, names.key_added).get(slug(run))
    if store is not None and before is not None:
        known = before.get("earlier", {}) | dict.fromkeys(before["slots"], before["model_hash"])
        left = {path: model for path, model in known.items() if path not in paths and _is_there(store, path)}
        if left:
            record["earlier"] = left
            message = f"{', '.join(left)} of {store.title}: from an earlier run of {run}, and not replaced by this one"
            warnings.warn(ScvaeWarning(message), stacklevel=2)
    return Slot(group="uns", key=names.run(run), value=json.dumps(record, indent=1, sort_keys=True, default=_plain))


def _plain(value: object) -> object:
    """numpy's numbers, which Python's callers may give as options."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a record holds no {type(value).__name__}")


# What a record of ours has at least; anything else in its place is the user's own.
_RECORD = {"slots": list, "options": dict, "model_hash": str, "counts_source": str, "device": str}


def read_runs(store: CellStore, key_added: str = DEFAULT_KEY) -> dict[str, dict[str, Any]]:
    """Every run recorded in a store under one key: run name → what `provenance` wrote."""
    prefix = f"{key_added}/runs/"
    runs = {}
    for path in store.existing("uns"):
        if not path.startswith(prefix):
            continue
        try:
            record = json.loads(store.uns_text(path) or "")
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and all(isinstance(record.get(k), kind) for k, kind in _RECORD.items()):
            runs[path[len(prefix) :]] = record
    return runs


def refuse_foreign(store: CellStore, paths: Sequence[str], names: SlotNames) -> None:
    """Refuse to overwrite what scvae did not write.

    A slot is ours when a run recorded under the same key lists it.

    Parameters
    ----------
    paths
        Of the slots to be written, as `Slot.path` has them.

    Raises
    ------
    DataError
        Naming the first element that is in the way.
    """
    runs = read_runs(store, names.key_added)
    ours = {path for run in runs.values() for path in (*run["slots"], *run.get("earlier", {}))}
    taken = [path for path in paths if path not in ours and _is_there(store, path)]
    # Every command leaves its record in uns: there a value of the user's own may stand in the place of our folder.
    if not runs and names.key_added in store.existing("uns"):
        taken.append(f"uns/{names.key_added}")
    if taken:
        raise DataError(
            f"{store.title}: {taken[0]} is there already and was not written by scvae",
            "use --force to replace it, or --key-added NAME to write under another name",
        )


def refuse_another(
    store: CellStore, paths: Sequence[str], names: SlotNames, *, run: str, made_of: dict[str, Any] | None = None
) -> None:
    """Refuse to replace one walk, climb or ordering by another whose name comes to the same slots.

    Parameters
    ----------
    paths
        Of the slots to be written.
    run
        What will write them: the command and the name.
    made_of
        The options that a name nobody chose is made of. Such a name may leave out in what they differ: signs, and all
        way-points but the ends. A chosen name is taken at its word, and its earlier result replaced.

    Raises
    ------
    DataError
        When all runs that wrote one of the slots were of another name, or of other options.
    """
    there = [old for old in read_runs(store, names.key_added).values() if not set(paths).isdisjoint(old["slots"])]
    asked = made_of or {}
    if not there or any(
        old.get("command") == run and all(old["options"].get(key) == value for key, value in asked.items())
        for old in there
    ):
        return
    other = there[0]
    told = "".join(f", {key} {other['options'].get(key)!r}" for key in asked)
    taken = next(path for path in paths if path in other["slots"])
    raise DataError(
        f"{store.title}: {taken} holds another result, of {other.get('command')!r}{told}",
        "use --name NAME to write beside it, or --force to replace it",
    )


def _is_there(store: CellStore, path: str) -> bool:
    group, key = path.split("/", 1)
    return key in store.existing(group)
