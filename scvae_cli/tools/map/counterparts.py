"""Which cells have no counterpart among the cells that the model was trained on.

Shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from scvae_cli.model.density import LatentDensity


def counterpart_p(density: LatentDensity, mean_nk: Tensor) -> np.ndarray:
    """Compute the share of held-out cells of the training whose latent positions are as rare as a cell's, or rarer.

    Rare positions are those where the density of the training cells is low. Among cells that come from the same
    populations as the held-out cells, at most the share a has a value of at most a, on the average over samples of
    held-out cells (a conformal p-value; Bates et al. 2023, doi:10.1214/22-AOS2244).

    Returns
    -------
    One value a cell, shape (n,), above 0 and at most 1.
    """
    heldout_nll = density.heldout_nll.double().cpu().numpy()
    nll_n = -density.log_prob(mean_nk.to(density.mean_ck)).double().cpu().numpy()
    n_rarer = len(heldout_nll) - np.searchsorted(heldout_nll, nll_n, side="left")
    result: np.ndarray = (1 + n_rarer) / (1 + len(heldout_nll))
    return result
