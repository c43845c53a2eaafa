"""A folder of three text files, as Cell Ranger, STARsolo and others write it: counts, features, barcodes.

Read here, not by scanpy: that takes only gzipped files (of Cell Ranger 2 only plain ones) and features with a type.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from anndata import AnnData

# What counts molecules of genes; a folder may hold antibodies and guides beside them.
_GENES = "Gene Expression"


def read_tenx_folder(folder: Path) -> AnnData:
    """Cells × genes of a folder, each file gzipped or not.

    Parameters
    ----------
    folder
        Holds matrix.mtx (features × cells), barcodes.tsv, and features.tsv or genes.tsv: an id a line, then a symbol,
        then a type; symbol and type may be missing. Of typed features only genes are kept.

    Raises
    ------
    ValueError
        When a file is missing, or they do not belong together.
    """
    import anndata
    import pandas as pd
    from scipy.io import mmread

    matrix, features, barcodes = (
        _find(folder, *names) for names in (("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",))
    )
    counts = sp.csr_matrix(mmread(matrix).T, dtype=np.float32)
    cells, told = [row[0] for row in _rows(barcodes)], _rows(features)
    if counts.shape != (len(cells), len(told)):
        raise ValueError(
            f"{matrix.name} has {counts.shape[1]:,} features × {counts.shape[0]:,} cells, but {features.name} "
            f"{len(told):,} lines and {barcodes.name} {len(cells):,}"
        )
    genes = pd.DataFrame(
        {"gene_ids": [row[0] for row in told]},
        index=pd.Index([row[1] if len(row) > 1 else row[0] for row in told], dtype=object),
    )
    adata = anndata.AnnData(counts, obs=pd.DataFrame(index=pd.Index(cells, dtype=object)), var=genes)
    if not told or min(map(len, told)) < 3:
        return adata
    adata.var["feature_types"] = [row[2] for row in told]
    are_genes = (adata.var["feature_types"] == _GENES).to_numpy()
    return adata if are_genes.all() else adata[:, are_genes].copy()


def _find(folder: Path, *names: str) -> Path:
    """The first file there is, gzipped or not."""
    for name in names:
        for path in (folder / f"{name}.gz", folder / name):
            if path.exists():
                return path
    raise ValueError(f"it has no {' or '.join(names)}, gzipped or not")


def _rows(table: Path) -> list[list[str]]:
    """The fields of a table without a header, a line a row."""
    content = table.read_bytes()
    text = (gzip.decompress(content) if table.suffix == ".gz" else content).decode()
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
