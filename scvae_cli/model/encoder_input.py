"""The encoder's input: counts scaled to a common library size, log-transformed and centered, as a dense matrix.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scvae_cli.data.minibatches import Minibatch


def log1p_at_depth(cells: Minibatch, depth: Tensor, centre_g: Tensor, *, fused: bool) -> Tensor:
    """Compute log(1 + x · depth / library) − center from the counts x, shape (n, g), float32.

    Parameters
    ----------
    cells
        Counts and library sizes of the cells.
    depth
        Library size to which the counts of every cell are scaled.
    centre_g
        Value that is subtracted from the logarithms of each gene.
    fused
        Whether to use the compiled code (`compiled/encoder_input.py`) on a CPU. The compiled code takes a third of the
        time of plain torch, but half a second to start, so the compiled code is worthwhile only for many minibatches.
        Compiled code and plain torch differ only by rounding.
    """
    scale_n = depth / cells.library_n
    if scale_n.device.type != "cpu":
        return torch.log1p(cells.x_ng * scale_n.unsqueeze(1)) - centre_g
    if fused:
        from scvae_cli.model.compiled.encoder_input import fused_log1p

        return fused_log1p(cells, scale_n, centre_g)
    nonzeros = cells.nonzeros
    # Most counts are zero, so logarithms are computed only for nonzero counts and then written to the dense matrix.
    return cells.dense(torch.log1p(nonzeros.value * scale_n[nonzeros.cell])).sub_(centre_g)
