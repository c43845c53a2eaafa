"""Find cells without a counterpart: cells whose state does not occur among the training cells of the model.

The result is a p-value for each cell. How the p-value is computed depends on the batch of the cell. In batches without
trained effects, a cell is compared with the held-out cells of the training. In mapped batches, held-out cells are no
fair comparison (`mapped_counterparts.py`), and a cell is compared with cells that the model simulates in its batch.

If the genes of a batch differ too much from those of the training, the batch is probably of another tissue. Its effects
then describe another tissue, so simulations with these effects show nothing, and its cells are compared with the
held-out cells.

Letters in array shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.bundle import Model
from scvae_cli.model.density import LatentDensity
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.map.mapped_counterparts import mapped_counterpart_p

# Typical difference between the log proportions of genes in new cells and in training cells above which the new cells
# are probably of another tissue. Between technologies, conditions or donors, the largest typical difference observed is
# about 0.9; with genes in a random order, the smallest is 1.5.
FOREIGN_DIFFERENCE = 1.0


def counterpart_p(
    model: Model, counts: Counts, difference: Mapping[str, float], *, seed: int, progress: Progress = silent
) -> np.ndarray:
    """Compute a p-value for each cell, small if no training cells are in the same state, shape (n,).

    Parameters
    ----------
    model, counts
        Model with the new batches, and cells with the batch of each cell.
    difference
        Typical difference of a gene's log proportion of each new batch (`MappedBatches.difference_b`).
    """
    assert counts.batch is not None, "map reads the batches"
    mean_nk = posteriors(model, counts, progress=progress).mean_nk
    p_n = heldout_share(model.density, mean_nk)
    for batch, typical in difference.items():
        if 0 < typical <= FOREIGN_DIFFERENCE:
            cells = np.flatnonzero(counts.batch == batch)
            p_n[cells] = mapped_counterpart_p(model, counts.cells(cells), seed=seed)
    return p_n


def heldout_share(density: LatentDensity, mean_nk: Tensor) -> np.ndarray:
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
