"""Reading of coarse labels from a second column of obs. Several fine labels may have the same coarse label.

Letters in array shapes: n cells, c fine labels, d coarse labels.
"""

from __future__ import annotations

import numpy as np

from scvae_cli.data.known_labels import KnownLabels, annotated_columns, in_order, values_by_label
from scvae_cli.data.obs_columns import obs_values
from scvae_cli.errors import DataError, one_line
from scvae_cli.labels import UNKNOWN
from scvae_cli.session import Session
from scvae_cli.tools.annotate.back_off import CoarseLabels

_SHOWN = 3


def coarse_labels(known: KnownLabels, session: Session, fine_key: str, key: str, *, key_added: str) -> CoarseLabels:
    """Read the coarse labels of the labeled cells from the column `key` of obs.

    A labeled cell may lack a coarse label if another cell with the same fine label has one.

    Raises
    ------
    DataError
        If the column does not exist, if there is only one coarse label, or if there are as many coarse labels as fine
        labels. Each fine label must have exactly one coarse label. A coarse label must not be called "unknown", and
        must not have the name of a fine label that belongs to another coarse label.
    """
    title = session.store.title
    column = obs_values(session.store, key, purpose="--coarse-key", without=annotated_columns(session.store, key_added))
    coarse_n = session.labels(key, purpose="--coarse-key")
    parents = [
        sorted({label for label in set(coarse_n[known.code_n == c]) if label is not None and label.strip()})
        for c in range(len(known.names))
    ]
    _check(title, fine_key, key, known.names, parents)
    names = in_order(session.store, key, sorted({parent for (parent,) in parents}))
    parent_c = np.asarray([names.index(parent) for (parent,) in parents])
    return CoarseLabels(names=names, parent_c=parent_c, values=values_by_label(column, names))


def _check(title: str, fine_key: str, key: str, fine: tuple[str, ...], parents: list[list[str]]) -> None:
    where = f"{title}: obs[{key!r}] (--coarse-key)"
    several = [c for c, found in enumerate(parents) if len(found) > 1]
    if several:
        found = parents[several[0]]
        shown = ", ".join(map(repr, found[:_SHOWN])) + (", ..." if len(found) > _SHOWN else "")
        raise DataError(
            f"{where} is not coarser than obs[{fine_key!r}]: cells labeled {fine[several[0]]!r} have "
            f"several values ({shown})",
            "all cells of a label must have the same coarse label; if --labels-key and --coarse-key are the wrong way "
            "round, exchange them",
        )
    if [] in parents:
        raise DataError(
            f"{where} has no value for the cells labeled {fine[parents.index([])]!r}",
            "fill in the coarse label of at least one cell of each label",
        )
    names = sorted({parent for (parent,) in parents})
    if len(names) == 1:
        raise DataError(f"{where} has only the value {names[0]!r}", "choose a column with two or more coarse labels")
    if len(names) == len(fine):
        raise DataError(
            f"{where} has a different value for each label, so no label can be replaced by a coarser label",
            "choose a column in which several labels have the same value, or omit --coarse-key",
        )
    if UNKNOWN in names:
        raise DataError(
            f"{where} has the value {UNKNOWN!r}, which is reserved for cells of no known type",
            f"give the coarse label {UNKNOWN!r} another name",
        )
    for label, (parent,) in zip(fine, parents, strict=True):
        if label in names and label != parent:
            raise DataError(
                f"{where}: {label!r} is a coarse label, and also a fine label that belongs to the coarse label "
                f"{one_line(repr(parent))}",
                "give the coarse label or the fine label another name",
            )
