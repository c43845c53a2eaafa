"""From latent positions to counts: drawn from the likelihood, or what drawn counts would average to.

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
    """Counts drawn from p(x|z), as CSR blocks, float32; real numbers as dense ones.

    Parameters
    ----------
    z_nk
        In the frame of the training.
    library_n, batch_n
        Depth of each cell, and index of its batch; None for a model without batches.
    seeds
        Each block of fixed size gets a stream of its own.
    """
    for output, library, seed in _decoded(model, z_nk, library_n, batch_n, seeds):
        yield draw(output, library, np.random.default_rng(seed))


def expected_blocks(
    model: Model, z_nk: Tensor, library_n: np.ndarray, batch_n: np.ndarray | None
) -> Iterator[np.ndarray]:
    """What drawn counts average to, zero inflation counted in, as dense blocks, float32."""
    for output, library, _ in _decoded(model, z_nk, library_n, batch_n, np.random.SeedSequence(0)):
        with torch.inference_mode():
            block: np.ndarray = output.mean_ng(library, with_zero_inflation=True).cpu().numpy()
        yield block


@torch.inference_mode()
def draw(output: Output, library_n: Tensor, random: np.random.Generator) -> sp.csr_matrix | np.ndarray:
    """One draw of every count of some decoded cells, CSR (n, g), float32; of real numbers dense."""
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
