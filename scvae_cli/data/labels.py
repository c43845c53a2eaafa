"""Labels of the cells in a column of obs, and the lookup of a label that a caller names.

A label is the text form of a value of a column. Another module, `scvae_cli/labels.py`, turns values of every type into
labels. The function `matching`, in this module, looks up a label in two steps. First, `matching` searches for a label
with the text that the caller gave. If no label has this text, and all labels are numbers or booleans, `matching`
searches for a label with the same numeric value. The values 1, 1.0, "1", "1.0" and True therefore all find the label
"1". If a column of strings contains both "1.0" and "1", the two strings remain different labels.

Letters in array shapes: n cells.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from scvae_cli.labels import as_label

__all__ = [
    "are_measurements",
    "as_label",
    "group_order",
    "in_natural_order",
    "labels_of",
    "matching",
    "positions_in",
    "values_of",
]


def labels_of(values: Any) -> np.ndarray:
    """Return the n labels of a column: strings, and None for missing values.

    The column is an array, or a column of a data frame.

    >>> list(labels_of(np.array([2.0, 1.0, np.nan])))
    ['2', '1', None]
    >>> list(labels_of(np.array([1, "1.0", True, None, b"T cell"], dtype=object)))
    ['1', '1.0', 'True', None, 'T cell']
    """
    values = values_of(values)
    if values.dtype.kind == "O":
        return _objects([as_label(value) for value in values])
    distinct, index_n = np.unique(values, return_inverse=True)
    labels_n: np.ndarray = _objects([as_label(value) for value in distinct])[index_n]
    return labels_n


def values_of(column: Any) -> np.ndarray:
    """Return a column of a data frame as an array.

    Missing values become NaN in a column of floats, and None in any other column.

    Integers and booleans keep their type, even if other values of the column are missing.
    """
    if isinstance(column, np.ndarray):
        return column
    array = getattr(column, "array", column)
    if hasattr(array, "categories"):
        # pandas itself would convert integer categories to floats if a cell has no category (code -1).
        by_code = _objects([*array.categories, None])
        values_n: np.ndarray = by_code[np.asarray(array.codes)]
        return values_n
    dtype = getattr(array, "dtype", None)
    if dtype is None:
        return _objects(list(array))
    if not isinstance(dtype, np.dtype) and (plain := getattr(dtype, "numpy_dtype", None)) is not None:
        missing_n = np.asarray(array.isna())
        if plain.kind == "f":
            return np.asarray(array.to_numpy(dtype=plain, na_value=np.nan))
        if plain.kind != "O" and not missing_n.any():
            return np.asarray(array.to_numpy(dtype=plain))
        values_n = np.array(array, dtype=object)
        values_n[missing_n] = None
        return values_n
    return np.asarray(array)


def are_measurements(values: np.ndarray) -> bool:
    """Whether a column contains floats that are not all whole numbers.

    A column of measurements cannot name groups of cells.

    >>> [are_measurements(np.array(values)) for values in ([0.5, 1.0], [1.0, np.nan], [1, 2])]
    [True, False, False]
    """
    if values.dtype.kind != "f":
        return False
    finite = values[np.isfinite(values)]
    return bool((finite != np.trunc(finite)).any()) or len(finite) == 0


def matching(given: object, labels: Collection[str]) -> str | None:
    """Return the label in `labels` that matches the value `given`, or None if no label matches.

    >>> matching(1.0, ["1", "2"]), matching("1.0", ["1", "2"]), matching("2", ["1.0", "2.0"])
    ('1', '1', '2.0')
    >>> matching(True, ["False", "True"]), matching("true", ["False", "True"]), matching(True, ["0", "1"])
    ('True', 'True', '1')
    >>> matching(1.0, ["1.0", "A"]), matching("1.0", ["1", "A"]), matching("100", ["1E2", "1E3"])
    ('1.0', None, None)
    """
    label = as_label(given)
    if label is None:
        return None
    for text in (label, str(given)):
        if text in labels:
            return text
    wanted = _number_given(label)
    if wanted is None:
        return None
    found = []
    for known in labels:
        number = _number_of_label(known)
        if number is None:
            return None
        if number == wanted:
            found.append(known)
    return found[0] if len(found) == 1 else None


def in_natural_order(labels: Collection[str]) -> list[str] | None:
    """Sort labels by the number that each label contains, such as "day 3" and "day 12".

    The labels may differ only in one number or one range of numbers; otherwise, the result is None. A hyphen between
    two numbers, as in "80-100", is not read as a minus sign. Dates have three numbers and are not sorted.

    >>> in_natural_order(["10", "9", "-1"]), in_natural_order(["E10", "E9.5"]), in_natural_order(["day 3", "day 12"])
    (['-1', '9', '10'], ['E9.5', 'E10'], ['day 3', 'day 12'])
    >>> in_natural_order(["100-130", "80-100"]), in_natural_order(["12h", "2d"]), in_natural_order(["early", "late"])
    (['80-100', '100-130'], None, None)
    """
    try:
        return sorted(labels, key=float)
    except ValueError:
        number = r"\d+(?:\.\d+)?"
        around = {re.sub(number, "#", label) for label in labels}
        if len(around) != 1 or around.pop().count("#") not in (1, 2):
            return None
        return sorted(labels, key=lambda label: [float(text) for text in re.findall(number, label)])


def group_order(labels: Collection[str], categories: Sequence[str] | None) -> tuple[str, ...]:
    """Sort the groups of a column for a legend. Numbers in labels are compared by their value.

    `categories` are the categories of a categorical column, in order, and None for any other column. pandas sorts
    categories as texts. Any other order of the categories was chosen by the user, and is kept.

    >>> group_order({"10", "9"}, ["10", "9"]), group_order({"late", "early"}, ["early", "mid", "late"])
    (('9', '10'), ('early', 'late'))
    """
    if categories is not None and [*categories] != sorted(categories):
        return tuple(label for label in categories if label in labels)
    return tuple(sorted(labels, key=_natural))


def positions_in(names: Sequence[str], label_n: np.ndarray) -> np.ndarray:
    """Return the position of each label in `names` (found by `matching`), or −1 if none matches; shape (n,), int64.

    >>> positions_in(["1.0", "2.0"], np.array(["2", "1", "3", None], dtype=object))
    array([ 1,  0, -1, -1])
    """
    index = {name: i for i, name in enumerate(names)}
    found = {label: matching(label, index) for label in set(label_n)}
    at = {label: -1 if name is None else index[name] for label, name in found.items()}
    return np.asarray([at[label] for label in label_n], dtype=np.int64)


def _natural(label: str) -> list[str | tuple[int, str]]:
    """Return a sort key that compares numbers in labels by their value, so that "10" comes after "9"."""
    # Numbers are compared by their length and their digits, because Python refuses to convert numbers of thousands of
    # digits.
    return [_by_value(part) if part.isdecimal() else part for part in re.split(r"(\d+)", label)]


def _by_value(number: str) -> tuple[int, str]:
    digits = "".join(str(int(digit)) for digit in number).lstrip("0")
    return len(digits), digits


def _objects(items: Sequence[Any]) -> np.ndarray:
    array: np.ndarray = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def _number_given(label: str) -> float | None:
    """Return the number that the text of a caller denotes, or None if the text is not a number."""
    text = label.strip().casefold()
    if text in ("true", "false"):
        return int(text == "true")
    return None if "_" in text else _parsed(text)


def _number_of_label(label: str) -> float | None:
    """Return the number of a label that is written as Python prints a number or boolean ("1", "1.0", "True").

    The result is None for labels that Python would print differently, such as "1E2" or "01".
    """
    if label in ("True", "False"):
        return int(label == "True")
    number = _parsed(label)
    return number if number is not None and label in (str(number), as_label(number)) else None


def _parsed(text: str) -> float | None:
    # Integers are tried first, because a conversion to float would round large integers.
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None
