"""Populations that consist of two clouds of cells, although they have one label.

Each cell of the population is joined to its nearest cells in the population. A cut divides the population into two
parts, and the edges between the parts are counted. A few stray cells join even unrelated cell types by some edges, so
two clouds need not be disconnected. The number of edges is therefore compared with that of a thin line, along which
cells lie one after the other at equal distances. A continuous population is at least as wide as a line, so each cut
passes at least as many edges. The cut is found by spectral partitioning (Shi & Malik 2000, doi:10.1109/34.868688).

Letters in array shapes: m cells of the population, d coordinates, j neighbors.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from scvae_cli.latent.neighbor_graph import NEIGHBORS, components, euclidean_graph
from scvae_cli.latent.selection import even

# Smallest fraction of a population that is regarded as a cloud of its own.
SMALLEST_CLOUD = 0.1
# Two parts are clouds of their own if they are joined by at most this fraction of the edges in a thin line. In groups
# of simulated trees, the fraction was at least 0.53. In unions of two mature groups, it was at most 0.32, unless the
# counts were so few that the groups overlapped.
_FEW_EDGES = 0.4
# Smallest population that is divided; number of cells of a population for each neighbor of a cell.
_LEAST, _CELLS_PER_NEIGHBOR = 30, 6
# Largest number of cells from which the clouds are found.
_MOST = 2000


def share_apart(point_md: Tensor, represented: np.ndarray) -> float:
    """Return the share of a population that lies in another cloud than the cells that represent the population.

    Parameters
    ----------
    point_md
        Positions of the cells of the population in expression space, shape (m, d).
    represented
        Indices of the cells that represent the population. If they lie in both clouds, the cloud with most of them
        counts.

    >>> random = np.random.default_rng(0)
    >>> one, other = random.normal(0, 1, (150, 3)), random.normal(9, 1, (50, 3))
    >>> both = torch.as_tensor(np.concatenate([one, other]))
    >>> share_apart(both, np.arange(10)), share_apart(both[:150], np.arange(10))
    (0.25, 0.0)
    """
    regular = even(np.arange(len(point_md)), _MOST)
    some = np.union1d(regular, represented)
    first_s = _first_cloud(point_md[torch.as_tensor(some)])
    inside = first_s[np.searchsorted(some, represented)].mean() >= 0.5
    return float(np.mean(first_s[np.searchsorted(some, regular)] != inside))


def _first_cloud(point_md: Tensor) -> np.ndarray:
    """Return the mask of the cells in one of two clouds, shape (m,). If there is one cloud, it contains all cells."""
    m = len(point_md)
    everything = np.ones(m, dtype=bool)
    if m < _LEAST:
        return everything
    j = min(NEIGHBORS, m // _CELLS_PER_NEIGHBOR)
    near_mj = euclidean_graph(np.arange(m), point_md, j).neighbors_mj
    edges = np.stack([np.repeat(np.arange(m), near_mj.shape[1]), near_mj.ravel()], axis=1)
    _, component_m = components(edges, m)
    largest_m: np.ndarray = component_m == np.bincount(component_m).argmax()
    if largest_m.mean() <= 1 - SMALLEST_CLOUD:
        return largest_m
    # Scattered outliers may be disconnected.
    nodes = np.flatnonzero(largest_m)
    inner = np.searchsorted(nodes, edges[largest_m[edges].all(1)])
    order = nodes[_order(inner, len(nodes))]
    rank_m = np.empty(m, dtype=int)
    rank_m[order] = np.arange(len(order))
    span = np.sort(rank_m[edges[largest_m[edges].all(1)]], axis=1)
    # `cut[i]` is the number of edges between the first i + 1 cells and the others.
    change = np.bincount(span[:, 0], minlength=len(order)) - np.bincount(span[:, 1], minlength=len(order))
    cut = np.cumsum(change)
    first = int(np.ceil(SMALLEST_CLOUD * len(order)))
    at = first + int(cut[first - 1 : len(order) - first].argmin()) - 1
    # On a line, half of the neighbors of a cell are on each side.
    line = (j // 2) * (j // 2 + 1)
    if cut[at] > _FEW_EDGES * line:
        return everything
    everything[order[at + 1 :]] = False
    return everything


def _order(edges: np.ndarray, m: int) -> np.ndarray:
    """Sort nodes by the slowest mode of diffusion along the edges of a connected graph."""
    from scipy.sparse.linalg import eigsh

    ones = np.ones(len(edges))
    weight = sp.csr_matrix((ones, (edges[:, 0], edges[:, 1])), shape=(m, m))
    weight = weight + weight.T
    half_m = 1 / np.sqrt(np.asarray(weight.sum(1)).ravel())
    symmetric = sp.diags(half_m) @ weight @ sp.diags(half_m)
    if m < 500:
        mode_m = np.linalg.eigh(symmetric.toarray())[1][:, -2]
    else:
        value, vector = eigsh(symmetric, k=2, which="LA", v0=np.random.default_rng(0).random(m))
        mode_m = vector[:, value.argmin()]
    order: np.ndarray = np.argsort(mode_m * half_m, kind="stable")
    return order
