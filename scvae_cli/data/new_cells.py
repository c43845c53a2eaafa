"""Cells that were not in the data, put into an AnnData of their own: a new file, in row blocks, or in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvae_cli.data.atomic import check_new_file, check_writable
from scvae_cli.data.h5ad_create import create_h5ad
from scvae_cli.data.memory import AnnDataStore
from scvae_cli.data.slots import Slot
from scvae_cli.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class NewCells:
    """n cells × g genes that a model made.

    Parameters
    ----------
    cell_names, gene_names
        n and g strings.
    blocks
        X as consecutive blocks of rows, walked through once: CSR, or dense ones.
    dense
        Which.
    slots
        What else is known of them, in obs, var, obsm and uns.
    """

    cell_names: np.ndarray
    gene_names: Sequence[str]
    blocks: Iterator[sp.csr_matrix] | Iterator[np.ndarray]
    dense: bool
    slots: Sequence[Slot]

    def write(self, path: Path, *, force: bool) -> None:
        """Write them to a new file, whole or not at all.

        Raises
        ------
        DataError
            As for `create_h5ad`.
        """
        uns: dict[str, Any] = {}
        for slot in self._of("uns"):
            *folders, key = slot.key.split("/")
            parent = uns
            for folder in folders:
                parent = parent.setdefault(folder, {})
            parent[key] = slot.value
        create_h5ad(
            path,
            obs=pd.DataFrame({slot.key: slot.value for slot in self._of("obs")}, index=_names(self.cell_names)),
            var=pd.DataFrame({slot.key: slot.value for slot in self._of("var")}, index=_names(self.gene_names)),
            obsm={slot.key: slot.value for slot in self._of("obsm")},
            uns=uns,
            blocks=self.blocks,
            dense=self.dense,
            force=force,
        )

    def in_memory(self) -> AnnData:
        """The cells as an AnnData."""
        import anndata

        blocks: list[Any] = list(self.blocks)
        x = np.concatenate(blocks) if self.dense else sp.vstack(blocks, format="csr")
        adata = anndata.AnnData(
            x, obs=pd.DataFrame(index=_names(self.cell_names)), var=pd.DataFrame(index=_names(self.gene_names))
        )
        AnnDataStore(adata).put(self.slots)
        return adata

    def _of(self, group: str) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.group == group)


def check_output(output: Path | None, data: Any, *, force: bool) -> Path:
    """The file to write, if there may be one of that name.

    Raises
    ------
    ConfigError
        For none, or the one that holds the cells.
    DataError
        For one that exists, when not forced, or that cannot be written.
    """
    if output is None:
        raise ConfigError("new cells need a file of their own", "name it with -o NEW.h5ad")
    if isinstance(data, Path) and output.resolve() == data.resolve():
        raise ConfigError(f"-o is {output}, which holds the cells", "give the new cells a file of their own")
    check_new_file(output, force=force)
    check_writable(output)
    return output


def _names(names: Iterable[str]) -> pd.Index:
    return pd.Index(list(names), dtype=object)
