"""The labels that are known: which labels there are, and the label of each labeled cell.

Shapes: n cells.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.labels import are_measurements, in_natural_order, matching
from scvae_cli.data.obs_columns import obs_values
from scvae_cli.data.provenance import read_runs
from scvae_cli.data.slots import DEFAULT_KEY
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError
from scvae_cli.session import Session
from scvae_cli.tools.annotate.back_off import CoarseLabels
from scvae_cli.tools.annotate.label_categories import values_by_label
from scvae_cli.tools.annotate.options import BETWEEN, UNKNOWN

_SHOWN = 5
# Texts that usually mean that a cell has no label, in lower case.
_USUALLY_NONE = frozenset(
    ("nan", "na", "n/a", "<na>", "none", "null", "?", "-", "unassigned", "unlabeled", "unlabelled", UNKNOWN)
)


@dataclass(frozen=True)
class KnownLabels:
    """The labels in their order, and the index of each cell's label, shape (n,); −1 for cells without a label.

    `values` are the values of the column if they are numbers, or True and False; None otherwise. `coarse` are the
    coarse labels, or None.
    """

    names: tuple[str, ...]
    code_n: np.ndarray
    values: np.ndarray | None = None
    coarse: CoarseLabels | None = None

    def ranks(self) -> np.ndarray:
        """Return the rank of each label in the order of their first cells, shape (c,).

        This order depends on which cells share a label, and neither on the names of the labels nor on their order.
        """
        code_m = self.code_n[self.code_n >= 0]
        _, first_c = np.unique(code_m, return_index=True)
        ranks: np.ndarray = np.argsort(np.argsort(first_c))
        return ranks


def known_labels(
    session: Session, key: str, *, unlabeled: str | None, warn: Callable[[str], None], key_added: str = DEFAULT_KEY
) -> KnownLabels:
    """Read the known labels of the cells of a session.

    Parameters
    ----------
    key
        Column of obs with the labels.
    unlabeled
        Label of the cells that have no label, besides cells with a missing value or an empty text.
    warn
        Receives warnings about labels that are empty texts, or that usually mean that a cell has no label.
    key_added
        Name under which the results will be written. If the column does not exist, the columns of earlier results are
        not offered in its place.

    Raises
    ------
    DataError
        If the column does not exist or holds measurements, if no cell has the label `unlabeled`, if fewer than two
        labels or no label of two cells are left, if a label has the name of the cells of no known type, or if a label
        contains the text that separates the labels of a prediction set.
    """
    title = session.store.title
    column = obs_values(session.store, key, purpose="--labels-key", without=annotated_columns(session.store, key_added))
    label_n = session.labels(key, purpose="--labels-key")
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
    names = in_order(session, key, present)
    index = {name: i for i, name in enumerate(names)}
    code_n = np.asarray([index.get(label, -1) for label in label_n], dtype=np.int64)
    _check(title, key, names, code_n)
    _warn_of_usually_none(title, key, names, code_n, warn)
    return KnownLabels(names, code_n, values_by_label(column, names))


def annotated_columns(store: CellStore, key_added: str) -> set[str]:
    """Return the columns of obs that an earlier `annotate` wrote; they are not offered as known labels."""
    record = read_runs(store, key_added).get("annotate", {})
    return {path.removeprefix("obs/") for path in record.get("slots", []) if path.startswith("obs/")}


def in_order(session: Session, key: str, present: list[str]) -> tuple[str, ...]:
    """Sort labels like the categories of the column, or by their numbers, or by the alphabet."""
    categories = session.store.obs_categories(key)
    if categories is not None:
        known = set(present)
        return tuple(name for name in categories if name in known)
    return tuple(in_natural_order(present) or present)


def _check(title: str, key: str, names: tuple[str, ...], code_n: np.ndarray) -> None:
    where = f"{title}: obs[{key!r}]"
    if not names:
        raise DataError(f"{where} has no label for any cell", "give a column with labels, or --reference FILE")
    if len(names) == 1:
        raise DataError(f"{where} has only the label {names[0]!r}", "there must be two labels or more to choose from")
    if UNKNOWN in names:
        raise DataError(
            f"{where} has the label {UNKNOWN!r}, which stands for cells of no known type",
            f"use --unlabeled {UNKNOWN} if these cells have no label, or give the label another name",
        )
    ambiguous = [name for name in names if BETWEEN in f" {name} "]
    if ambiguous:
        raise DataError(
            f"{where} has the label {ambiguous[0]!r}, but {BETWEEN!r} separates the labels of a prediction set",
            f"rename such labels: adata.obs[{key!r}] = adata.obs[{key!r}].str.replace('|', '/')",
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
