"""Writing a new .h5ad: in blocks of rows, so that the matrix never has to fit in memory, or from an AnnData.

The layout is anndata's own, so anndata, scanpy and R read the file as if anndata had written it.
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

    Parameters
    ----------
    path
        The new file, ending in .h5ad. It appears when it is complete; whatever happens before, an old file of that
        name stays as it was and no other file is left behind.
    obs, var
        A row per cell, a row per gene.
    blocks
        Consecutive CSR blocks of rows, which together are X, n cells × g genes; each is walked through once. Dense
        ones with `dense`.
    obsm, uns, varm
        As in an AnnData: numeric arrays, categoricals, strings and dictionaries of them.
    layer_blocks
        Name → consecutive dense blocks of rows, n × g together, walked through after X.
    dense
        Whether X is a dense matrix.
    force
        Replace an existing file.

    Raises
    ------
    DataError
        When the file exists and `force` is not set, its name does not end in .h5ad, its folder is missing or not
        writable, or there is no room.
    """
    from anndata.io import write_elem

    check_new_file(path, force=force)
    with replacing(path) as sibling, open_to_write(sibling, new=True) as (file, patient):
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
    """Write an AnnData to a new file, which appears when the block ends well.

    What the block does and the new file happen together: the file is complete before the block begins, and only its
    name is missing.

    Raises
    ------
    DataError
        As for `create_h5ad`.
    """
    from anndata.io import write_elem

    check_new_file(path, force=force)
    adata.strings_to_categoricals()
    with replacing(path) as sibling:
        with open_to_write(sibling, new=True) as (file, _):
            write_elem(file, "/", adata)
            if adata.raw is None and "raw" in file:  # a null that older readers do not expect
                del file["raw"]
        yield
