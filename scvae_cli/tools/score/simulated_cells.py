"""Cells drawn from the model: the reference with which real cells are compared.

The latent position of a cell is drawn from the latent density of the training cells. The position is not drawn from the
prior, because large regions of the prior contain no cells. The caller gives the library size and the batch of each
simulated cell. The counts are drawn gene by gene from the decoder's distribution.

Letters in array shapes: n cells, g genes, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from scvae_cli.model.bundle import Model

_BLOCK_CELLS = 256


@torch.inference_mode()
def simulate_cells(model: Model, library_n: np.ndarray, batch_n: np.ndarray | None, *, seed: int) -> sp.csr_matrix:
    """Simulate cells with given expected library sizes and batches; return a CSR matrix of shape (n, g).

    A model of real-valued data draws real numbers instead of counts. A cell with a very small library size may have no
    counts.
    """
    noise, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    z_nk = model.density.sample(len(library_n), noise)
    blocks = []
    for start in range(0, len(library_n), _BLOCK_CELLS):
        rows = slice(start, start + _BLOCK_CELLS)
        batch = None if batch_n is None else torch.as_tensor(batch_n[rows], device=model.device)
        output = model.vae.decode(z_nk[rows].to(model.device), batch)
        library = torch.as_tensor(library_n[rows], dtype=torch.float32).to(model.device)
        if model.of_counts:
            # Zero inflation removes counts. The library size is therefore raised, so that the given size remains after
            # zero inflation.
            library = library / output.mean_ng(torch.ones_like(library), with_zero_inflation=True).sum(1)
        blocks.append(sp.csr_matrix(output.draw(library, rng)))
    return sp.vstack(blocks, format="csr")
