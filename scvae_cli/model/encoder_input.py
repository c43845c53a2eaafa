"""What the encoder sees of a cell: its counts at one depth, on a logarithmic scale, against the usual, dense.

Shapes: n cells, g genes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scvae_cli.data.minibatches import Minibatch


def log1p_at_depth(cells: Minibatch, depth: Tensor, centre_g: Tensor, *, fused: bool) -> Tensor:
    """log(1 + x · depth / library) − centre, shape (n, g), float32.

    Parameters
    ----------
    depth
        Counts per cell that every cell is scaled to.
    centre_g
        What is subtracted from each gene.
    fused
        Whether cells on the CPU are worth the compiled walk (`fused_input.py`). It takes a third of the time, but half
        a second to start: good for many passes, not for one. They differ by rounding.
    """
    scale_n = depth / cells.library_n
    if scale_n.device.type != "cpu":
        return torch.log1p(cells.x_ng * scale_n.unsqueeze(1)) - centre_g
    if fused:
        from scvae_cli.model.compiled.encoder_input import fused_log1p

        return fused_log1p(cells, scale_n, centre_g)
    nonzeros = cells.nonzeros
    # Few counts are not zero: their logarithms first, and then to their places.
    return cells.dense(torch.log1p(nonzeros.value * scale_n[nonzeros.cell])).sub_(centre_g)
