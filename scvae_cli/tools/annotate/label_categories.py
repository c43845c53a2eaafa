"""Columns of labels as they are written: labels of numbers, or of True and False, have the values of their column.

Letters in array shapes: n cells, c labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scvae_cli.labels import UNKNOWN


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
