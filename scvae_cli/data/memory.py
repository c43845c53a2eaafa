"""An AnnData in memory as a source of cells, for the Python API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.h5ad_rows import plain_numbers
from scvae_cli.data.labels import values_of
from scvae_cli.data.slots import RowBlocks, Slot
from scvae_cli.data.store import category_labels, category_order, refuse_twins
from scvae_cli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from anndata import AnnData

_DENSE_BLOCK_ROWS = 4096


class AnnDataStore:
    """The cells of an AnnData in memory (a `CellStore`).

    Raises a DataError if the AnnData is backed by a file.

    Parameters
    ----------
    adata
        AnnData that is read and to which results are written.
    title
        Name of the AnnData in messages.
    notes
        Remarks on how the AnnData was read from a file.
    """

    def __init__(self, adata: AnnData, title: str = "adata", notes: tuple[str, ...] = ()) -> None:
        if adata.isbacked:
            raise DataError(f"{title} is backed by a file, not in memory", "pass the file's path, or adata.to_memory()")
        self.adata = adata
        self.title = title
        self.notes = notes

    @property
    def cell_names(self) -> np.ndarray:
        return np.asarray(self.adata.obs_names.astype(str), dtype=object)

    @property
    def gene_names(self) -> np.ndarray:
        return np.asarray(self.adata.var_names.astype(str), dtype=object)

    @property
    def obs_keys(self) -> list[str]:
        return [str(key) for key in self.adata.obs.columns]

    @property
    def layer_keys(self) -> list[str]:
        # In anndata 0.13, layers also has the key None, which means X.
        return [str(key) for key in self.adata.layers if key is not None]

    @property
    def matrix_names(self) -> list[str]:
        names = ['layers["counts"]'] if "counts" in self.layer_keys else []
        names += ["X"] if self.adata.X is not None else []
        names += ["raw"] if self.adata.raw is not None else []
        return names

    def obs_column(self, key: str) -> np.ndarray:
        return values_of(self._column("obs", key))

    def var_column(self, key: str) -> np.ndarray:
        return values_of(self._column("var", key))

    def obs_order(self, key: str) -> list[str] | None:
        return category_order(self._column("obs", key))

    def obs_categories(self, key: str) -> list[str] | None:
        return category_labels(self._column("obs", key))

    def _column(self, group: str, key: str) -> Any:
        frame = getattr(self.adata, group)
        keys = [str(name) for name in frame.columns]
        refuse_twins(self.title, group, keys, key)
        # The column is selected by position, because its name may be a number and not a string.
        return frame.iloc[:, keys.index(key)]

    def obsm(self, key: str) -> np.ndarray | None:
        element = self.adata.obsm.get(key)
        return element if isinstance(element, np.ndarray) else None

    def matrix_genes(self, name: str) -> np.ndarray:
        if name == "raw":
            return np.asarray(self.adata.raw.var_names.astype(str), dtype=object)
        return self.gene_names

    def row_blocks(self, name: str) -> Iterator[sp.csr_matrix]:
        if name == "raw":
            matrix: Any = self.adata.raw.X
        elif name.startswith('layers["'):
            matrix = self.adata.layers[name[8:-2]]
        else:
            matrix = self.adata.X
        if sp.issparse(matrix):
            # Only float16 is converted. scipy can compute with sparse booleans, and a conversion would need a copy.
            yield sp.csr_matrix(matrix.astype(np.float32) if matrix.dtype == np.float16 else matrix)
            return
        matrix = np.asarray(matrix)
        if matrix.dtype.kind not in "fiub":
            raise DataError(f"{self.title}: {name} does not hold numbers", "store counts as integers or floats")
        for start in range(0, matrix.shape[0], _DENSE_BLOCK_ROWS):
            yield sp.csr_matrix(plain_numbers(matrix[start : start + _DENSE_BLOCK_ROWS]))

    def existing(self, group: str) -> list[str]:
        group, *names = group.split("/")
        container: Any = getattr(self.adata, group)
        for name in names:
            container = container.get(name) if hasattr(container, "keys") else None
        if not hasattr(container, "keys"):
            return []
        return [str(key) for key in (container.columns if group in ("obs", "var") else container) if key is not None]

    def uns_text(self, key: str) -> str | None:
        value: Any = self.adata.uns
        for part in key.split("/"):
            if part not in value:
                return None
            value = value[part]
        return value if isinstance(value, str) else None

    def uns_texts(self, key: str) -> list[str] | None:
        value: Any = self.adata.uns.get(key)
        if not isinstance(value, list | tuple | np.ndarray) or np.ndim(value) != 1:
            return None
        return [str(text) for text in value] if all(isinstance(text, str) for text in value) else None

    def check_destination(self, paths: Sequence[str], *, output: Path | None, force: bool) -> None:  # noqa: ARG002  # arguments of every `CellStore`
        """Raise a ConfigError if an output file is given, because an AnnData in memory is changed in place."""
        if output is not None:
            raise ConfigError(
                "--output was given for an AnnData in memory, which is changed in place",
                "remove --output, and save the AnnData with adata.write_h5ad(...)",
            )

    def write(self, slots: Sequence[Slot], *, output: Path | None = None, force: bool = False) -> None:
        """Write results to the AnnData; all results are computed before the AnnData is changed."""
        self.check_destination([slot.path for slot in slots], output=output, force=force)
        self.put(slots)

    def put(self, slots: Sequence[Slot]) -> None:
        """Write slots to the AnnData."""
        values = [slot.value.whole() if isinstance(slot.value, RowBlocks) else slot.value for slot in slots]
        if self.adata.is_view:
            # A view is turned into a separate AnnData, because changes to the uns of a view would be lost or change the
            # parent.
            self.adata.obs = self.adata.obs.copy()
        for slot, value in zip(slots, values, strict=True):
            if slot.group != "uns":
                getattr(self.adata, slot.group)[slot.key] = value
                continue
            *folders, key = slot.key.split("/")
            parent: Any = self.adata.uns
            for folder in folders:
                if not hasattr(parent.get(folder), "keys"):
                    parent[folder] = {}
                parent = parent[folder]
            parent[key] = value
