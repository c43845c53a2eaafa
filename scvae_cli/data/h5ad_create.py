"""Writing a new .h5ad file, either from an AnnData or from blocks of rows.

If blocks of rows are written, the whole matrix need not fit in memory. The new file has the format of anndata, so
anndata, scanpy and R packages can read the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.atomic import check_new_file, replacing
from scvae_cli.data.h5ad_blocks import FILTERS, write_dense, write_sparse
from scvae_cli.data.patient_file import open_to_write

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def create_h5ad(
    path: Path,
    *,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    blocks: Iterable[sp.csr_matrix] | Iterable[np.ndarray],
    obsm: Mapping[str, Any] | None = None,
    uns: Mapping[str, Any] | None = None,
    varm: Mapping[str, Any] | None = None,
    layer_blocks: Mapping[str, Iterable[np.ndarray]] | None = None,
    dense: bool = False,
    force: bool = False,
) -> None:
    """Write a new .h5ad from blocks of rows.

    The file appears only when it is complete. If an error occurs, an existing file of the same name is not changed, and
    no temporary file remains.

    Parameters
    ----------
    path
        Path of the new file, ending in .h5ad. If `force` is True, an existing file is replaced.
    obs, var
        Data frames with one row per cell (`obs`) and one row per gene (`var`).
    blocks
        X, n cells × g genes, as consecutive blocks of rows. The blocks are dense if `dense` is True, otherwise CSR.
        Each block is used once.
    obsm, uns, varm
        Mappings as in an AnnData. Values are numeric arrays, categoricals, strings, and dictionaries of such values.
    layer_blocks
        Mapping of names to layers. Each layer, n × g, is given as consecutive dense blocks of rows. Layers are written
        after X.

    Raises
    ------
    DataError
        If the file exists and `force` is False, if its name does not end in .h5ad, if its folder does not exist or is
        not writable, or if the disk is full.
    """
    from anndata.io import write_elem

    check_new_file(path, force=force)
    with replacing(path, force=force) as sibling, open_to_write(sibling, new=True) as (file, patient):
        file.attrs["encoding-type"] = "anndata"
        file.attrs["encoding-version"] = "0.1.0"
        small = FILTERS | {"compression_opts": 4}
        write_elem(file, "obs", obs, dataset_kwargs=small)
        write_elem(file, "var", var, dataset_kwargs=small)
        write_elem(file, "uns", dict(uns or {}))
        write_elem(file, "varm", dict(varm or {}), dataset_kwargs=small)
        write_elem(file, "obsm", dict(obsm or {}), dataset_kwargs=small)
        for group in ("obsp", "varp", "layers"):
            write_elem(file, group, {})
        shape = (len(obs), len(var))
        if dense:
            write_dense(file, "X", patient.watch(blocks), shape, compress=False)
        else:
            write_sparse(file, "X", patient.watch(blocks), shape)
        for name, dense_blocks in (layer_blocks or {}).items():
            write_dense(file["layers"], name, patient.watch(dense_blocks), shape, compress=False)


@contextmanager
def new_h5ad(path: Path, adata: AnnData, *, force: bool) -> Iterator[None]:
    """Context manager that writes an AnnData to a new file, which appears if the `with` block raises no error.

    The complete file is written to a temporary path before the `with` block starts, and is renamed after the block.
    Raises a DataError if the file exists and `force` is False, or if the file cannot be written.
    """
    from anndata.io import write_elem

    check_new_file(path, force=force)
    adata.strings_to_categoricals()
    with replacing(path, force=force) as sibling:
        with open_to_write(sibling, new=True) as (file, _):
            write_elem(file, "/", adata)
            if adata.raw is None and "raw" in file:  # older readers do not accept a null raw
                del file["raw"]
        yield
