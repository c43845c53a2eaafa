"""Cells that the model makes up: what cells would look like if the model were the truth.

A cell's place comes from the density of the aggregated posterior, not from the prior, much of which no cell uses; its
depth and batch are given; its counts are drawn gene by gene from the decoder's distribution.

Shapes: n cells, g genes, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from scvae_cli.data.zinb_draws import draw_zinb
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import CountOutput

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
    Counts, CSR float32, shape (n, g). A cell drawn at very low depth may be empty.
    """
    noise, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    z_nk = model.density.sample(len(library_n), noise)
    blocks = []
    for start in range(0, len(library_n), _BLOCK_CELLS):
        rows = slice(start, start + _BLOCK_CELLS)
        same_n = None if batch_n is None else torch.as_tensor(batch_n[rows], device=model.device)
        output = model.vae.decode(z_nk[rows].to(model.device), same_n)
        blocks.append(draw_counts(output, library_n[rows], rng))
    return sp.vstack(blocks, format="csr")


def draw_counts(output: CountOutput, library_n: np.ndarray, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts from decoded distributions, scaled so that the expected sum is the library size; shape (n, g)."""
    proportion_ng = torch.softmax(output.logits_ng, dim=1)
    zero_logit_ng = output.zero_logit_ng
    keep_ng = None if zero_logit_ng is None else torch.sigmoid(-zero_logit_ng)
    # Zero inflation takes counts away; the cells the model was fitted to have their depth after that.
    left_n = proportion_ng.sum(1) if keep_ng is None else (proportion_ng * keep_ng).sum(1)
    mean_ng = _numpy(proportion_ng / left_n[:, None]) * library_n[:, None].astype(np.float32)
    if output.log_theta_g is None:
        return sp.csr_matrix(rng.poisson(mean_ng).astype(np.float32))
    counts = draw_zinb(mean_ng, _numpy(output.log_theta_g.exp()), np.zeros(mean_ng.shape[1]), rng)
    if keep_ng is not None:
        keep = _numpy(keep_ng)[np.repeat(np.arange(len(mean_ng)), np.diff(counts.indptr)), counts.indices]
        counts.data *= rng.random(counts.nnz) < keep
        counts.eliminate_zeros()
    return counts


def _numpy(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.float().cpu().numpy()
    return array
