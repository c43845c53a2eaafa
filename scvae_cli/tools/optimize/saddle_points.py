"""A way between two places that leads through no emptier places than it must: over the lowest pass between them.

Where cells lie in two regions that touch in a narrow place only, going uphill finds the way from one to the other by
chance at best. So it is looked for from both sides: the graph of the cells gives a way whose emptiest edge is as dense
as it can be (a bottleneck path), and the string method (E, Ren & Vanden-Eijnden 2007, doi:10.1063/1.2720838) then moves
its points to where the density is higher, square to the way, until all of it is dense enough, or as dense as it gets.

Shapes: t points of the way, k latent dimensions, e edges, m nodes.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
from torch import Tensor

from scvae_cli.latent.neighbor_graph import CellGraph, nearest
from scvae_cli.tools.optimize.gradient_ascent import Score

# Points of an edge whose density is asked for, ends included.
_ON_AN_EDGE = 5
# Latent distance of the points of a string at most, and how far they move in a round.
_SPACING, _STEP = 0.1, 0.02
# Rounds after which a string that is dense enough is also smooth, and after which one that is not never will be.
_SMOOTH, _MAX_ROUNDS = 100, 1500
# Edges are handled so many at once.
_BLOCK = 8192


def over_the_pass(graph: CellGraph, log_prob: Score, start_k: Tensor, end_k: Tensor, *, limit: float) -> Tensor | None:
    """A way that keeps to −log density ≤ limit, shape (t, k), both ends included; None where none was found.

    Parameters
    ----------
    graph
        Of the cells.
    log_prob
        Log density of some places, differentiable, shape (n,).
    start_k, end_k
        Where it leads from and to, on the device of the density.
    limit
        Nats.
    """
    nodes = [int(nearest(end[None].cpu(), graph.mean_mk, 1)[0][0, 0]) for end in (start_k, end_k)]
    mean_mk = graph.mean_mk.to(start_k)
    inner_tk = mean_mk[torch.as_tensor(_bottleneck(graph, mean_mk, log_prob, nodes, limit))]
    string_tk = _evenly(torch.cat([start_k[None], inner_tk, end_k[None]]))
    for done in range(_MAX_ROUNDS):
        nll_t, uphill_tk = _nll(log_prob, string_tk)
        if done >= _SMOOTH and bool((nll_t <= limit).all()):
            return string_tk
        along_tk = string_tk[2:] - string_tk[:-2]
        along_tk = along_tk / along_tk.norm(dim=1, keepdim=True).clamp_min(1e-12)
        move_tk = uphill_tk[1:-1] - (uphill_tk[1:-1] * along_tk).sum(1, keepdim=True) * along_tk
        move_tk = _STEP * move_tk / move_tk.norm(dim=1, keepdim=True).clamp_min(1)
        string_tk = _evenly(torch.cat([string_tk[:1], string_tk[1:-1] + move_tk, string_tk[-1:]]))
    return None


def _bottleneck(graph: CellGraph, mean_mk: Tensor, log_prob: Score, nodes: list[int], limit: float) -> np.ndarray:
    """Of the ways between two nodes over edges as dense as the limit, or as can be, the nodes of the shortest."""
    edges = sp.triu(graph.lengths).tocoo()
    nll_e = _emptiest(mean_mk, log_prob, edges.row, edges.col)
    # A spanning tree of least edges joins any two nodes by a way whose largest edge is the least. None may be zero.
    least = nll_e.min() - 1
    tree = minimum_spanning_tree(sp.csr_matrix((nll_e - least, (edges.row, edges.col)), shape=edges.shape))
    _, before_m = dijkstra(tree, directed=False, indices=nodes[0], return_predecessors=True, unweighted=True)
    tree = tree.maximum(tree.T).tocsr()
    way = _back(before_m, nodes)
    emptiest = max((float(tree[a, b]) for a, b in pairwise(way)), default=0.0) + least
    kept_e = nll_e <= max(emptiest + 1e-6, limit)
    part = sp.csr_matrix((edges.data[kept_e], (edges.row[kept_e], edges.col[kept_e])), shape=edges.shape)
    _, before_m = dijkstra(part, directed=False, indices=nodes[0], return_predecessors=True)
    return _back(before_m, nodes)


def _back(before_m: np.ndarray, nodes: list[int]) -> np.ndarray:
    way = [nodes[1]]
    while way[-1] != nodes[0]:
        way.append(int(before_m[way[-1]]))
    return np.asarray(way[::-1])


@torch.no_grad()
def _emptiest(mean_mk: Tensor, log_prob: Score, from_e: np.ndarray, to_e: np.ndarray) -> np.ndarray:
    """−log density of the emptiest place looked at along each edge."""
    shares = np.linspace(0, 1, _ON_AN_EDGE).tolist()
    blocks = []
    for first in range(0, len(from_e), _BLOCK):
        ends = (torch.as_tensor(side[first : first + _BLOCK], dtype=torch.int64) for side in (from_e, to_e))
        a_ek, b_ek = (mean_mk[each] for each in ends)
        blocks.append(torch.stack([-log_prob(torch.lerp(a_ek, b_ek, share)) for share in shares]).amax(0))
    nll_e: np.ndarray = torch.cat(blocks).double().cpu().numpy()
    return nll_e


def _nll(log_prob: Score, z_tk: Tensor) -> tuple[Tensor, Tensor]:
    """−log density of some places, and the way to denser ones."""
    with torch.enable_grad():
        z_tk = z_tk.detach().clone().requires_grad_(True)
        log_prob_t = log_prob(z_tk)
        (uphill_tk,) = torch.autograd.grad(log_prob_t.sum(), z_tk)
    return -log_prob_t.detach(), uphill_tk


def _evenly(z_tk: Tensor) -> Tensor:
    """The same way by points at equal distances, the ends exactly kept."""
    length_s = (z_tk[1:] - z_tk[:-1]).norm(dim=1)
    place_t = torch.cat([length_s.new_zeros(1), length_s.cumsum(0)])
    n = max(3, int(float(place_t[-1]) / _SPACING) + 2)
    at_t = torch.linspace(0, float(place_t[-1]), n).to(place_t)
    after_t = torch.searchsorted(place_t, at_t).clamp(1, len(place_t) - 1)
    share_t = (at_t - place_t[after_t - 1]) / (place_t[after_t] - place_t[after_t - 1]).clamp_min(1e-12)
    even_tk = torch.lerp(z_tk[after_t - 1], z_tk[after_t], share_t.clamp(0, 1)[:, None])
    return torch.cat([z_tk[:1], even_tk[1:-1], z_tk[-1:]])
