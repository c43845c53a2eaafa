"""Counts at latent positions: drawn from the likelihood, or the expectation of such draws.

Shapes: n cells, k latent dimensions, g genes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from scvae_cli.latent.posteriors import BLOCK_CELLS
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import Output


def drawn_counts(
    model: Model, z_nk: Tensor, library_n: np.ndarray, batch_n: np.ndarray | None, seeds: np.random.SeedSequence
) -> Iterator[sp.csr_matrix] | Iterator[np.ndarray]:
    """Draw counts from p(x|z), in blocks of cells: CSR float32 for counts, dense float32 for real numbers.

    Parameters
    ----------
    model
        Model that decodes.
    z_nk
        Latent positions, in the coordinates of the networks.
    library_n, batch_n
        Library size of each cell, and index of its batch; None for a model without batches.
    seeds
        Seed sequence from which each block of fixed size gets its own random stream.
    """
    for output, library, seed in _decoded(model, z_nk, library_n, batch_n, seeds):
        yield draw(output, library, np.random.default_rng(seed))


def expected_blocks(
    model: Model, z_nk: Tensor, library_n: np.ndarray, batch_n: np.ndarray | None
) -> Iterator[np.ndarray]:
    """Compute the expectation of drawn counts, including zero inflation, in dense float32 blocks of cells."""
    for output, library, _ in _decoded(model, z_nk, library_n, batch_n, np.random.SeedSequence(0)):
        with torch.inference_mode():
            block: np.ndarray = output.mean_ng(library, with_zero_inflation=True).cpu().numpy()
        yield block


@torch.inference_mode()
def draw(output: Output, library_n: Tensor, random: np.random.Generator) -> sp.csr_matrix | np.ndarray:
    """Draw every count of some decoded cells once, shape (n, g), float32: CSR for counts, dense for real numbers."""
    return output.draw(library_n, random)


def _decoded(
    model: Model, z_nk: Tensor, library_n: np.ndarray, batch_n: np.ndarray | None, seeds: np.random.SeedSequence
) -> Iterator[tuple[Output, Tensor, np.random.SeedSequence]]:
    starts = range(0, len(z_nk), BLOCK_CELLS)
    for start, seed in zip(starts, seeds.spawn(len(starts)), strict=True):
        rows = slice(start, start + BLOCK_CELLS)
        with torch.inference_mode():
            library = torch.as_tensor(library_n[rows], dtype=torch.float32).to(model.device)
            batch = None if batch_n is None else torch.as_tensor(batch_n[rows]).to(model.device)
            output = model.vae.decode(z_nk[rows].to(model.device), batch)
        yield output, library, seed
