"""Find cells without a counterpart: cells whose state does not occur among the training cells of the model.

Letters in array shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.model.bundle import Model
from scvae_cli.model.density import LatentDensity
from scvae_cli.tools.score.options import ScoreOptions
from scvae_cli.tools.score.scoring import score

# A cell is unexplained if at most the share `UNEXPLAINED` of the cells simulated in its batch fit the model worse.
UNEXPLAINED = 0.05
# Numbers of cells, simulated cells and posterior samples that are used to estimate the share of unexplained cells.
_CELLS, _SIMULATED, _SAMPLES = 500, 500, 5


def counterpart_p(density: LatentDensity, mean_nk: Tensor) -> np.ndarray:
    """Compute, for each cell, the share of held-out cells that lie at an equal or a lower latent density.

    The latent density is the density of the training cells in latent space. The share is a conformal p-value (Bates et
    al. 2023, doi:10.1214/22-AOS2244). For example, among cells from the same populations as the held-out cells, no more
    than 5% have a share of 0.05 or less. The guarantee of a conformal p-value holds on average over random choices of
    the held-out cells.

    Returns
    -------
    One share per cell, shape (n,), above 0 and at most 1.
    """
    heldout_nll = density.heldout_nll.double().cpu().numpy()
    nll_n = -density.log_prob(mean_nk.to(density.mean_ck)).double().cpu().numpy()
    n_rarer = len(heldout_nll) - np.searchsorted(heldout_nll, nll_n, side="left")
    result: np.ndarray = (1 + n_rarer) / (1 + len(heldout_nll))
    return result


def unexplained_share(model: Model, counts: Counts, *, seed: int) -> float:
    """Compute the share of cells whose counts fit the model worse than 95% of the cells that the model simulates.

    Batch effects can move cells of another tissue to the latent positions of training cells, but the counts of the
    moved cells still fit the model badly. The share of unexplained cells is computed from at most 500 cells. If the
    model describes all cells well, about 5% of the cells are unexplained.
    """
    some = counts.cells(np.arange(0, counts.n_cells, -(-counts.n_cells // _CELLS)))
    scores = score(model, some, ScoreOptions(n_samples=_SAMPLES, n_simulated=_SIMULATED, seed=seed))
    return float((scores.anomaly_p <= UNEXPLAINED).mean())
