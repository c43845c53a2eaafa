"""What the encoder sees of a cell, laid out dense in one walk over its counts, compiled for the CPU.

Shapes: n cells, g genes, m nonzeros.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numpy import float32
from torch import Tensor

from scvae_cli.data.minibatches import Minibatch
from scvae_cli.vector_math import compiled, log1p, use_threads


def fused_log1p(cells: Minibatch, scale_n: Tensor, centre_g: Tensor) -> Tensor:
    """log(1 + x · scale) − centre, shape (n, g), float32."""
    nonzeros = cells.nonzeros
    input_ng = torch.empty(cells.n_cells, cells.n_genes)
    row_start, gene, value = (t.numpy() for t in (nonzeros.row_start, nonzeros.gene, nonzeros.value))
    _scatter(use_threads(), row_start, gene, value, scale_n.numpy(), centre_g.numpy(), input_ng.numpy())
    return input_ng


@compiled(parallel=True)
def _scatter(n_parts: int, row_start: Any, gene_m: Any, value_m: Any, scale_n: Any, centre: Any, input_ng: Any) -> None:
    n_cells = len(scale_n)
    for p in numba.prange(n_parts):
        for i in range(p * n_cells // n_parts, (p + 1) * n_cells // n_parts):
            stored = slice(row_start[i], row_start[i + 1])
            _scatter_row(gene_m[stored], value_m[stored], scale_n[i], centre, input_ng[i])


@compiled()
def _scatter_row(gene: Any, value: Any, scale: float, centre: Any, row: Any) -> None:
    # First all logarithms, several at a time, and then to their places.
    logged = np.empty(len(value), float32)
    for j in range(len(value)):
        logged[j] = log1p(value[j] * scale)
    for j in range(len(row)):
        row[j] = -centre[j]
    for j in range(len(value)):
        row[gene[j]] += logged[j]
