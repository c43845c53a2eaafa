"""Search for columns of obs that are confounded with the batch.

Correcting for the batch also removes differences in a column that is confounded with the batch.

The module finds three relations between the batch B and a column C of obs. In the first relation, the batch determines
the value of C: H(C|B) / H(C) is near 0, where H is the entropy. In the second relation, most of the variance of a
numeric column C lies between batches: η² is near 1. In the third relation, the value of C determines the batch:
H(B|C) / H(B) is near 0, where H is the entropy.

If the batch determines the value of C and the value of C determines the batch, C may give the batches other names, or C
may be a condition with one batch for each value. The data do not tell which of the two is the case. A column is left
out only if its values are the names of the batches.

If batches have few cells each, a column can be confounded with the batch by chance. A column is therefore reported only
if its values differ much less within batches than expected for values that are assigned to the cells at random. The
mean and the variance over all random assignments are computed with formulas (Mantel, Cancer Research 27:209, 1967), so
no values are shuffled.

Letters in array shapes: n cells, b batches, c values of a column. The computing time is proportional to the number of
cells.
"""

from __future__ import annotations

import numbers
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.labels import are_measurements, as_label, labels_of
from scvae_cli.data.store import CellStore

Relation = Literal["one_value_per_batch", "variance_between_batches", "same_groups", "one_batch_per_value"]

HINT = (
    "if these differences matter, choose a --batch-key whose batches each contain several values of the column, or "
    "train without --batch-key"
)
# Largest H(C|B) / H(C) and largest H(B|C) / H(B) of a confounded column C, where H is the entropy and B is the batch.
_UNDETERMINED, _UNDETERMINED_BATCH = 0.05, 0.1
_BETWEEN_BATCHES = 0.9
_MAX_VALUES, _CELLS_PER_VALUE = 100, 5
# By Cantelli's inequality, a random column lies seven standard deviations below the mean with a probability of at most
# 1/50, for any sizes of the batches. In most data, the probability is below one in a million.
_DEVIATIONS = 7.0
# If the absolute rank correlation of a column with the library size within batches is above this value, the column is
# treated as a measure of the library size.
_REPEATS_LIBRARY = 0.9
_SHOWN = 5
# Relations that come after the others.
_WEAKER = {"same_groups": 1, "one_batch_per_value": 2}


@dataclass(frozen=True, kw_only=True)
class Confounded:
    """A column of obs that is confounded with the batch.

    Parameters
    ----------
    column
        Name of the column.
    relation
        "one_value_per_batch" if the batch determines the value of the column, "variance_between_batches" if the column
        is numeric and most of its variance lies between batches, "same_groups" if the column divides the cells in the
        same way as the batch key, or "one_batch_per_value" if each batch holds several values of the column, but most
        values occur in one batch only.
    share
        Share of the column's entropy that the batch explains, share of the variance between batches (η²), or share of
        the batch's entropy that the column explains. A share of 1 means completely confounded.
    """

    column: str
    relation: Relation
    share: float


def confounded_columns(
    store: CellStore,
    batch: np.ndarray,
    batch_key: str,
    *,
    library_n: np.ndarray | None = None,
    without: Collection[str] = (),
) -> list[Confounded]:
    """Find the columns of obs that are confounded with the batch, the most confounded first.

    Missing values are left out. A column is not reported if it cannot be read, has only one value, contains the name of
    each cell's batch, or is a measure of the library size.

    Parameters
    ----------
    store
        The cells, whose columns of obs are read one after the other.
    batch, batch_key
        Batch of each cell, shape (n,), and name of the column with the batches.
    library_n
        Library sizes, shape (n,), to recognize columns that measure the library size, and to leave out cells without
        counts. None if the data are real numbers instead of counts.
    without
        Columns that are left out, such as other batch keys.
    """
    batch_n, n_batches, _ = _read(batch)
    if n_batches < 2:
        return []
    if library_n is not None:
        batch_n = np.where(library_n > 0, batch_n, -1)
    found: list[tuple[Confounded, int]] = []
    for key in dict.fromkeys(store.obs_keys):
        if key == batch_key or key in without:
            continue
        try:
            column = store.obs_column(key)
            value_n, n_values, number_n = _read(column)
        except Exception:  # an unusual column must not stop a training
            continue
        one = among_values(key, batch_n, value_n) if 2 <= n_values <= _MAX_VALUES else None
        if (one is None or one.relation == "one_batch_per_value") and number_n is not None:
            one = among_numbers(key, batch_n, number_n, library_n) or one
        if one is not None and not (one.relation == "same_groups" and _has_names_of(column, batch)):
            found.append((one, n_values or len(batch_n)))
    # Among columns that are equally confounded, columns with few values come first, because they are more likely to be
    # conditions.
    found.sort(key=lambda pair: (_WEAKER.get(pair[0].relation, 0), -pair[0].share, pair[1], pair[0].column))
    return [one for one, _ in found]


