"""Expression of a few genes, for figures: log1p of normalized counts, as scanpy computes it.

The counts are read from the data, so that figures can also show genes that the model lacks. The counts are read in
blocks of cells, and only the columns of the requested genes are kept in memory.

Letters in array shapes: n cells of the data, c chosen genes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scvae_cli.data.store import CellStore
from scvae_cli.errors import DataError


def log_expression(store: CellStore, source: str, genes: Sequence[str], *, real: bool = False) -> np.ndarray:
    """Compute the expression of the genes `genes` in every cell of the data, shape (n, c), float64.

    The counts of a cell are divided by the cell's total count and multiplied by the median total count; the result is
    log1p of this number (`sc.pp.normalize_total` and `sc.pp.log1p` with their defaults). The total count of a cell is
    the sum over all genes of the matrix. A cell without counts has the value 0.

    Parameters
    ----------
    source
        The matrix with the counts, one of `store.matrix_names` or 'layers["NAME"]'.
    genes
        Names of c genes, as in var_names.
    real
        Whether the matrix contains real numbers, which are returned unchanged.

    Raises
    ------
    DataError
        If the matrix lacks a gene.
    """
    position = {gene: i for i, gene in enumerate(store.matrix_genes(source))}
    absent = [gene for gene in genes if gene not in position]
    if absent:
        raise DataError(f"{store.title}: gene {absent[0]!r} is not in {source}", "choose another gene")
    columns = [position[gene] for gene in genes]
    values, totals = [], []
    for block in store.row_blocks(source):
        values.append(block[:, columns].toarray().astype(np.float64))
        totals.append(np.asarray(block.sum(axis=1, dtype=np.float64)).ravel())
    value_nc, total_n = np.concatenate(values), np.concatenate(totals)
    if real or not total_n.any():
        return value_nc
    scale_n = np.divide(np.median(total_n[total_n > 0]), total_n, out=np.zeros_like(total_n), where=total_n > 0)
    logged: np.ndarray = np.log1p(value_nc * scale_n[:, None])
    return logged
