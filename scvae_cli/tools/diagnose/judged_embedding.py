"""The embedding that a diagnosis judges: the coordinates that `scvae embed` writes for neighbors, clusters and UMAPs.

Letters in array shapes: n cells, k coordinates.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.latent.expression import expression_positions
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, silent


def embedding_of(model: Model, counts: Counts, mean_nk: Tensor, *, progress: Progress = silent) -> np.ndarray:
    """Compute the embedding of n cells, shape (n, k), float64, from their counts and their latent posterior means.

    The embedding is the default of `scvae embed`: the positions in expression space. All other parts of a diagnosis
    take an embedding as an array, so this function alone decides which embedding is judged.
    """
    return expression_positions(model, counts, mean_nk, progress=progress).astype(np.float64)