def confounding_message(batch_key: str, found: Sequence[Confounded]) -> str:
    """Return a message about the columns that are confounded with the batch; at most five columns are named.

    >>> condition = Confounded(column="condition", relation="one_value_per_batch", share=1.0)
    >>> print(confounding_message("sample", [condition]))
    batch key 'sample' is confounded with 'condition': all cells of a batch have the same value of 'condition', so \
correcting for the batch also removes differences in 'condition'
    """
    shown = found[:_SHOWN]
    strong = [one for one in shown if one.relation not in _WEAKER]
    same, weak = ([one.column for one in shown if one.relation == relation] for relation in _WEAKER)
    sentences = []
    if strong:
        names = _listed([one.column for one in strong])
        sentences.append(
            f"batch key {batch_key!r} is confounded with {names}: {_reasons(strong)}, so correcting for the batch also "
            f"removes differences in {names if len(strong) == 1 else 'these columns'}"
        )
    if same:
        names = _listed(same)
        one = len(same) == 1
        sentences.append(
            f"{names} {'divides' if one else 'divide'} the cells in the same way as batch key {batch_key!r}: unless "
            f"{'this column only names' if one else 'these columns only name'} the batches in another way, correcting "
            f"for the batch also removes differences in {names if one else 'these columns'}"
        )
    if weak:
        names = _listed(weak)
        subject = f"Most values of {names}"
        if not strong and not same:
            subject = f"batch key {batch_key!r} is partly confounded with {names}: most values of "
            subject += names if len(weak) == 1 else "these columns"
        sentences.append(
            f"{subject} occur in one batch only, so correcting for the batch may also remove differences between "
            "values from different batches"
        )
    return ". ".join(sentences)


def _reasons(strong: Sequence[Confounded]) -> str:
    same = [one for one in strong if one.relation == "one_value_per_batch"]
    numeric = [one for one in strong if one.relation == "variance_between_batches"]
    reasons = []
    if same:
        cells = "all" if all(one.share == 1 for one in same) else "nearly all"
        names = _listed([one.column for one in same])
        which = "each of these columns" if len(same) > 1 and not numeric else names
        reasons.append(f"{cells} cells of a batch have the same value of {which}")
    if numeric:
        least = f"{'at least ' if len(numeric) > 1 else ''}{int(100 * min(one.share for one in numeric))}%"
        reasons.append(f"{least} of the variance of {_listed([one.column for one in numeric])} is between batches")
    return ", and ".join(reasons)


def _listed(columns: Sequence[str]) -> str:
    names = [repr(column) for column in columns]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _read(values: np.ndarray) -> tuple[np.ndarray, int, np.ndarray | None]:
    """Read a column both as groups and as numbers.

    Returns
    -------
    Index of each cell's value (−1 for a missing value), the number of different values, and the values as float64 (NaN
    for a missing or infinite value). For a column of measurements, which defines no groups, the number of different
    values is given as 0. If some values are not numbers, None is returned in place of the float64 values.
    """
    import pandas as pd

    number_n = None
    if values.dtype.kind in "iuf":
        number_n = values.astype(np.float64)
        number_n[~np.isfinite(number_n)] = np.nan
        if are_measurements(values):
            return np.empty(0, dtype=np.int64), 0, number_n
        values = number_n if values.dtype.kind == "f" else values
    index_n, distinct = pd.factorize(values)
    if values.dtype.kind == "O" and all(_is_number(value) for value in distinct):
        # The values are integers, some of which are missing, or categories that are numbers.
        number_n = np.append(np.asarray(distinct, dtype=np.float64), np.nan)[index_n]
        number_n[~np.isfinite(number_n)] = np.nan
        if are_measurements(number_n):
            return np.empty(0, dtype=np.int64), 0, number_n
    if not 0 < len(distinct) <= 2 * _MAX_VALUES:
        return index_n, len(distinct), number_n
    # Values with the same label count as the same value, as in the rest of the package.
    merged, names = pd.factorize(np.asarray([as_label(value) for value in distinct], dtype=object))
    return np.append(merged, -1)[index_n], len(names), number_n


