"""Which cells have no counterpart among the cells that the model was trained on.

Shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.model.bundle import Model
from scvae_cli.model.density import LatentDensity
from scvae_cli.tools.score.options import ScoreOptions
from scvae_cli.tools.score.scoring import score

# A cell is unexplained if only this share of the cells that are simulated in its batch fit the model worse.
UNEXPLAINED = 0.05
# Numbers of cells, simulated cells and posterior samples by which the share of unexplained cells is estimated.
_CELLS, _SIMULATED, _SAMPLES = 500, 500, 5


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


def unexplained_share(model: Model, counts: Counts, *, seed: int) -> float:
    """Compute the share of cells whose counts the model explains worse than those of most cells that it simulates.

    Effects of batches can move cells of another tissue to latent positions of the training cells, but cannot explain
    their counts. The share is computed from at most 500 cells. If the model describes all cells, it is about
    `UNEXPLAINED`.
    """
    some = counts.cells(np.arange(0, counts.n_cells, -(-counts.n_cells // _CELLS)))
    scores = score(model, some, ScoreOptions(n_samples=_SAMPLES, n_simulated=_SIMULATED, seed=seed))
    return float((scores.anomaly_p <= UNEXPLAINED).mean())
