"""Columns of predicted labels. If known labels are numbers or booleans, predicted labels have the same type.

Letters in array shapes: n cells, c labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scvae_cli.labels import UNKNOWN


def categorical(code_n: np.ndarray, names: tuple[str, ...], values: np.ndarray | None) -> Any:
    """Return the labels of cells as a `pandas.Categorical`.

    Cells of no known type have the code c. If the labels are numbers or booleans, cells of no known type get a missing
    value, because all categories of a column have one type.
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
