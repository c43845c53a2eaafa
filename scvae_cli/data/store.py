"""What every place that holds cells can do: an AnnData in memory, an .h5ad file, another format."""

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
    """A place cells live: an AnnData in memory, or an .h5ad file."""

    @property
    def title(self) -> str:
        """What to call it in a message."""

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
        """Names of the layers (X is not one of them)."""

    @property
    def matrix_names(self) -> list[str]:
        """All matrices that could hold counts, in the order they are tried: 'layers["counts"]', "X", "raw"."""

    def obs_column(self, key: str) -> np.ndarray:
        """One column of obs as n values; missing ones are NaN or None.

        Raises
        ------
        DataError
            For a column that is not there, cannot be read, or shares its name with another.
        """

    def var_column(self, key: str) -> np.ndarray:
        """One column of var as g values, in the same way."""

    def obs_order(self, key: str) -> list[str] | None:
        """Categories of an ordered categorical column of obs, in order; None for any other column."""

    def obsm(self, key: str) -> np.ndarray | None:
        """A dense element of obsm; None where there is none of that name."""

    def matrix_genes(self, name: str) -> np.ndarray:
        """Gene names of a matrix's columns; they differ from `gene_names` only for raw."""

    def row_blocks(self, name: str) -> Iterator[sp.csr_matrix]:
        """A matrix as consecutive CSR blocks of rows, so that only one need be dense at a time."""

    def existing(self, group: str) -> list[str]:
        """Keys of one AnnData mapping, for "uns" every "/"-separated path."""

    def uns_text(self, key: str) -> str | None:
        """The string at `uns[key]` ("/"-separated), or None."""

    def check_destination(self, paths: Sequence[str], *, output: Path | None, force: bool) -> None:
        """Refuse early what `write` would refuse late; `paths` are those of the slots."""

    def write(self, slots: Sequence[Slot], *, output: Path | None, force: bool) -> None:
        """Put results into the store, all or nothing."""


def category_order(column: Any) -> list[str] | None:
    """Labels of the categories of an ordered pandas categorical (or a Series of one), in order; else None."""
    categorical = getattr(column, "cat", column)
    if not getattr(categorical, "ordered", False):
        return None
    return [label for label in dict.fromkeys(labels_of(categorical.categories)) if label is not None]


def refuse_twins(title: str, group: str, keys: Sequence[str], key: str) -> None:
    """Refuse a name that does not say which column is meant.

    Raises
    ------
    DataError
        When none of the columns of obs (or var, as `group` says) has that name, or several have.
    """
    if key not in keys:
        known = ", ".join(dict.fromkeys(keys)) or "none"
        raise DataError(f"{title}: no column {key!r} in {group}", f"columns: {known}")
    if list(keys).count(key) > 1:
        raise DataError(
            f"{title}: {list(keys).count(key)} columns of {group} are called {key!r}",
            f"rename or drop all but one: adata.{group} = adata.{group}.loc[:, ~adata.{group}.columns.duplicated()]",
        )
