"""Functions that read columns of obs: batches, groups and numbers."""

from __future__ import annotations

import numbers
from collections.abc import Collection

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.doubtful_labels import warn_of_doubtful
from scvae_cli.data.labels import are_measurements, labels_of
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError

BOOLEANS = (bool, np.bool_)


def read_batch(store: CellStore, batch_key: str) -> np.ndarray:
    """Read the batch of every cell, as n strings.

    Raises a DataError if the column does not exist or has missing values.
    """
    column = obs_values(store, batch_key, purpose="--batch-key")
    if are_measurements(column):
        raise DataError(
            f"{store.title}: obs[{batch_key!r}] holds measurements, not batches",
            f"--batch-key takes a column of categories; for numbers, use --continuous-key {batch_key}",
        )
    missing = is_missing(column)
    if missing.any():
        cell = store.cell_names[int(np.flatnonzero(missing)[0])]
        raise DataError(
            f"{store.title}: obs[{batch_key!r}] has no value for {amount(int(missing.sum()), 'cell')}; the first "
            f"is {cell!r}",
            f'drop these cells: adata[adata.obs["{batch_key}"].notna()], or fill in the missing values',
        )
    label_n = labels_of(column)
    warn_of_doubtful(store.title, batch_key, label_n)
    return label_n


def obs_values(
    store: CellStore, key: str, *, purpose: str, measured: bool = False, without: Collection[str] = ()
) -> np.ndarray:
    """Read a column of obs.

    Raises a DataError if the column does not exist. The hint of the error lists the columns that the option `purpose`
    accepts. Columns of measurements (floats that are not all whole numbers) are listed only if `measured` is True, and
    columns in `without` are never listed.
    """
    if key not in store.obs_keys:
        names = [name for name in store.obs_keys if name not in without]
        known = ", ".join(name for name in names if _could_name_groups(store, name, measured=measured)) or "none"
        raise DataError(f"{store.title}: no column {key!r} in obs", f"{purpose} takes one of: {known}")
    return store.obs_column(key)


def _could_name_groups(store: CellStore, key: str, *, measured: bool) -> bool:
    try:
        return not are_measurements(store.obs_column(key)) or measured
    except DataError:  # the column cannot be read, or another column has the same name
        return False


def is_missing(values: np.ndarray) -> np.ndarray:
    """Return a mask of the values that are None, NaN or pandas' NA."""
    # pandas is imported only here, because it is slow to import and a training without batches does not need it.
    import pandas as pd

    missing: np.ndarray = pd.isna(values)
    return missing


def read_numbers(store: CellStore, key: str, *, partly: bool = False) -> np.ndarray:
    """Read a column of numbers, as n values in float64.

    Raises a DataError if the column does not exist or contains values that are not numbers. If `partly` is True,
    missing and infinite values become NaN. If `partly` is False, missing and infinite values raise a DataError.
    """
    if key not in store.obs_keys:
        names = [name for name in store.obs_keys if _numbers_of(store, name) is not None]
        raise DataError(
            f"{store.title}: no column {key!r} in obs", f"--continuous-key takes one of: {', '.join(names) or 'none'}"
        )
    value_n = _numbers_of(store, key)
    if value_n is None:
        raise DataError(
            f"{store.title}: obs[{key!r}] is not a column of numbers",
            "--continuous-key takes numbers; for a column of categories, use --batch-key",
        )
    bad_n = ~np.isfinite(value_n)
    if bad_n.any() and not partly:
        cell = store.cell_names[int(np.flatnonzero(bad_n)[0])]
        raise DataError(
            f"{store.title}: obs[{key!r}] is missing or not finite for {amount(int(bad_n.sum()), 'cell')}; the "
            f"first is {cell!r}",
            "drop these cells, or fill in the missing values",
        )
    return np.where(bad_n, np.nan, value_n)


def _numbers_of(store: CellStore, key: str) -> np.ndarray | None:
    """Return a column as float64, with NaN for missing values.

    The result is None if the column is not a column of numbers.
    """
    try:
        values = store.obs_column(key)
    except DataError:  # the column cannot be read, or another column has the same name
        return None
    if values.dtype.kind in "iuf":
        return values.astype(np.float64)
    missing_n = is_missing(values)
    if values.dtype.kind != "O" or missing_n.all():
        return None
    if not all(isinstance(value, numbers.Real) and not isinstance(value, BOOLEANS) for value in values[~missing_n]):
        return None
    value_n = np.full(len(values), np.nan)
    value_n[~missing_n] = values[~missing_n].astype(np.float64)
    return value_n
