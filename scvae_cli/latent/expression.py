"""Positions of cells in expression space (`scvae_cli.model.expression_space`).

Letters in array shapes: n cells, k latent dimensions, j components, m random directions, g genes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.errors import ModelError
from scvae_cli.latent.posteriors import BLOCK_CELLS, batches_where_known, cell_table
from scvae_cli.model.bundle import Model
from scvae_cli.model.expression_space import ExpressionSpace
from scvae_cli.progress import Progress, silent


@torch.inference_mode()
def expression_positions(
    model: Model,
    counts: Counts,
    mean_nk: Tensor,
    *,
    missing: tuple[str, ...] = (),
    progress: Progress = silent,
) -> np.ndarray:
    """Compute the position of every cell in expression space, shape (n, j + m), float32.

    Parameters
    ----------
    counts
        Cells with the genes of the model. A cell whose batch is missing or unknown to the model is compared with the
        expectation in an average batch.
    mean_nk
        Posterior means of the cells, in the coordinates of the networks.
    missing
        Names of the model's genes that the data lack. The residuals of missing genes are 0.

    Raises
    ------
    DataError
        If a cell has no counts in the genes of the model.
    ModelError
        If the model was trained by an earlier version of scvae, and therefore has no map to expression space.
    """
    space = _space(model)
    table, parts = cell_table(model, counts, batch_n=batches_where_known(model, counts)), []
    lacking = set(missing)
    present_g = torch.as_tensor([gene not in lacking for gene in model.genes]).to(model.device) if missing else None
    with progress("Embedding", table.n_cells) as advance:
        for rows, cells in table.in_order(BLOCK_CELLS):
            block_nk = mean_nk[int(rows[0]) : int(rows[-1]) + 1].to(model.device)
            parts.append(space.position(model.vae, cells, block_nk, present_g).float().cpu())
            advance(len(rows))
    return torch.cat(parts).numpy()


@torch.inference_mode()
def state_positions(model: Model, mean_nk: Tensor, *, progress: Progress = silent) -> np.ndarray:
    """Compute each decoded state's position along the principal components of expression space, shape (n, j).

    A decoded state is the expression that the decoder computes at the posterior mean of a cell.

    Raises
    ------
    ModelError
        If the model was trained by an earlier version of scvae, and therefore has no map to expression space.
    """
    space, parts = _space(model), []
    with progress("Decoding", len(mean_nk)) as advance:
        for block_nk in torch.split(mean_nk, BLOCK_CELLS):
            parts.append(space.state_position(model.vae, block_nk.to(model.device)).float().cpu())
            advance(len(block_nk))
    return torch.cat(parts).numpy()


def _space(model: Model) -> ExpressionSpace:
    if model.expression is None:
        raise ModelError(
            "the model was trained by an earlier version of scvae, which did not compute the map to expression space",
            "train again, or use scvae embed --space latent",
        )
    return model.expression