def _has_names_of(column: np.ndarray, batch: np.ndarray) -> bool:
    """Whether each value of a column that is not missing is the name of the cell's batch."""
    label_n, name_n = labels_of(column), labels_of(batch)
    return all(label is None or label == name for label, name in zip(label_n, name_n, strict=True))


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def among_values(key: str, batch_n: np.ndarray, value_n: np.ndarray) -> Confounded | None:
    """Test whether a column with few values is confounded with the batch.

    The result is None if the column is not confounded.
    """
    known = (batch_n >= 0) & (value_n >= 0)
    if not known.any():
        return None
    joint_bc = sp.coo_matrix((np.ones(known.sum()), (batch_n[known], value_n[known]))).tocsr()
    joint_bc = joint_bc[np.diff(joint_bc.indptr) > 0].tocsc()
    joint_bc = joint_bc[:, np.diff(joint_bc.indptr) > 0].tocsr()
    n_batches, n_values = joint_bc.shape
    if n_batches < 2 or n_values < 2 or n_values * _CELLS_PER_VALUE >= known.sum():
        return None
    left = _entropy_left(joint_bc)
    if joint_bc.nnz == n_batches == n_values and _is_no_chance(joint_bc):
        return Confounded(column=key, relation="same_groups", share=1.0)
    if left < _UNDETERMINED and _is_no_chance(joint_bc):
        return Confounded(column=key, relation="one_value_per_batch", share=1 - left)
    joint_cb = joint_bc.T.tocsr()
    left = _entropy_left(joint_cb)
    if left < _UNDETERMINED_BATCH and _is_no_chance(joint_cb):
        return Confounded(column=key, relation="one_batch_per_value", share=1 - left)
    return None


def among_numbers(
    key: str, batch_n: np.ndarray, number_n: np.ndarray, library_n: np.ndarray | None
) -> Confounded | None:
    """Test whether a column of numbers is confounded with the batch.

    The result is None if the column is not confounded.
    """
    known = (batch_n >= 0) & ~np.isnan(number_n)
    if known.sum() < 2:
        return None
    of_batch_n = batch_n[known]
    size_b = np.bincount(of_batch_n)
    of_batch_n, size_b = (np.cumsum(size_b > 0) - 1)[of_batch_n], size_b[size_b > 0]
    x_n = number_n[known] / max(np.abs(number_n[known]).max(), np.finfo(float).tiny)
    x_n -= x_n.mean()
    # The remaining differences within a constant column are rounding errors.
    if len(size_b) < 2 or np.abs(x_n).max() < 1e-12:
        return None
    x_n /= x_n.std()
    n = len(x_n)
    within = float(np.square(_without_batch_means(x_n, of_batch_n, size_b)).sum())
    share = 1 - within / n
    if share <= _BETWEEN_BATCHES:
        return None
    square_n = np.square(x_n)
    differences = _PairSums(
        total=2.0 * n * n,
        squares=2 * n * float(np.square(square_n).sum()) + 6.0 * n * n,
        rows=float(np.square(n * square_n + n).sum()),
    )
    if _deviations_below(2 * within, _same_group(size_b), differences, n) < _DEVIATIONS:
        return None
    if library_n is not None and _repeats(number_n[known], library_n[known], of_batch_n, size_b):
        return None
    return Confounded(column=key, relation="variance_between_batches", share=share)


def _without_batch_means(x_n: np.ndarray, of_batch_n: np.ndarray, size_b: np.ndarray) -> np.ndarray:
    without_n: np.ndarray = x_n - (np.bincount(of_batch_n, weights=x_n) / size_b)[of_batch_n]
    return without_n


