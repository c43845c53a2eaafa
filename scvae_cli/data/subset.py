"""Conditions on columns of obs that select some of the cells, such as "stage=E14.5,E15.5".

Letters in array shapes: n cells of the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scvae_cli.data.doubtful_labels import warn_of_doubtful
from scvae_cli.data.labels import labels_of, matching
from scvae_cli.data.obs_columns import obs_values
from scvae_cli.data.store import CellStore
from scvae_cli.errors import ConfigError, DataError

_SHOWN_VALUES = 20


def subset_mask(store: CellStore, conditions: Sequence[str]) -> np.ndarray:
    """Return which cells fulfill all conditions, a mask of shape (n,).

    A condition is KEY=VALUE[,VALUE…]. Each value is matched to the labels of the column (see `matching`). If the whole
    text after "=" is a value of the column, the commas in the text belong to the value.

    Raises
    ------
    ConfigError
        If a condition has no key or no value.
    DataError
        If the column KEY does not exist, if no cell has a given value, or if no cell fulfills all conditions.
    """
    chosen_n = np.ones(len(store.cell_names), dtype=bool)
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not (key and equals and text):
            raise ConfigError(f"--subset is {condition!r}", "it takes KEY=VALUE, for example: --subset stage=E15.5")
        labels_n = labels_of(obs_values(store, key, purpose="--subset"))
        warn_of_doubtful(store.title, key, labels_n)
        known = sorted(set(labels_n) - {None})
        whole = matching(text, known)
        found = [whole] if whole is not None else [_known(store, key, value, known) for value in text.split(",")]
        chosen_n &= np.isin(labels_n.astype(str), found) & (labels_n != None)  # noqa: E711  # elementwise
    if not chosen_n.any():
        raise DataError(f"{store.title}: no cell fulfills all conditions of --subset", "name fewer conditions")
    return chosen_n


def _known(store: CellStore, key: str, value: str, known: Sequence[str]) -> str:
    label = matching(value, known)
    if label is None:
        shown = ", ".join(known[:_SHOWN_VALUES]) + (", ..." if len(known) > _SHOWN_VALUES else "")
        raise DataError(f"{store.title}: no cells with obs[{key!r}] == {value!r} (--subset)", f"values: {shown}")
    return label
