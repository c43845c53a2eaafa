"""Selection of highly variable genes, with the same result as scanpy's flavor "seurat_v3" (Stuart et al. 2019).

`sc.pp.highly_variable_genes` copies the whole matrix, and then the cells of each batch. To save memory, this module
copies only blocks of cells, in two passes over the matrix.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.moments import cell_blocks
from scvae_cli.errors import DataError

# Fraction of the genes that the local regression of variance on mean uses around each gene.
_SPAN = 0.3


def most_variable(
    matrix: sp.csr_matrix, cells: np.ndarray, columns: np.ndarray, n_top: int, batch: np.ndarray | None
) -> np.ndarray:
    """Choose the `n_top` most variable of the genes `columns`, and return them in their original order.

    Only the cells with the indices `cells` are used. `batch` has the name of the batch of each cell in `cells`. If
    `batch` is given, genes are ranked within each batch, and the genes with the best median ranks are chosen. Raises a
    DataError if there are too few cells, or too few nonzero counts, to rank the genes.
    """
    groups = [cells] if batch is None else [cells[batch == name] for name in np.unique(batch)]

    def variances(groups: list[np.ndarray]) -> list[np.ndarray]:
        found = (_standardized_variance(matrix, group, columns) for group in groups)
        return [variance_g for variance_g in found if variance_g is not None]

    # Batches with too few or too sparse cells are ignored. If all batches are ignored, all cells are treated as one
    # batch.
    variance_per_batch = variances(groups) or variances([cells])
    if not variance_per_batch:
        raise DataError(
            "highly variable genes could not be computed: the genes have too few different means and variances",
            "use --genes all, or --genes @FILE with your own list",
        )
    spread_bg = np.stack(variance_per_batch)
    # Rank of each gene, 0 for the most variable.
    rank_bg = np.argsort(np.argsort(-spread_bg, axis=1), axis=1).astype(np.float32)
    rank_bg[rank_bg >= n_top] = np.nan
    median_g = np.ma.median(np.ma.masked_invalid(rank_bg), axis=0)  # type: ignore[no-untyped-call]  # numpy does not annotate it
    n_batches_g = (~np.isnan(rank_bg)).sum(0)
    # Sort by median rank, and then by the number of batches. Genes that are top genes in no batch come last.
    order = np.lexsort((-n_batches_g, median_g.filled(np.nan)))
    chosen: np.ndarray = columns[np.sort(order[:n_top])]
    return chosen


def _standardized_variance(matrix: sp.csr_matrix, cells: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """Compute the variance of each gene's clipped counts, divided by the variance expected from the gene's mean.

    The expected variance comes from a regression of variance on mean. The result has one value for each of the genes
    `columns`. The result is None if there are too few cells, or too few nonzero counts, for the regression.
    """
    from skmisc.loess import loess

    n, n_genes = len(cells), matrix.shape[1]
    sum_g, square_g = np.zeros(n_genes), np.zeros(n_genes)
    for block in cell_blocks(matrix, cells):
        # Sums of whole numbers do not depend on the order of the terms.
        sum_g += np.bincount(block.indices, block.data, n_genes)
        square_g += np.bincount(block.indices, np.square(block.data), n_genes)
    mean_g = sum_g[columns] / n
    var_g = square_g[columns] / n - mean_g**2
    if n != 1:
        var_g *= n / (n - 1)
    varies = var_g > 0
    if not varies.any():
        return None
    log_var_g = np.zeros(len(columns))
    fit = loess(np.log10(mean_g[varies]), np.log10(var_g[varies]), span=_SPAN, degree=2)
    try:
        fit.fit()
    except ValueError:  # there are too few different means
        return None
    log_var_g[varies] = fit.outputs.fitted_values
    sd_g = np.sqrt(10**log_var_g)

    clip_g = np.full(n_genes, np.inf)
    clip_g[columns] = sd_g * np.sqrt(n) + mean_g
    sum_g, square_g = np.zeros(n_genes), np.zeros(n_genes)
    for block in cell_blocks(matrix, cells):
        clipped = np.minimum(block.data, clip_g[block.indices])
        # Clipped counts are not whole numbers, so they must be added one by one, in scanpy's order.
        np.add.at(sum_g, block.indices, clipped)
        np.add.at(square_g, block.indices, np.square(clipped))
    scale_g = 1 / ((n - 1) * np.square(sd_g))
    spread_g: np.ndarray = scale_g * (n * np.square(mean_g) + square_g[columns] - 2 * sum_g[columns] * mean_g)
    return spread_g
