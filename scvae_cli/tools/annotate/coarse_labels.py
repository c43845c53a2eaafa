"""Reading of coarse labels: a second column of the labeled cells, in whose values the labels are nested.

Letters in array shapes: n cells, c labels, d coarse labels.
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
    """Read the coarse labels, which a second column of the labeled cells has.

    Labeled cells without a coarse label are allowed if other cells of their label have one.

    Raises
    ------
    DataError
        If the column does not exist, if a label has several coarse labels or none, if all labels have the same coarse
        label, or each has its own, or if a name means a label and another coarse label.
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
            f"{where} is not coarser than obs[{fine_key!r}]: cells labeled {fine[several[0]]!r} have values {shown}",
            "every label must lie in one coarse label; if the columns are the wrong way round, exchange them",
        )
    if [] in parents:
        raise DataError(
            f"{where} has no value for the cells labeled {fine[parents.index([])]!r}",
            "fill in the coarse label of at least one of these cells",
        )
    names = sorted({parent for (parent,) in parents})
    if len(names) == 1:
        raise DataError(f"{where} has only the value {names[0]!r}", "there must be two coarse labels or more")
    if len(names) == len(fine):
        raise DataError(
            f"{where} has one value for each label, so that there is nothing to back off to",
            "give a column in which some labels share a value, or leave --coarse-key out",
        )
    if UNKNOWN in names:
        raise DataError(
            f"{where} has the value {UNKNOWN!r}, which is reserved for cells of no known type",
            "give this coarse label another name",
        )
    for label, (parent,) in zip(fine, parents, strict=True):
        if label in names and label != parent:
            raise DataError(
                f"{where}: {label!r} is a coarse label, and also a label that lies in {one_line(repr(parent))}",
                "give one of them another name",
            )
