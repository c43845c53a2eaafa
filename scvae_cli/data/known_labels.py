"""Known labels of cells, such as cell types: the names of the labels, and the label of each labeled cell.

Letters in array shapes: n cells, c labels.
"""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.doubtful_labels import warn_of_doubtful
from scvae_cli.data.labels import are_measurements, as_label, in_natural_order, labels_of, matching
from scvae_cli.data.obs_columns import obs_values
from scvae_cli.data.provenance import read_runs
from scvae_cli.data.slots import DEFAULT_KEY
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError
from scvae_cli.labels import BETWEEN, UNKNOWN

# On average, the label of one cell in HIDDEN_ONE_IN is hidden from a training, so that predictions can be tested on
# cells with a hidden label.
HIDDEN_ONE_IN = 5
_SHOWN = 5
# Texts that usually mean that a cell has no label, in lower case.
_USUALLY_NONE = frozenset(
    (
        *("nan", "na", "n/a", "<na>", "none", "null", "?", "-", "missing", "unassigned", "not assigned", "unlabeled"),
        *("unlabelled", "unannotated", "unclassified", "undefined", "undetermined", UNKNOWN),
    )
)


@dataclass(frozen=True)
class KnownLabels:
    """The labels of the cells in a column of obs.

    `names` are the sorted names of the labels. `code_n` is the index of each cell's label in `names`, shape (n,), or −1
    for a cell without a label. `values` holds the value of each label if the labels are numbers or booleans; otherwise,
    `values` is None.
    """

    names: tuple[str, ...]
    code_n: np.ndarray
    values: np.ndarray | None = None

    @property
    def n_labeled(self) -> int:
        """Number of cells with a label."""
        return int(np.count_nonzero(self.code_n >= 0))

    def cells(self, rows: np.ndarray) -> KnownLabels:
        """Return the labels of the cells that `rows` selects, as indices or as a mask."""
        return replace(self, code_n=self.code_n[rows])

    def present(self) -> KnownLabels:
        """Return the same labels of the cells, with only the names that at least one cell has."""
        known_n = self.code_n >= 0
        used_c, new_m = np.unique(self.code_n[known_n], return_inverse=True)
        code_n = np.full(len(self.code_n), -1, dtype=np.int64)
        code_n[known_n] = new_m
        values = None if self.values is None else self.values[used_c]
        return KnownLabels(tuple(self.names[c] for c in used_c), code_n, values)

    def ranks(self) -> np.ndarray:
        """Return the rank of each label when the labels are sorted by the position of their first cell, shape (c,).

        The ranks do not change if labels are renamed or listed in another order.
        """
        code_m = self.code_n[self.code_n >= 0]
        _, first_c = np.unique(code_m, return_index=True)
        ranks: np.ndarray = np.argsort(np.argsort(first_c))
        return ranks


def hidden_from_training(cell_names: np.ndarray, seed: int) -> np.ndarray:
    """Return a mask of the cells whose labels are hidden from a training with the random seed `seed`, shape (n,).

    Whether a label is hidden depends only on the name of the cell and on the seed, so later commands can find out which
    labels were hidden.
    """
    remainder_n = np.fromiter((zlib.crc32(f"{seed} {name}".encode()) for name in cell_names), np.int64, len(cell_names))
    hidden_n: np.ndarray = remainder_n % HIDDEN_ONE_IN == 0
    return hidden_n


def known_labels(
    store: CellStore,
    key: str,
    *,
    unlabeled: str | None,
    warn: Callable[[str], None],
    kept: np.ndarray | None = None,
    key_added: str = DEFAULT_KEY,
) -> KnownLabels:
    """Read the known labels of the cells of a file or AnnData.

    Parameters
    ----------
    key
        Column of obs with the labels.
    unlabeled
        Value of the column that means that a cell has no label, in addition to missing values and empty texts.
    warn
        Function that is called with warnings about labels that are empty texts, or that usually mean that a cell has no
        label. (Python warnings name labels that are alike, see `warn_of_doubtful`.)
    kept
        Mask of the cells of the store whose labels are read; None for all cells.
    key_added
        Name under which results are written. If the column `key` does not exist, the error message suggests other
        columns, but none that an earlier `annotate` wrote under this name.

    Raises
    ------
    DataError
        If the column does not exist or holds measurements, or if no cell has the label `unlabeled`. A DataError is also
        raised if there are fewer than two labels, if every label has only one cell, if a label is "unknown", or if a
        label contains " | ", which separates the labels of a prediction set.
    """
    title = store.title
    column = obs_values(store, key, purpose="--labels-key", without=annotated_columns(store, key_added))
    label_n = labels_of(column if kept is None else column[kept])
    warn_of_doubtful(title, key, label_n)
    if are_measurements(column) and (label_n != None).any():  # noqa: E711  # elementwise
        raise DataError(
            f"{title}: obs[{key!r}] holds measurements, not labels", "--labels-key takes a column that names groups"
        )
    present = sorted(set(label_n) - {None})
    if unlabeled is not None:
        absent = matching(unlabeled, present)
        if absent is None:
            shown = ", ".join(present[:_SHOWN]) + (", ..." if len(present) > _SHOWN else "")
            raise DataError(
                f"{title}: no cells with obs[{key!r}] == {unlabeled!r} (--unlabeled)", f"values: {shown or 'none'}"
            )
        label_n[label_n == absent] = None
        present.remove(absent)
    empty = [label for label in present if not label.strip()]
    if empty:
        empty_n = np.isin(label_n, empty)
        found = f"{amount(int(empty_n.sum()), 'cell has', 'cells have')} an empty text in obs[{key!r}]"
        warn(f"{title}: {found}: they are taken as cells without a label")
        label_n[empty_n] = None
        present = [label for label in present if label not in empty]
    names = in_order(store, key, present)
    index = {name: i for i, name in enumerate(names)}
    code_n = np.asarray([index.get(label, -1) for label in label_n], dtype=np.int64)
    _check(title, key, names, code_n)
    _warn_of_usually_none(title, key, names, code_n, warn)
    return KnownLabels(names, code_n, values_by_label(column, names))


