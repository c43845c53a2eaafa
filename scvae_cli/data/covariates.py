"""Covariates of cells: the columns of obs on which a decoder is conditioned.

Batch keys name columns of categories (donor, lane). Continuous keys name columns of numbers (age, percent of
mitochondrial counts).

Letters in array shapes: n cells, q batch keys, v continuous keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.labels import labels_of
from scvae_cli.data.obs_columns import read_batch, read_numbers
from scvae_cli.data.store import CellStore

# What is reported of each covariate, by its key: the categories of a batch key; `least`, `mean` and `most` of a
# continuous key.
CovariateSummary = dict[str, list[str] | dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class CellCovariates:
    """The covariates of n cells.

    Parameters
    ----------
    batch_keys, continuous_keys
        Names of the columns of obs.
    category_nq
        Category of each cell in each batch key: strings, or None for a missing value.
    value_nv
        Value of each cell in each continuous key, float64; NaN for a missing value.
    """

    batch_keys: tuple[str, ...]
    continuous_keys: tuple[str, ...]
    category_nq: np.ndarray
    value_nv: np.ndarray

    @classmethod
    def of_one_batch(cls, key: str, batch_n: np.ndarray) -> CellCovariates:
        """Make the covariates of cells with a single batch key."""
        return cls(
            batch_keys=(key,), continuous_keys=(), category_nq=batch_n[:, None], value_nv=np.empty((len(batch_n), 0))
        )

    @property
    def is_one_batch(self) -> bool:
        """Whether there is a single batch key and no continuous key."""
        return len(self.batch_keys) == 1 and not self.continuous_keys

    @property
    def batch_n(self) -> np.ndarray | None:
        """Name of each cell's combination of categories; None for a cell that lacks a category.

        The result is None if there are no batch keys.
        """
        if len(self.batch_keys) < 2:
            return self.category_nq[:, 0] if self.batch_keys else None
        names_n: np.ndarray = np.empty(len(self.category_nq), dtype=object)
        known: dict[tuple[str | None, ...], str | None] = {}
        for i, categories in enumerate(map(tuple, self.category_nq)):
            if categories not in known:
                missing = None in categories
                known[categories] = None if missing else combination_name(self.batch_keys, categories)
            names_n[i] = known[categories]
        return names_n

    @property
    def complete_n(self) -> np.ndarray:
        """Mask of the cells without missing values, shape (n,)."""
        complete: np.ndarray = (self.category_nq != None).all(1) & ~np.isnan(self.value_nv).any(1)  # noqa: E711  # elementwise
        return complete

    def summary(self) -> CovariateSummary:
        """Return the categories of each batch key and the range of each continuous key, if no values are missing."""
        found: CovariateSummary = {
            key: sorted(set(category_n)) for key, category_n in zip(self.batch_keys, self.category_nq.T, strict=True)
        }
        for key, value_n in zip(self.continuous_keys, self.value_nv.T, strict=True):
            found[key] = {"least": float(value_n.min()), "mean": float(value_n.mean()), "most": float(value_n.max())}
        return found

    def cells(self, rows: np.ndarray) -> CellCovariates:
        """Return the covariates of the cells that `rows` selects, as indices or as a mask."""
        return replace(self, category_nq=self.category_nq[rows], value_nv=self.value_nv[rows])


def covariate_lines(summary: CovariateSummary, *, named: bool) -> list[str]:
    """Describe each covariate in one line. `named` says whether the categories of batch keys are listed.

    >>> covariate_lines({"donor": ["d1", "d2"], "age": {"least": 20, "mean": 41.5, "most": 65}}, named=True)
    ['batch key donor: 2 categories (d1, d2)', 'continuous key age: 20 to 65, mean 41.5']
    """
    lines = []
    for key, found in summary.items():
        if isinstance(found, dict):
            lines.append("continuous key {}: {least:g} to {most:g}, mean {mean:.4g}".format(key, **found))
        else:
            names = f" ({', '.join(found)})" if named else ""
            lines.append(f"batch key {key}: {amount(len(found), 'category')}{names}")
    return lines


def combination_name(keys: Sequence[str], categories: Sequence[str]) -> str:
    """Return a unique name for a combination of categories of one or several batch keys.

    >>> combination_name(["donor"], ["d1"]), combination_name(["donor", "lane"], ["d1", "2"])
    ('d1', 'donor=d1, lane=2')
    """
    if len(keys) == 1:
        return categories[0]
    return ", ".join(f"{key}={quoted(text)}" for key, text in zip(keys, categories, strict=True))


def quoted(category: str) -> str:
    """Put a category in quotes if it contains a comma, "=" or a quote.

    The quotes keep the name of a combination of categories unambiguous.

    >>> quoted("d1"), quoted("d1,lane=2")
    ('d1', "'d1,lane=2'")
    """
    return repr(category) if re.search(r"[,='\"]", category) else category


def read_covariates(
    store: CellStore, batch_keys: Sequence[str], continuous_keys: Sequence[str] = (), *, partly: bool = False
) -> CellCovariates:
    """Read the covariates of every cell in the data.

    If `partly` is True, values may be missing, in some cells or in all. If `partly` is False, a DataError is raised if
    a column does not exist or lacks a value. A DataError is raised if a continuous key has values that are not numbers.
    """
    n = len(store.cell_names)
    categories: list[np.ndarray] = []
    for key in batch_keys:
        if not partly:
            categories.append(read_batch(store, key))
        elif key in store.obs_keys:
            categories.append(labels_of(store.obs_column(key)))
        else:
            categories.append(np.full(n, None, dtype=object))
    values: list[np.ndarray] = []
    for key in continuous_keys:
        if partly and key not in store.obs_keys:
            values.append(np.full(n, np.nan))
        else:
            values.append(read_numbers(store, key, partly=partly))
    return CellCovariates(
        batch_keys=tuple(batch_keys),
        continuous_keys=tuple(continuous_keys),
        category_nq=np.column_stack(categories) if categories else np.empty((n, 0), dtype=object),
        value_nv=np.column_stack(values) if values else np.empty((n, 0)),
    )