def _repeats(number_n: np.ndarray, library_n: np.ndarray, of_batch_n: np.ndarray, size_b: np.ndarray) -> bool:
    """Whether the rank correlation of a column with the library size, within batches, is above 0.9 or below −0.9."""
    from scipy.stats import rankdata

    rank_n, library_rank_n = (
        _without_batch_means(rankdata(values), of_batch_n, size_b) for values in (number_n, library_n)
    )
    scale = float(np.linalg.norm(rank_n) * np.linalg.norm(library_rank_n))
    return scale > 0 and abs(float(rank_n @ library_rank_n)) > _REPEATS_LIBRARY * scale


def _entropy_left(joint: sp.csr_matrix) -> float:
    """Return H(column | row) / H(column), where H is the entropy, for a contingency table without empty rows."""
    n = joint.data.sum()
    size_row = np.asarray(joint.sum(axis=1)).ravel()
    share_column = np.asarray(joint.sum(axis=0)).ravel() / n
    inside = joint.data / np.repeat(size_row, np.diff(joint.indptr))
    return float((joint.data * np.log(inside)).sum() / n / (share_column * np.log(share_column)).sum())


@dataclass(frozen=True, kw_only=True)
class _PairSums:
    """Sums of f(i, j), a symmetric function of two cells, over all ordered pairs of different cells i and j.

    `total` is the sum Σ_ij f(i, j), `squares` is the sum Σ_ij f(i, j)², and `rows` is the sum Σ_i (Σ_j f(i, j))².
    """

    total: float
    squares: float
    rows: float


def _same_group(size: np.ndarray) -> _PairSums:
    """Return the sums of the function that is 1 / (size of the group) for two cells of one group, and 0 otherwise."""
    return _PairSums(
        total=float((size - 1).sum()),
        squares=float(((size - 1) / size).sum()),
        rows=float((np.square(size - 1) / size).sum()),
    )


def _is_no_chance(joint: sp.csr_matrix) -> bool:
    """Whether the rows and columns of a contingency table depend on each other too strongly for chance."""
    size_row, size_column = (np.asarray(joint.sum(axis=axis)).ravel() for axis in (1, 0))
    n = float(size_row.sum())
    different = n * n - float(np.square(size_column).sum())
    differences = _PairSums(
        total=different, squares=different, rows=float((size_column * np.square(n - size_column)).sum())
    )
    within = n - float((np.square(joint.data) / np.repeat(size_row, np.diff(joint.indptr))).sum())
    return _deviations_below(within, _same_group(size_row), differences, n) >= _DEVIATIONS


def _deviations_below(observed: float, groups: _PairSums, differences: _PairSums, n: float) -> float:
    """Return by how many standard deviations `observed` lies below its mean over random assignments of cells to groups.

    `observed` is a sum over all pairs of cells; each term of the sum is the product of two functions of the pair.
    `groups` and `differences` are the sums of the two functions, and `n` is the number of cells. The result is 0 if all
    random assignments of the cells give the same sum.
    """
    if n < 4:
        return 0.0
    pairs, triples = n * (n - 1), n * (n - 1) * (n - 2)
    # The two functions of a pair are centered, so that their totals are 0. Otherwise, differences of large numbers
    # would lose precision.
    (squares, rows), (squares_of_differences, rows_of_differences) = (
        (sums.squares - sums.total**2 / pairs, sums.rows - sums.total**2 / n) for sums in (groups, differences)
    )
    # The variance has three terms, because two pairs of cells are the same pair, share one cell, or share no cell.
    variance = (
        2 * squares * squares_of_differences / pairs
        + 4 * (rows - squares) * (rows_of_differences - squares_of_differences) / triples
        + (2 * squares - 4 * rows) * (2 * squares_of_differences - 4 * rows_of_differences) / (triples * (n - 3))
    )
    mean = groups.total * differences.total / pairs
    # A standard deviation below 1e-10 of the mean is a rounding error.
    return (mean - observed) / variance**0.5 if variance > (1e-10 * mean) ** 2 else 0.0
