"""The embedding that is judged: the coordinates of cells that `scvae embed` writes for neighbors, clusters and UMAP.

Shapes: n cells, k coordinates.
"""

from __future__ import annotations

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, silent


def embedding_of(model: Model, counts: Counts, *, progress: Progress = silent) -> np.ndarray:
    """Compute the embedding of n cells with the genes of the model, shape (n, k), float64.

    It consists of the posterior means along the canonical latent axes. All other parts of a diagnosis take an embedding
    as an array, so this function alone decides which embedding is judged.
    """
    mean_nk = model.axes.position(posteriors(model, counts, progress=progress).mean_nk)
    embedding_nk: np.ndarray = mean_nk.numpy().astype(np.float64)
    return embedding_nk
