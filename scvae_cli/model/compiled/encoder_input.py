"""Compiled code that computes the encoder's input on a CPU, in one pass over the counts of each cell.

Letters in array shapes: n cells, g genes, m nonzeros.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy import float32, int64
from torch import Tensor

from scvae_cli.data.minibatches import Minibatch
from scvae_cli.model.compiled.vector_math import compiled, log1p
from scvae_cli.parallel import array, by_address, use_threads


def fused_log1p(cells: Minibatch, scale_n: Tensor, centre_g: Tensor) -> Tensor:
    """Compute log(1 + x · scale) − center from the counts x, shape (n, g), float32.

    Each cell has its own scale, and each gene has its own center.
    """
    nonzeros = cells.nonzeros
    input_ng = torch.empty(cells.n_cells, cells.n_genes)
    row_start, gene = (array(indices, torch.int32) for indices in (nonzeros.row_start, nonzeros.gene))
    of_cells = (row_start, gene, array(nonzeros.value), array(scale_n))
    _scatter(_part_at(), use_threads(), *of_cells, array(centre_g), input_ng.numpy())
    return input_ng


@compiled()
def _scatter_part(
    part: int, n_parts: int,
    row_start: Any, gene_m: Any, value_m: Any, scale_n: Any, centre_g: Any, input_ng: Any,
) -> None:  # fmt: skip
    n_cells, n_genes = input_ng.shape
    logged_g = np.empty(n_genes, float32)
    for i in range(part * n_cells // n_parts, (part + 1) * n_cells // n_parts):
        stored, row, scale = slice(row_start[i], row_start[i + 1]), input_ng[i], scale_n[i]
        gene, value = gene_m[stored], value_m[stored]
        # All logarithms are computed in a first loop, which is vectorized, and then written to the columns of their
        # genes.
        for j in range(len(value)):
            logged_g[j] = log1p(value[j] * scale)
        for g in range(n_genes):
            row[g] = -centre_g[g]
        for j in range(len(value)):
            row[gene[j]] += logged_g[j]


_part_at, _call_part = by_address(
    _scatter_part,
    (
        numba.int64, numba.int64, numba.int32[::1], numba.int32[::1], numba.float32[::1], numba.float32[::1],
        numba.float32[::1], numba.float32[:, ::1],
    ),
)  # fmt: skip


@compiled(parallel=True)
def _scatter(
    part_at: int, n_parts: int,
    row_start: Any, gene_m: Any, value_m: Any, scale_n: Any, centre_g: Any, input_ng: Any,
) -> None:  # fmt: skip
    for part in numba.prange(n_parts):
        _call_part(part_at, int64(part), n_parts, row_start, gene_m, value_m, scale_n, centre_g, input_ng)
