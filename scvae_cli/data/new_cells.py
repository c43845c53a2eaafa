"""New cells from a model, stored as a separate AnnData in memory, or written to a new file in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvae_cli.data.atomic import check_new_file, check_writable, resolved
from scvae_cli.data.finite import finite_slots
from scvae_cli.data.h5ad_create import create_h5ad
from scvae_cli.data.memory import AnnDataStore
from scvae_cli.data.slots import Slot
from scvae_cli.errors import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, kw_only=True)
class NewCells:
    """New cells from a model, n cells × g genes.

    Parameters
    ----------
    blocks, dense
        X as consecutive blocks of rows, which can be read only once. The blocks are dense if `dense` is True, otherwise
        CSR.
    slots
        Annotations of the cells and genes, in obs, var, obsm and uns.
    """

    cell_names: np.ndarray
    gene_names: Sequence[str]
    blocks: Iterator[sp.csr_matrix] | Iterator[np.ndarray]
    dense: bool
    slots: Sequence[Slot]

    def write(self, path: Path, *, force: bool) -> None:
        """Write the cells to a new file, completely or not at all.

        Raises the errors of `create_h5ad`, and a ModelError if a value is not finite.
        """
        finite_slots(self.slots)
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
        """Return the cells as an AnnData."""
        import anndata

        blocks: list[Any] = list(self.blocks)
        x = np.concatenate(blocks) if self.dense else sp.vstack(blocks, format="csr")
        obs, var = pd.DataFrame(index=_names(self.cell_names)), pd.DataFrame(index=_names(self.gene_names))
        adata = anndata.AnnData(x, obs=obs, var=var)
        AnnDataStore(adata).put(self.slots)
        return adata

    def _of(self, group: str) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.group == group)


def check_output(output: Path | None, data: Any, *, force: bool) -> Path:
    """Check that the output file can be written, and return its path.

    Raises a ConfigError if no output file is given, or if the output file is the file of the data. Raises a DataError
    if the output file cannot be written, or if it exists and `force` is False.
    """
    if output is None:
        raise ConfigError("new cells must be written to a separate file", "choose a file with -o NEW.h5ad")
    if isinstance(data, Path) and resolved(output) == resolved(data):
        raise ConfigError(f"-o is {output}, the file of the input cells", "choose another file for the new cells")
    check_new_file(output, force=force)
    check_writable(output)
    return output


def _names(names: Iterable[str]) -> pd.Index:
    return pd.Index(list(names), dtype=object)
