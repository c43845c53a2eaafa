"""Columns of obs that look like replicates, such as donors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from scvae_cli.data.labels import are_measurements

if TYPE_CHECKING:
    import numpy as np

    from scvae_cli.session import Session

# Words in the names of columns with replicates, the most reliable words first. "sample" comes late and "batch" is
# missing, because the two words often name a library of one donor under one condition.
_WORDS = (
    "donor", "patient", "subject", "individual", "participant", "animal", "mouse", "replicate", "biorep", "sample",
    "specimen",
)  # fmt: skip


def warning_of_donors(session: Session, sides: Sequence[np.ndarray], *, groupby: str) -> str | None:
    """Return a warning if a column of obs looks like replicates of the compared cells, otherwise None.

    `sides` are the indices of the cells of both groups, and `groupby` is the column of the groups.
    """
    keys, confounded = session.store.obs_keys, None
    for key in donor_columns([key for key in keys if key != groupby and list(keys).count(key) == 1]):
        if are_measurements(session.store.obs_column(key)):
            continue
        label_n = session.labels(key)
        labels = [set(label_n[cells]) - {None} for cells in sides]
        fewest = min(map(len, labels))
        if fewest >= 2:
            return (
                f"obs[{key!r}] looks like replicates, and cells of one replicate are not independent; with "
                f"--replicate-key {key}, replicates are compared instead of cells"
            )
        if confounded is None and fewest == 1 and len(labels[0] | labels[1]) > 1:
            confounded = (
                f"obs[{key!r}] looks like replicates, and one of the groups has only one replicate: differences "
                "between the groups cannot be distinguished from differences between replicates"
            )
    return confounded


def donor_columns(columns: Iterable[str]) -> list[str]:
    """Return the columns whose names contain a word for a replicate, the most likely ones first.

    >>> donor_columns(["n_genes", "sample_id", "Donor", "patient_age", "downsampled"])
    ['Donor', 'sample_id']
    """
    found = [(word, name) for name in columns if (word := _word_of(name)) is not None]
    return [name for _, name in sorted(found, key=lambda pair: _WORDS.index(pair[0]))]


def _word_of(name: str) -> str | None:
    parts = [part.casefold() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    # The column "patient_age" holds ages, whereas "patient_id" and "orig_patient" hold patients.
    rest = [part for part in parts if part not in ("id", "ids", "name", "label", "key", "orig", "no", "number")]
    last = rest[-1] if rest else ""
    return next((word for word in _WORDS if last in (word, f"{word}s")), None)