def annotated_columns(store: CellStore, key_added: str) -> set[str]:
    """Return the columns of obs that an earlier `scvae annotate` wrote; messages do not suggest these columns."""
    record = read_runs(store, key_added).get("annotate", {})
    return {path.removeprefix("obs/") for path in record.get("slots", []) if path.startswith("obs/")}


def in_order(store: CellStore, key: str, present: list[str]) -> tuple[str, ...]:
    """Sort labels in the order of the categories of their column.

    If the column has no categories, the labels are sorted by their numbers or alphabetically.
    """
    categories = store.obs_categories(key)
    if categories is not None:
        known = set(present)
        return tuple(name for name in categories if name in known)
    return tuple(in_natural_order(present) or present)


def _check(title: str, key: str, names: tuple[str, ...], code_n: np.ndarray) -> None:
    where = f"{title}: obs[{key!r}]"
    if not names:
        raise DataError(
            f"{where} has no label for any cell",
            "choose a column that has a value for some of the cells",
        )
    if len(names) == 1:
        raise DataError(f"{where} has only the label {names[0]!r}", "a classifier needs at least two different labels")
    if UNKNOWN in names:
        raise DataError(
            f"{where} has the label {UNKNOWN!r}, which is reserved for cells of no known type",
            f"use --unlabeled {UNKNOWN} if these cells have no label, or give the label another name",
        )
    ambiguous = [name for name in names if BETWEEN in f" {name} "]
    if ambiguous:
        raise DataError(
            f"{where} has the label {ambiguous[0]!r}, but {BETWEEN!r} separates the labels of a prediction set",
            f"rename labels with {BETWEEN!r}: adata.obs[{key!r}] = adata.obs[{key!r}].str.replace('|', '/')",
        )
    if np.bincount(code_n[code_n >= 0]).max() < 2:
        raise DataError(
            f"{where} has a single cell of each label",
            "at least one label must have two cells, so that predictions can be tested on held-out cells",
        )


def _warn_of_usually_none(
    title: str, key: str, names: tuple[str, ...], code_n: np.ndarray, warn: Callable[[str], None]
) -> None:
    suspects = [name for name in names if name.strip().casefold() in _USUALLY_NONE]
    if not suspects:
        return
    size_c = np.bincount(code_n[code_n >= 0], minlength=len(names))
    shown = ", ".join(f"{name!r} ({amount(int(size_c[names.index(name)]), 'cell')})" for name in suspects)
    if len(suspects) == 1:
        found, use = f"the label {shown}, which is taken as a cell type", f"use --unlabeled {shlex.quote(suspects[0])}"
    else:
        found = f"the labels {shown}, which are taken as cell types"
        use = f"give one of them to --unlabeled ({shlex.quote(suspects[0])}), and make the others missing values,"
    warn(f"{title}: obs[{key!r}] has {found}: {use} if these cells have no label")


def values_by_label(column: np.ndarray, names: Sequence[str]) -> np.ndarray | None:
    """Return the value of each label in a column of numbers or booleans, shape (c,).

    The result is None for a column of texts.

    >>> values_by_label(np.array([2.0, 1.0, np.nan]), ["1", "2"])
    array([1., 2.])
    >>> values_by_label(np.array(["2", "1"], dtype=object), ["1", "2"]) is None
    True
    """
    import pandas as pd  # pandas is imported only here, because the import takes time

    found: dict[str | None, Any] = {}
    for value in pd.unique(column):
        found.setdefault(as_label(value), value)
    values = [found[name] for name in names]
    if len({isinstance(value, (bool, np.bool_)) for value in values}) != 1:
        return None
    array = np.asarray(values)
    return array if array.dtype.kind in "biuf" and array.ndim == 1 else None
