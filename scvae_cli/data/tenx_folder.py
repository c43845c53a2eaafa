"""Reading a folder of three text files (counts, features, barcodes) written by Cell Ranger, STARsolo and other tools.

scanpy's reader is not used, because it accepts fewer folders. scanpy's reader requires a type for every feature. In the
format of Cell Ranger 2, scanpy accepts only files that are not gzipped. In later formats of Cell Ranger, scanpy accepts
only gzipped files.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

if TYPE_CHECKING:
    from anndata import AnnData

from scvae_cli.data.tenx_text import check_matrix, read_rows
from scvae_cli.errors import DataError

_MATRIX, _FEATURES, _BARCODES = ("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",)
# Smallest number of bytes that a value needs in a matrix.mtx: a line such as "1 1 1", or "1" in a dense matrix.
_LINE_BYTES = 2


def has_matrix(folder: Path) -> bool:
    """Whether a folder contains a file matrix.mtx, perhaps with a prefix in its name."""
    return bool(_prefixes(folder))


def read_tenx_folder(folder: Path) -> AnnData:
    """Read a folder as an AnnData, cells × features; each file may be gzipped or not.

    The folder has matrix.mtx (features × cells), barcodes.tsv, and features.tsv or genes.tsv. The names of the files
    may have a prefix, as in GSM123_S1_matrix.mtx.gz. Each line of features.tsv or genes.tsv has an id, a symbol and a
    type; symbol and type may be missing.

    Raises
    ------
    ValueError
        If a file is missing or damaged, or if the files differ in the number of features or cells.
    DataError
        If the folder contains several matrices.
    """
    import anndata
    import pandas as pd
    from scipy.io import mmread

    prefix = _prefix(folder)
    matrix, features, barcodes = (_find(folder, prefix, *names) for names in (_MATRIX, _FEATURES, _BARCODES))
    # The header is read first, because a reader allocates as much memory as the header declares.
    n_features, n_cells, n_values = check_matrix(matrix)
    cells, lines = [row[0] for row in read_rows(barcodes, n_cells)], read_rows(features, n_features)
    if (n_cells, n_features) != (len(cells), len(lines)):
        raise ValueError(
            f"{matrix.name} has {n_features:,} features × {n_cells:,} cells, but {features.name} has "
            f"{len(lines):,} lines and {barcodes.name} has {len(cells):,}"
        )
    most_compressed = 1100 if matrix.suffix == ".gz" else 1
    if n_values * _LINE_BYTES > matrix.stat().st_size * most_compressed:
        raise ValueError(f"{matrix.name} declares {n_values:,} values, more than the file can hold")
    _check_widths(lines, features.name)
    counts = _cells_by_features(mmread(matrix), matrix.name)
    symbols = pd.Index([row[1] if len(row) > 1 else row[0] for row in lines], dtype=object)
    genes = pd.DataFrame({"gene_ids": [row[0] for row in lines]}, index=symbols)
    adata = anndata.AnnData(counts, obs=pd.DataFrame(index=pd.Index(cells, dtype=object)), var=genes)
    if not lines or min(map(len, lines)) < 3:
        return adata
    adata.var["feature_types"] = [row[2] for row in lines]
    return adata


def _check_widths(lines: list[list[str]], name: str) -> None:
    """Raise a ValueError if lines have different numbers of fields, because types of features could be misread."""
    widths = [len(line) for line in lines]
    # If a table has genomic positions (fields 4 to 6), some features may lack a position.
    if len(set(widths)) <= 1 or set(widths) == {3, 6}:
        return
    [(usual, _)] = Counter(widths).most_common(1)
    number = next(i for i, width in enumerate(widths, start=1) if width != usual)
    raise ValueError(f"line {number:,} of {name} has {widths[number - 1]} fields, but most lines have {usual}")


def _cells_by_features(values: Any, name: str) -> sp.csr_matrix:
    """Return a matrix as cells × features; raise a ValueError if a feature has two values in the same cell."""
    counts = sp.csr_matrix(values.T, dtype=np.float32)
    if not sp.issparse(values) or counts.nnz == values.nnz:
        return counts
    order = np.lexsort((values.row, values.col))
    rows, columns = values.row[order], values.col[order]
    twice = int(np.argmax((np.diff(rows) == 0) & (np.diff(columns) == 0)))
    raise ValueError(f"{name} has the value of feature {rows[twice] + 1:,} and cell {columns[twice] + 1:,} twice")


def _prefixes(folder: Path) -> list[str]:
    """Return the texts that precede "matrix.mtx" in the names of the files of a folder."""
    names = {path.name.removesuffix(".gz") for path in folder.iterdir()}
    return sorted(name.removesuffix(_MATRIX[0]) for name in names if name.endswith(_MATRIX[0]))


def _prefix(folder: Path) -> str:
    prefixes = _prefixes(folder)
    if "" in prefixes:
        return ""
    if len(prefixes) > 1:
        shown = ", ".join(prefixes[:3]) + (", ..." if len(prefixes) > 3 else "")
        raise DataError(
            f"{folder} has {len(prefixes)} matrices: {shown}",
            "move the three files of each sample into a separate folder",
        )
    return prefixes[0] if prefixes else ""


def _find(folder: Path, prefix: str, *names: str) -> Path:
    """Return the path of the first of the files `names` that exists, gzipped or not; pipes and devices are ignored."""
    for name in names:
        for path in (folder / f"{prefix}{name}.gz", folder / f"{prefix}{name}"):
            if path.is_file():
                return path
    raise ValueError(f"the folder has no {' or '.join(prefix + name for name in names)}, gzipped or not")
