"""Records of the results that scvae wrote to a store (a file or an AnnData).

The records of earlier results determine which slots (elements of the store) scvae may replace.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scvae_cli.data.slots import DEFAULT_KEY, Slot, SlotNames, slug
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError, ScvaeWarning
from scvae_cli.strict_json import parse_json


def provenance(
    store: CellStore | None, names: SlotNames, run: str, slots: Sequence[Slot], facts: dict[str, Any]
) -> Slot:
    """Create the record of one run of a command. The record lists all slots that the run writes.

    An earlier run with the name of the new run may have written slots that the new run does not replace. The record
    lists the slots with old results separately, each with the hash of the model that gave the old result. A warning
    names the slots with old results, because users could mistake old results for results of the new run. `store` is
    None if the slots are written to a new file.
    """
    paths = [slot.path for slot in slots]
    record = facts | {"slots": paths}
    before = None if store is None else read_runs(store, names.key_added).get(slug(run))
    if store is not None and before is not None:
        known = before.get("earlier", {}) | dict.fromkeys(before["slots"], before["model_hash"])
        left = {path: model for path, model in known.items() if path not in paths and _is_there(store, path)}
        if left:
            record["earlier"] = left
            message = (
                f"{', '.join(left)} of {store.title} are from an earlier run of {run}; this run did not replace them"
            )
            warnings.warn(ScvaeWarning(message), stacklevel=2)
    return Slot(group="uns", key=names.run(run), value=json.dumps(record, indent=1, sort_keys=True, default=_plain))


def _plain(value: object) -> object:
    """Convert numpy's numbers, which a Python caller may pass as options, to Python's numbers."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"the record of a result cannot contain a {type(value).__name__}")


# Entries that every record of scvae has. If a value in uns lacks one of these entries, the user wrote the value.
_RECORD = {"slots": list, "options": dict, "model_hash": str, "counts_source": str, "device": str}


def read_runs(store: CellStore, key_added: str = DEFAULT_KEY) -> dict[str, dict[str, Any]]:
    """Return the records of all runs in uns[key_added] of the data, as a dict from the name of a run to its record."""
    folder = f"{key_added}/runs"
    runs = {}
    for name in store.existing(f"uns/{folder}"):
        try:
            record = parse_json(store.uns_text(f"{folder}/{name}") or "")
        except ValueError:
            continue
        if _is_record(record):
            runs[name] = record
    return runs


def read_all_runs(store: CellStore) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the records of all runs that the data contain, by `key_added` and by the name of the run.

    An element of uns that cannot be read, such as a link to a missing file, has no records.
    """
    found = {}
    for key in store.existing("uns"):
        try:
            found[key] = read_runs(store, key)
        except DataError:
            continue
    return {key: runs for key, runs in found.items() if runs}


def _is_record(value: Any) -> bool:
    if not (isinstance(value, dict) and all(isinstance(value.get(k), kind) for k, kind in _RECORD.items())):
        return False
    earlier = value.get("earlier", {})
    texts = [*value["slots"], *(earlier.values() if isinstance(earlier, dict) else [None])]
    # The slots of a record are paths such as "obsm/X_scvae".
    return all(isinstance(text, str) for text in texts) and all("/" in path for path in value["slots"])


def refuse_foreign(store: CellStore, paths: Sequence[str], names: SlotNames) -> None:
    """Raise a DataError if an element that scvae did not write would be overwritten; the error names the element.

    An element counts as written by scvae if the record of a run under the same `key_added` lists the element. `paths`
    are the paths (`Slot.path`) of the slots that will be written.
    """
    runs = read_runs(store, names.key_added)
    ours = {path for run in runs.values() for path in (*run["slots"], *run.get("earlier", {}))}
    taken = [path for path in paths if path not in ours and _is_there(store, path)]
    # Every command writes its record below uns[key_added], where the user may already have a value.
    if not runs and names.key_added in store.existing("uns"):
        taken.append(f"uns/{names.key_added}")
    if taken:
        raise DataError(
            f"{store.title}: {taken[0]} already exists and was not written by scvae",
            "use --force to replace it, or --key-added NAME to write under another name",
        )


def refuse_another(
    store: CellStore, paths: Sequence[str], names: SlotNames, *, run: str, made_of: dict[str, Any] | None = None
) -> None:
    """Raise a DataError if a new run would replace a different result, such as a trajectory between other groups.

    The error is raised if earlier runs wrote some of the slots, and none of these runs has the same command, name and
    options as the new run.

    Parameters
    ----------
    paths, run
        Paths of the slots that the new run will write, and command and name of the new run.
    made_of
        Options from which the automatic name of the result was made. Different options may give the same automatic
        name, because the name contains only the first and the last of the waypoints, and no special characters such as
        "+". If the user chose the name, `made_of` is None, and an earlier result of the same command and name is
        replaced.
    """
    there = [old for old in read_runs(store, names.key_added).values() if not set(paths).isdisjoint(old["slots"])]
    options = made_of or {}
    if not there or any(
        old.get("command") == run and all(old["options"].get(key) == value for key, value in options.items())
        for old in there
    ):
        return
    other = there[0]
    given = {key: other["options"].get(key) for key in options}
    described = "".join(f", {key} {_shown(value)}" for key, value in given.items() if value not in (None, {}, [], ()))
    taken = next(path for path in paths if path in other["slots"])
    raise DataError(
        f"{store.title}: {taken} holds another result, of {other.get('command')!r}{described}",
        "use --name NAME to keep both results, or --force to replace the old one",
    )


def _shown(value: Any) -> str:
    """Show the value of an option as users write it.

    >>> _shown({"cell_type": "B"}), _shown(["A", "B"]), _shown("stim")
    ("cell_type='B'", "'A', 'B'", "'stim'")
    """
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={part!r}" for key, part in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(repr, value))
    return repr(value)


def _is_there(store: CellStore, path: str) -> bool:
    mapping, _, key = path.rpartition("/")
    return key in store.existing(mapping)
