"""Colors of the cells of a figure, from a column of obs or from the expression of a gene.

Letters in array shapes: n cells.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.data.gene_expression import log_expression
from scvae_cli.data.gene_names import GeneNames
from scvae_cli.data.labels import as_label, group_order, labels_of
from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError

# Largest number of different values with which a column of whole numbers names groups, such as replicates 1, 2 and 3.
_MAX_NUMBERED_GROUPS = 20
_SHOWN_COLUMNS = 20
# Largest number on a color scale. The difference of two larger numbers may exceed the largest float.
_LARGEST = 1e300


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups of cells.

    Parameters
    ----------
    title
        Title of the panel.
    label_n
        Group of each cell; None for a cell without a group.
    order
        All groups that have cells, in the order of the legend.
    on_map
        Whether the name of each group is also written at its cells.
    colors
        Color of each group. If None, the groups get the colors of `palette_colors`.
    """

    title: str
    label_n: np.ndarray
    order: tuple[str, ...]
    on_map: bool = False
    colors: dict[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Values:
    """A number for each cell, with the title of the panel and the unit of the color scale; missing values are NaN.

    `missing` names the values that are not on the color scale.
    """

    title: str
    value_n: np.ndarray
    unit: str = ""
    missing: str = "no value"


def colorings(
    store: CellStore, kept: np.ndarray, names: Sequence[str], *, genes: GeneNames, source: str, real: bool = False
) -> dict[str, Groups | Values]:
    """Find the columns of obs and the genes that color a figure, and read their values.

    If a column and a gene have the same name, the column is used.

    Parameters
    ----------
    kept
        Mask over all cells of the data; the mask is True for the n cells that are drawn.
    names
        Columns of obs, and genes by name or symbol.
    genes
        Names of the genes of the data.
    source, real
        Arguments `source` and `real` of `log_expression`.

    Returns
    -------
    A dictionary from each name to the groups or values of the n cells.

    Raises
    ------
    DataError
        If one of the names is neither a column of obs nor a gene, or is the symbol of several genes.
    """
    columns = [name for name in names if name in store.obs_keys]
    ids = {name: genes.ids_of([name])[0] for name in names if name not in columns and name in genes}
    for name in names:
        if name not in columns and name not in ids:
            raise DataError(*_why_unknown(store, name, genes))
    found: dict[str, Groups | Values] = {name: column_coloring(store, kept, name) for name in columns}
    if ids:
        value_nc = log_expression(store, source, list(ids.values()), real=real)[kept]
        unit = "value" if real else "log1p of normalized counts"
        for name, shown, value_n in zip(ids, genes.shown(ids.values()), value_nc.T, strict=True):
            found[name] = Values(title=shown, value_n=value_n, unit=unit)
    return found


def column_coloring(store: CellStore, kept: np.ndarray, key: str) -> Groups | Values:
    """Read a column of obs as groups or as numbers.

    A column of categories, texts, dates or booleans names groups. A column of whole numbers with few different values
    names groups, too. Columns of other numbers are shown on a color scale. A number that is farther from all other
    numbers than these are from each other, such as -999 for missing values, is left out of the color scale, because all
    other cells would have one color.
    """
    categories = store.obs_categories(key)
    column = store.obs_column(key)[kept]
    value_n = None if categories is not None else _numbers(column)
    if value_n is not None and not _number_groups(value_n):
        return _on_a_scale(key, value_n)
    label_n = labels_of(column)
    # Only a figure needs matplotlib, which is slow to import.
    from scvae_cli.report.column_colors import column_colors

    order = group_order(set(label_n) - {None}, categories)
    return Groups(title=key, label_n=label_n, order=order, colors=column_colors(store, key))


def _numbers(column: np.ndarray) -> np.ndarray | None:
    """Return a column as floats, or None if the column is not numeric. Missing and infinite values become NaN.

    Numbers beyond ±1e300 become ±1e300.
    """
    if column.dtype.kind == "O":
        # The column may contain numbers, some of which are missing.
        missing_n = np.asarray([as_label(value) is None for value in column], dtype=bool)
        kinds = {type(value) for value in column[~missing_n]}
        if not kinds or bool in kinds or not all(issubclass(kind, int | float | np.number) for kind in kinds):
            return None
        # Python's integers may be too large for a float.
        limited = [np.nan if lacks else _limited(value) for value, lacks in zip(column, missing_n, strict=True)]
        column = np.asarray(limited, dtype=np.float64)
    if column.dtype.kind not in "iuf":
        return None
    value_n = column.astype(np.float64)
    return np.where(np.isfinite(value_n), value_n.clip(-_LARGEST, _LARGEST), np.nan)


def _limited(value: int | float) -> int | float:
    return value if isinstance(value, float) else min(max(value, int(-_LARGEST)), int(_LARGEST))


def _on_a_scale(title: str, value_n: np.ndarray) -> Values:
    """Return the values of a column, without a smallest or largest number that lies far outside of the others."""
    distinct = np.unique(value_n[~np.isnan(value_n)])
    apart: list[float] = []
    # The smallest number is tested again after the largest, because both may stand for missing values.
    for end in (0, -1, 0):
        others = np.delete(distinct, end) if len(distinct) else distinct
        if len(others) <= _MAX_NUMBERED_GROUPS:
            continue
        half = others / 2  # so that differences of the largest numbers are finite
        if np.abs(half - distinct[end] / 2).min() > np.ptp(half):
            apart.append(float(distinct[end]))
            distinct = others
    if not apart:
        return Values(title=title, value_n=value_n)
    left_n = np.isin(value_n, apart)
    shown = [f"{value:g}" for value in apart] + (["no value"] if np.isnan(value_n).any() else [])
    return Values(title=title, value_n=np.where(left_n, np.nan, value_n), missing=", ".join(shown))


def _number_groups(value_n: np.ndarray) -> bool:
    distinct = np.unique(value_n[~np.isnan(value_n)])
    return len(distinct) <= _MAX_NUMBERED_GROUPS and bool((distinct == np.trunc(distinct)).all())


def _why_unknown(store: CellStore, name: str, genes: GeneNames) -> tuple[str, str]:
    columns = list(dict.fromkeys(store.obs_keys))
    known = [*columns, *genes.names()]
    same = [other for other in known if other.casefold() == name.strip().casefold()]
    near = same or difflib.get_close_matches(name, known, n=3)
    shown = ", ".join(columns[:_SHOWN_COLUMNS]) + (", ..." if len(columns) > _SHOWN_COLUMNS else "")
    hint = f"did you mean {', '.join(near)}?" if near else f"columns: {shown or 'none'}"
    return f"{store.title}: no column of obs and no gene is called {name!r}", hint
