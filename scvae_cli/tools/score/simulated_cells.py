"""Cells that the model makes up: what cells would look like if the model were the truth.

A cell's place comes from the density of the aggregated posterior, not from the prior, much of which no cell uses; its
depth and batch are given; its counts are drawn gene by gene from the decoder's distribution.

Shapes: n cells, g genes, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from scvae_cli.latent.count_draws import draw
from scvae_cli.model.bundle import Model

_BLOCK_CELLS = 256


@torch.inference_mode()
def simulate_cells(model: Model, library_n: np.ndarray, batch_n: np.ndarray | None, *, seed: int) -> sp.csr_matrix:
    """Draw cells from the model.

    Parameters
    ----------
    model
        Its density says where cells are, its decoder what they show.
    library_n
        Depth each cell shall have on average, shape (n,).
    batch_n
        Index of each cell's batch; None for a model without.
    seed
        Of everything drawn.

    Returns
    -------
    Counts (or real numbers), CSR float32, shape (n, g). A cell drawn at very low depth may be empty.
    """
    noise, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    z_nk = model.density.sample(len(library_n), noise)
    blocks = []
    for start in range(0, len(library_n), _BLOCK_CELLS):
        rows = slice(start, start + _BLOCK_CELLS)
        same_n = None if batch_n is None else torch.as_tensor(batch_n[rows], device=model.device)
        output = model.vae.decode(z_nk[rows].to(model.device), same_n)
        library = torch.as_tensor(library_n[rows], dtype=torch.float32).to(model.device)
        if model.of_counts:
            # Zero inflation takes counts away; the cells the model was fitted to have their depth after that.
            library = library / output.mean_ng(torch.ones_like(library), with_zero_inflation=True).sum(1)
        blocks.append(sp.csr_matrix(draw(output, library, rng)))
    return sp.vstack(blocks, format="csr")
