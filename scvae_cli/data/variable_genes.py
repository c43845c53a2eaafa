"""The most variable genes, as scanpy's seurat_v3 finds them (Stuart et al. 2019), to the bit.

scanpy copies the matrix and every batch of it; here the cells are walked through twice, some at a time.

Shapes: n cells, g genes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from scvae_cli.errors import DataError

# Share of the genes that the fit of variance on mean looks at around each gene.
_SPAN = 0.3
_CELLS_AT_ONCE = 4096


def most_variable(
    matrix: sp.csr_matrix, cells: np.ndarray, columns: np.ndarray, n_top: int, batch: np.ndarray | None
) -> np.ndarray:
    """Choose among some genes, looking at some cells.

    Parameters
    ----------
    matrix
        CSR counts, float32.
    cells, columns
        Indices of the cells to look at and the genes to choose among.
    n_top
        How many to choose.
    batch
        Names of the cells' batches, as many as `cells`: genes are ranked within each, and the ranks' median decides.

    Returns
    -------
    Some of the columns, in their order.

    Raises
    ------
    DataError
        Where the cells are too few or too sparse.
    """
    groups = [cells] if batch is None else [cells[batch == name] for name in np.unique(batch)]

    def told(groups: list[np.ndarray]) -> list[np.ndarray]:
        spreads = (_standardised_variance(matrix, group, columns) for group in groups)
        return [spread_g for spread_g in spreads if spread_g is not None]

    # Of few cells, or sparse ones, what varies cannot be told: such a batch has no say. If all are, there is one batch.
    spreads = told(groups) or told([cells])
    if not spreads:
        raise DataError(
            "the most variable genes cannot be told: too few different means and variances to fit a line through",
            "--genes all, or --genes @FILE with a list of your own",
        )
    spread_bg = np.stack(spreads)
    # A gene's place among the genes, 0 for the most variable.
    rank_bg = np.argsort(np.argsort(-spread_bg, axis=1), axis=1).astype(np.float32)
    rank_bg[rank_bg >= n_top] = np.nan
    median_g = np.ma.median(np.ma.masked_invalid(rank_bg), axis=0)  # type: ignore[no-untyped-call]  # numpy leaves it untyped
    n_batches_g = (~np.isnan(rank_bg)).sum(0)
    # By median rank, those of no batch last; among equals first those of most batches.
    order = np.lexsort((-n_batches_g, median_g.filled(np.nan)))
    chosen: np.ndarray = columns[np.sort(order[:n_top])]
    return chosen


def _standardised_variance(matrix: sp.csr_matrix, cells: np.ndarray, columns: np.ndarray) -> np.ndarray | None:
    """Variance of each gene over what its mean lets expect, extreme counts clipped, shape (g,); None for too few."""
    from skmisc.loess import loess

    n, n_genes = len(cells), matrix.shape[1]
    sum_g, square_g = np.zeros(n_genes), np.zeros(n_genes)
    for block in _blocks(matrix, cells):
        # Sums of whole numbers, so the order does not matter.
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
    except ValueError:  # too few different means
        return None
    log_var_g[varies] = fit.outputs.fitted_values
    sd_g = np.sqrt(10**log_var_g)

    clip_g = np.full(n_genes, np.inf)
    clip_g[columns] = sd_g * np.sqrt(n) + mean_g
    sum_g, square_g = np.zeros(n_genes), np.zeros(n_genes)
    for block in _blocks(matrix, cells):
        clipped = np.minimum(block.data, clip_g[block.indices])
        # One after the other onto the running sums: these are not whole, so here the order does matter.
        np.add.at(sum_g, block.indices, clipped)
        np.add.at(square_g, block.indices, np.square(clipped))
    scale_g = 1 / ((n - 1) * np.square(sd_g))
    spread_g: np.ndarray = scale_g * (n * np.square(mean_g) + square_g[columns] - 2 * sum_g[columns] * mean_g)
    return spread_g


def _blocks(matrix: sp.csr_matrix, cells: np.ndarray) -> Iterator[sp.csr_matrix]:
    return (matrix[cells[start : start + _CELLS_AT_ONCE]] for start in range(0, len(cells), _CELLS_AT_ONCE))
