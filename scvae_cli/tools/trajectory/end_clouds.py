"""The cloud of cells around an end of a trajectory.

Letters in array shapes: n cells, m cells of the population, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import gammaincinv

from scvae_cli.model.posterior import Posterior

# The cloud holds this fraction of a normal distribution.
_HELD = 0.99
# The covariance of fewer cells than this number would be too uncertain, so there is no cloud.
_LEAST = 20
_ROUNDS = 10


def cloud(cells: Posterior, population: np.ndarray, seeds_n: np.ndarray) -> np.ndarray:
    """Find the cells of a population that belong to the same normal distribution as given cells (the seeds).

    A normal distribution is fitted to the seeds, and then again to all cells within the distribution, in several rounds
    (the concentration steps of a robust covariance, Rousseeuw & Van Driessen 1999). Cells in another cluster of the
    population are not chosen. Because latent positions are uncertain, the mean posterior variance is added to the
    covariance.

    Parameters
    ----------
    cells
        Posteriors of all cells.
    population
        Indices of the cells of the population.
    seeds_n
        Mask of the cells with which the first fit is made, shape (n,).

    Returns
    -------
    Indices of the chosen cells. The indices are empty if the population contains too few seeds.
    """
    mean_mk = cells.mean_nk[torch.as_tensor(population)].double()
    var_mk = cells.var_nk[torch.as_tensor(population)].double()
    chosen_m = torch.as_tensor(seeds_n[population])
    for _ in range(_ROUNDS):
        if chosen_m.sum() < _LEAST:
            return np.empty(0, dtype=int)
        centered_mk = mean_mk - mean_mk[chosen_m].mean(0)
        spread_kk = torch.cov(centered_mk[chosen_m].T).reshape(mean_mk.shape[1], -1)
        total_kk = spread_kk + torch.diag(var_mk[chosen_m].mean(0))
        squared_m = (torch.linalg.solve(total_kk, centered_mk.T).T * centered_mk).sum(1)
        # `freedom` is the mean squared distance of the chosen cells: the number of dimensions in which these cells
        # spread.
        freedom = float(torch.linalg.solve(total_kk, spread_kk).trace())
        within_m = squared_m <= 2 * float(gammaincinv(freedom / 2, _HELD))
        if torch.equal(within_m, chosen_m):
            break
        chosen_m = within_m
    chosen: np.ndarray = population[chosen_m.numpy()]
    return chosen
