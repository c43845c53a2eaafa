"""Counts at latent positions: random draws from the likelihood, or the expected values of the draws.

Letters in array shapes: n cells, k latent dimensions, g genes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from scvae_cli.latent.posteriors import BLOCK_CELLS
from scvae_cli.model.bundle import Model


@torch.inference_mode()
def drawn_counts(
    model: Model, z_nk: Tensor, library_n: np.ndarray, batch_n: np.ndarray | None, seeds: np.random.SeedSequence | None
) -> Iterator[sp.csr_matrix] | Iterator[np.ndarray]:
    """Draw counts from p(x|z), in blocks of cells.

    Each block is a float32 matrix, which is sparse (CSR) for counts and dense for real numbers.

    Parameters
    ----------
    model, z_nk
        Model whose decoder is used, and latent positions in the coordinates of the networks (not along the canonical
        axes).
    library_n, batch_n
        Library size of each cell, and index of each cell's batch. For a model without batches, `batch_n` is None.
    seeds
        Seed sequence from which each block of fixed size gets its own random stream. If `seeds` is None, the blocks are
        dense and contain the expected values of the draws, including zero inflation.
    """
    for start in range(0, len(z_nk), BLOCK_CELLS):
        rows = slice(start, start + BLOCK_CELLS)
        library = torch.as_tensor(library_n[rows], dtype=torch.float32).to(model.device)
        batch = None if batch_n is None else torch.as_tensor(batch_n[rows]).to(model.device)
        output = model.vae.decode(z_nk[rows].to(model.device), batch)
        if seeds is None:
            yield output.mean_ng(library, with_zero_inflation=True).cpu().numpy()
        else:
            yield output.draw(library, np.random.default_rng(seeds.spawn(1)[0]))
