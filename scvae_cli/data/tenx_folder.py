"""Reading a folder of three text files (counts, features, barcodes) written by Cell Ranger, STARsolo and other tools.

scanpy's reader is not used, because it accepts fewer folders. scanpy's reader requires a type for every feature. In the
format of Cell Ranger 2, it accepts only files that are not gzipped; in later formats, it expects gzipped files.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from anndata import AnnData

# Feature type of genes; a folder may also contain antibodies and guide RNAs.
_GENES = "Gene Expression"
# Least size of a value in a matrix.mtx: a line such as "1 1 1", or in a dense matrix "1".
_LINE_BYTES = 2


def read_tenx_folder(folder: Path) -> AnnData:
    """Read a folder as an AnnData, cells × genes; each file may be gzipped or not.

    The folder has matrix.mtx (features × cells), barcodes.tsv, and features.tsv or genes.tsv. Each line of
    features.tsv or genes.tsv has an id, a symbol and a type; symbol and type may be missing. If features have types,
    only genes are read. Raises a ValueError if a file is missing, or the numbers of features or cells differ between
    files.
    """
    import anndata
    import pandas as pd
    from scipy.io import mminfo, mmread

    matrix, features, barcodes = (
        _find(folder, *names) for names in (("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",))
    )
    cells, lines = [row[0] for row in _rows(barcodes)], _rows(features)
    # The header is read first, because a reader asks for as much memory as it declares.
    n_features, n_cells, n_values = mminfo(matrix)[:3]
    if (n_cells, n_features) != (len(cells), len(lines)):
        raise ValueError(
            f"{matrix.name} has {n_features:,} features × {n_cells:,} cells, but {features.name} has "
            f"{len(lines):,} lines and {barcodes.name} has {len(cells):,}"
        )
    most_compressed = 1100 if matrix.suffix == ".gz" else 1
    if n_values * _LINE_BYTES > matrix.stat().st_size * most_compressed:
        raise ValueError(f"{matrix.name} declares {n_values:,} values, more than it can hold")
    counts = sp.csr_matrix(mmread(matrix).T, dtype=np.float32)
    symbols = pd.Index([row[1] if len(row) > 1 else row[0] for row in lines], dtype=object)
    genes = pd.DataFrame({"gene_ids": [row[0] for row in lines]}, index=symbols)
    adata = anndata.AnnData(counts, obs=pd.DataFrame(index=pd.Index(cells, dtype=object)), var=genes)
    if not lines or min(map(len, lines)) < 3:
        return adata
    adata.var["feature_types"] = [row[2] for row in lines]
    are_genes = (adata.var["feature_types"] == _GENES).to_numpy()
    return adata if are_genes.all() else adata[:, are_genes].copy()


def _find(folder: Path, *names: str) -> Path:
    """Return the first of the named files that exists, gzipped or not; a named pipe or a device is not a file."""
    for name in names:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    raise ValueError(f"the folder has no {' or '.join(names)}, gzipped or not")


def _rows(table: Path) -> list[list[str]]:
    """Return the fields of each line of a table without a header."""
    content = table.read_bytes()
    text = (gzip.decompress(content) if table.suffix == ".gz" else content).decode()
    return [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
