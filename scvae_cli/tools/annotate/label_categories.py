"""Columns of labels as they are written: labels of numbers, or of True and False, have the values of their column.

Shapes: n cells, c labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scvae_cli.labels import as_label
from scvae_cli.tools.annotate.options import UNKNOWN


def values_by_label(column: np.ndarray, names: Sequence[str]) -> np.ndarray | None:
    """Return the value of each label in a column of numbers, or of True and False, shape (c,); None for other columns.

    >>> values_by_label(np.array([2.0, 1.0, np.nan]), ["1", "2"])
    array([1., 2.])
    >>> values_by_label(np.array(["2", "1"], dtype=object), ["1", "2"]) is None
    True
    """
    import pandas as pd  # only here: it takes time to import

    found: dict[str | None, Any] = {}
    for value in pd.unique(column):
        found.setdefault(as_label(value), value)
    values = [found[name] for name in names]
    if len({isinstance(value, (bool, np.bool_)) for value in values}) != 1:
        return None
    array = np.asarray(values)
    return array if array.dtype.kind in "biuf" else None


def categorical(code_n: np.ndarray, names: tuple[str, ...], values: np.ndarray | None) -> Any:
    """Return the labels of cells as a `pandas.Categorical`.

    Unknown cells have the code c. They are missing values if the labels are written as numbers, or as True and False,
    since a column holds values of one type.
    """
    import pandas as pd

    if values is None:
        return pd.Categorical.from_codes(code_n, categories=[*names, UNKNOWN])
    return pd.Categorical.from_codes(np.where(code_n == len(names), -1, code_n), categories=values)


def texts(names: Sequence[str]) -> np.ndarray:
    """Return names as an array of objects, shape (c,)."""
    array: np.ndarray = np.empty(len(names), dtype=object)
    array[:] = names
    return array
