"""Paths between two latent positions along which the density stays as high as possible, across a saddle point.

If two regions with cells are connected only by a narrow bridge, gradient ascent rarely finds the path from one region
to the other. Instead of gradient ascent, a path between two given positions is therefore constructed. The neighbor
graph of the cells yields a first path, whose lowest density is as high as possible (a bottleneck path). The string
method (E, Ren & Vanden-Eijnden 2007, doi:10.1063/1.2720838) then moves the points of the path to higher densities,
perpendicular to the path, until the density is high enough at all points. If the maximum number of iterations is
reached, the result is the path with the highest minimum density.

Letters in array shapes: t points of the path, k latent dimensions, e edges, m nodes.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
from torch import Tensor

from scvae_cli.latent.neighbor_graph import CellGraph, nearest
from scvae_cli.tools.optimize.gradient_ascent import Score, with_slopes

# Number of points of an edge at which the density is evaluated, both ends included.
_EDGE_POINTS = 5
# Largest latent distance between neighboring points of a path, and the largest move of a point in one iteration.
_SPACING, _STEP = 0.1, 0.02
# Number of iterations after which a path is smooth, and the maximum number of iterations.
_SMOOTH, _MAX_ITERATIONS = 100, 1500
# Number of edges processed at once.
_BLOCK = 8192


def across_saddle_point(graph: CellGraph, log_prob: Score, start_k: Tensor, end_k: Tensor, *, limit: float) -> Tensor:
    """Find a path between two positions along which −log density ≤ limit, in nats.

    `start_k` and `end_k` must be on the torch device of the density. Returns the points of the path, both ends
    included, shape (t, k). If no path within the limit was found, the result is the smooth path with the highest
    minimum density.
    """
    nodes = [int(nearest(end[None].cpu(), graph.mean_mk, 1)[0][0, 0]) for end in (start_k, end_k)]
    mean_mk = graph.mean_mk.to(start_k)
    inner_tk = mean_mk[torch.as_tensor(_bottleneck(graph, mean_mk, log_prob, nodes, limit))]
    string_tk = _evenly(torch.cat([start_k[None], inner_tk, end_k[None]]))
    best_tk, least = string_tk, math.inf
    for iteration in range(_MAX_ITERATIONS):
        log_prob_t, gradient_tk = with_slopes(log_prob, string_tk)
        if iteration >= _SMOOTH and (largest := float(-log_prob_t.min())) < least:
            best_tk, least = string_tk, largest
            if least <= limit:
                break
        along_tk = string_tk[2:] - string_tk[:-2]
        along_tk = along_tk / along_tk.norm(dim=1, keepdim=True).clamp_min(1e-12)
        move_tk = gradient_tk[1:-1] - (gradient_tk[1:-1] * along_tk).sum(1, keepdim=True) * along_tk
        move_tk = _STEP * move_tk / move_tk.norm(dim=1, keepdim=True).clamp_min(1)
        string_tk = _evenly(torch.cat([string_tk[:1], string_tk[1:-1] + move_tk, string_tk[-1:]]))
    return best_tk


def _bottleneck(graph: CellGraph, mean_mk: Tensor, log_prob: Score, nodes: list[int], limit: float) -> np.ndarray:
    """Find the shortest path between two nodes over edges along which −log density ≤ limit.

    If no path stays within the limit, the limit is raised to the smallest value at which a path connects the nodes.
    """
    edges = sp.triu(graph.lengths).tocoo()
    nll_e = _largest_nll(mean_mk, log_prob, edges.row, edges.col)
    # Among all paths between two nodes, the path in a minimum spanning tree has the smallest maximum edge weight. Every
    # weight must be positive, because a zero in a sparse matrix means that there is no edge.
    least = nll_e.min() - 1
    tree = minimum_spanning_tree(sp.csr_matrix((nll_e - least, (edges.row, edges.col)), shape=edges.shape))
    _, before_m = dijkstra(tree, directed=False, indices=nodes[0], return_predecessors=True, unweighted=True)
    tree = tree.maximum(tree.T).tocsr()
    path = _traced(before_m, nodes)
    largest = max((float(tree[a, b]) for a, b in pairwise(path)), default=0.0) + least
    kept_e = nll_e <= max(largest + 1e-6, limit)
    part = sp.csr_matrix((edges.data[kept_e], (edges.row[kept_e], edges.col[kept_e])), shape=edges.shape)
    _, before_m = dijkstra(part, directed=False, indices=nodes[0], return_predecessors=True)
    return _traced(before_m, nodes)


def _traced(before_m: np.ndarray, nodes: list[int]) -> np.ndarray:
    """Trace a path back from `nodes[1]` to `nodes[0]`, given the predecessor of each node."""
    path = [nodes[1]]
    while path[-1] != nodes[0]:
        path.append(int(before_m[path[-1]]))
    return np.asarray(path[::-1])


@torch.no_grad()
def _largest_nll(mean_mk: Tensor, log_prob: Score, from_e: np.ndarray, to_e: np.ndarray) -> np.ndarray:
    """Compute the largest −log density along each edge."""
    shares = np.linspace(0, 1, _EDGE_POINTS).tolist()
    blocks = []
    for first in range(0, len(from_e), _BLOCK):
        ends = (torch.as_tensor(side[first : first + _BLOCK], dtype=torch.int64) for side in (from_e, to_e))
        a_ek, b_ek = (mean_mk[each] for each in ends)
        blocks.append(torch.stack([-log_prob(torch.lerp(a_ek, b_ek, share)) for share in shares]).amax(0))
    nll_e: np.ndarray = torch.cat(blocks).double().cpu().numpy()
    return nll_e


def _evenly(z_tk: Tensor) -> Tensor:
    """Resample a path at equal distances, without moving the ends."""
    length_s = (z_tk[1:] - z_tk[:-1]).norm(dim=1)
    distance_t = torch.cat([length_s.new_zeros(1), length_s.cumsum(0)])
    n = max(3, int(float(distance_t[-1]) / _SPACING) + 2)
    at_t = torch.linspace(0, float(distance_t[-1]), n).to(distance_t)
    after_t = torch.searchsorted(distance_t, at_t).clamp(1, len(distance_t) - 1)
    share_t = (at_t - distance_t[after_t - 1]) / (distance_t[after_t] - distance_t[after_t - 1]).clamp_min(1e-12)
    even_tk = torch.lerp(z_tk[after_t - 1], z_tk[after_t], share_t.clamp(0, 1)[:, None])
    return torch.cat([z_tk[:1], even_tk[1:-1], z_tk[-1:]])
