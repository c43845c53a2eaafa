"""The common interface of all sources of cells: an AnnData in memory, an .h5ad file, or another format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.labels import labels_of
from scvae_cli.data.slots import Slot
from scvae_cli.errors import DataError


class CellStore(Protocol):
    """A source of cells, with methods that read elements and write results."""

    @property
    def title(self) -> str:
        """Name of the source in messages."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user on what was read and what was left out."""

    @property
    def cell_names(self) -> np.ndarray:
        """obs_names, n strings."""

    @property
    def gene_names(self) -> np.ndarray:
        """var_names, g strings."""

    @property
    def obs_keys(self) -> list[str]:
        """Columns of obs."""

    @property
    def layer_keys(self) -> list[str]:
        """Names of the layers, without X."""

    @property
    def matrix_names(self) -> list[str]:
        """Names of the matrices that may contain counts: those of 'layers["counts"]', "X" and "raw" that exist."""

    def obs_column(self, key: str) -> np.ndarray:
        """Read a column of obs as n values; missing values are NaN or None.

        Raises
        ------
        DataError
            If the column does not exist, cannot be read, or has the same name as another column.
        """

    def var_column(self, key: str) -> np.ndarray:
        """Read a column of var as g values; missing values are NaN or None.

        Raises a DataError if the column cannot be read.
        """

    def obs_order(self, key: str) -> list[str] | None:
        """Return the categories of an ordered categorical column of obs, in order; None for any other column."""

    def obs_categories(self, key: str) -> list[str] | None:
        """Return the labels of the categories of a categorical column of obs, in order; None for any other column."""

    def obsm(self, key: str) -> np.ndarray | None:
        """Return a dense element of obsm, or None if the element does not exist."""

    def matrix_genes(self, name: str) -> np.ndarray:
        """Return the gene names of the columns of a matrix; only the genes of raw may differ from `gene_names`."""

    def row_blocks(self, name: str) -> Iterator[sp.csr_matrix]:
        """Read a matrix as consecutive CSR blocks of rows, so that a dense matrix is converted in small parts."""

    def existing(self, group: str) -> list[str]:
        """Return the keys of an AnnData mapping, such as "obs" or "uns/scvae/runs".

        The list is empty if the mapping does not exist.
        """

    def uns_text(self, key: str) -> str | None:
        """Return the string at the path `key` in uns, such as "a/b", or None if there is no string."""

    def uns_texts(self, key: str) -> list[str] | None:
        """Return the list of strings at the path `key` in uns, or None if there is no such list."""

    def check_destination(self, paths: Sequence[str], *, output: Path | None, force: bool) -> None:
        """Check before a computation that `write` will be able to write slots to the given paths."""

    def write(self, slots: Sequence[Slot], *, output: Path | None, force: bool) -> None:
        """Write results to the file or AnnData, either all or none."""


def category_labels(column: Any) -> list[str] | None:
    """Return the labels of the categories of a pandas categorical (or Series), in order; None for other columns."""
    categorical = getattr(column, "cat", column)
    if not hasattr(categorical, "categories"):
        return None
    return [label for label in dict.fromkeys(labels_of(categorical.categories)) if label is not None]


def category_order(column: Any) -> list[str] | None:
    """Return the labels of the categories of an ordered pandas categorical (or Series), in order; otherwise None."""
    ordered = getattr(getattr(column, "cat", column), "ordered", False)
    return category_labels(column) if ordered else None


def refuse_twins(title: str, group: str, keys: Sequence[str], key: str) -> None:
    """Raise a DataError if no column is called `key`, or if several columns are called `key`.

    `group` is "obs" or "var", and `keys` are the names of all columns of the data frame `group`.
    """
    if key not in keys:
        known = ", ".join(dict.fromkeys(keys)) or "none"
        raise DataError(f"{title}: no column {key!r} in {group}", f"columns: {known}")
    if list(keys).count(key) > 1:
        raise DataError(
            f"{title}: {list(keys).count(key)} columns of {group} are called {key!r}",
            f"rename or drop all but one: adata.{group} = adata.{group}.loc[:, ~adata.{group}.columns.duplicated()]",
        )
