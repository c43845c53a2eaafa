"""The neighbours' graph of the cells, with edges as long as they are on the manifold the decoder draws.

Nodes are cells, at their posterior means; each is joined to its nearest cells, in latent space or by what is decoded,
and an edge is as long as the Fisher–Rao distance between the decoded states. Of very many cells an even selection
becomes nodes.

Which cells are nearest is not the same in both: the prior makes all latent dimensions in use equally wide, whether many
genes change along them or few. Latent neighbours lead from cell to cell through latent space, and part two fates where
few genes do; neighbours by state are cells that express the same.

Shapes: n cells, k latent dimensions, g genes, m nodes, j neighbours, d directions, s of a selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components, dijkstra
from torch import Tensor

from scvae_cli.model.geometry import Geometry

NEIGHBOURS = 15
# More nodes make a path no smoother; their decoded states (float32) may take half a GB.
_MAX_NODES, _MAX_VALUES = 20_000, 128_000_000
# Decoded states differ in as many directions as there are latent dimensions in use, bent into a few more: so many keep
# all but a hundredth of a percent of their variance. So many cells show which directions they are.
_DIRECTIONS, _SHOWING = 64, 1000
# Steps of a typical random walker for which heat spreads: enough to average over ways, too few to forget the way.
_HEAT_TIME = 30.0
# No edge is shorter than this share of the median edge where heat spreads.
_LEAST_LENGTH = 0.1
# Values handled at once, 8 MB in float32: larger blocks leave the cache, and every temporary is fetched page by page.
_BLOCK_VALUES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class CellGraph:
    """A connected graph of cells.

    Parameters
    ----------
    cells
        Indices of the cells that are nodes, ascending, shape (m,).
    mean_mk
        Their posterior means.
    neighbours_mj
        Positions among the nodes of each one's nearest nodes, nearest first, itself left out.
    lengths
        Symmetric CSR matrix (m, m) of the edges' Fisher–Rao lengths, standard deviations of a count.
    bridges
        Edges that had to be added between islands: there are no cells along them.
    islands
        Parts that hang together without them, at least 1.
    """

    cells: np.ndarray
    mean_mk: Tensor
    neighbours_mj: np.ndarray
    lengths: sp.csr_matrix
    bridges: int
    islands: int

    def node_of(self, cell: int) -> int:
        """Position of a cell among the nodes."""
        node = int(np.searchsorted(self.cells, cell))
        assert self.cells[node] == cell, "only nodes have a place in the graph"
        return node

    def nodes_of(self, cells: np.ndarray) -> np.ndarray:
        """Positions of those of some cells that are nodes."""
        return np.flatnonzero(np.isin(self.cells, cells))

    def distances(self, nodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Length of the shortest path from some nodes to every node, shape (len(nodes), m)."""
        result: np.ndarray = dijkstra(self.lengths, directed=False, indices=np.asarray(nodes))
        return result

    def shortest_paths(self, pairs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Nodes passed on the shortest way between the nodes of each pair, both included."""
        starts = sorted({start for start, _ in pairs})
        _, before = dijkstra(self.lengths, directed=False, indices=starts, return_predecessors=True)
        paths = []
        for start, end in pairs:
            previous = before[starts.index(start)]
            path = [end]
            while path[-1] != start:
                path.append(int(previous[path[-1]]))
            paths.append(np.asarray(path[::-1]))
        return paths

    def smooth_distances(self, sets: Sequence[np.ndarray]) -> np.ndarray:
        """Distance from each of some sets of nodes to every node, by way of heat, shape (sets, m).

        Heat that starts in a set and spreads for a while has fallen, after Varadhan, as exp(−distance) far away: −log
        of it, less its smallest value, is a distance that counts all short ways, where the shortest path trusts one
        (Crane, Weischedel & Wardetzky 2013, doi:10.1145/2516971.2516977). It spreads by the normalised Laplacian L of
        the edges' conductances 1/length², as diffusion maps do: the kernel is (1 + tL)⁻¹ (Smola & Kondor 2003,
        doi:10.1007/978-3-540-45167-9_12). The distance's unit is arbitrary.
        """
        from scipy.sparse.linalg import splu

        if len(self.cells) == 1:
            return np.zeros((len(sets), 1))
        # Twins would otherwise pass heat to each other alone.
        least = _LEAST_LENGTH * float(np.median(self.lengths.data))
        conductance = self.lengths.copy()
        conductance.data = 1 / np.maximum(conductance.data, least) ** 2
        root_m = np.sqrt(np.asarray(conductance.sum(1)).ravel())
        m = len(root_m)
        passed_on = sp.diags(1 / root_m) @ conductance @ sp.diags(1 / root_m)
        system = sp.identity(m) + _HEAT_TIME * (sp.identity(m) - passed_on)
        solver = splu(system.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
        heat_sm = np.zeros((len(sets), m))
        for start_m, nodes in zip(heat_sm, sets, strict=True):
            start_m[nodes] = 1 / len(nodes)
        fallen_sm = -np.log(np.maximum(solver.solve(heat_sm.T).T, 1e-300))
        result: np.ndarray = fallen_sm - fallen_sm.min(1, keepdims=True)
        return result

    def spread(self, value_m: np.ndarray, mean_nk: Tensor) -> np.ndarray:
        """A value of the nodes for all n cells: each node's own, and for the others the mean over the nearest nodes."""
        if len(self.cells) == len(mean_nk):
            return value_m
        nearest_nj, distance_nj = nearest(mean_nk, self.mean_mk, 5)
        weight_nj = 1 / (distance_nj + 1e-6)
        weights = weight_nj.reshape(*weight_nj.shape, *[1] * (value_m.ndim - 1))
        value_n: np.ndarray = (value_m[nearest_nj] * weights).sum(1) / weights.sum(1)
        value_n[self.cells] = value_m
        return value_n


def cell_graph(
    geometry: Geometry, mean_nk: Tensor, *, always: np.ndarray, by_state: bool = False, seed: int = 0
) -> CellGraph:
    """Build the graph.

    Parameters
    ----------
    geometry
        Of the decoder.
    mean_nk
        Posterior means of all cells, in the frame of the training.
    always
        Cells that must be nodes.
    by_state
        Join cells that are nearest by Fisher–Rao distance, not in latent space; the nodes are the same.
    seed
        Of the selection of nodes, where there are too many cells.
    """
    most = min(_MAX_NODES, max(1000, _MAX_VALUES // geometry.vae.n_genes))
    cells = np.arange(len(mean_nk))
    if len(cells) > most:
        chosen = np.random.default_rng(seed).choice(len(cells), most, replace=False)
        cells = np.unique(np.concatenate([chosen, always]))
    mean_mk = mean_nk[torch.as_tensor(cells)]
    y_mg = coordinates(geometry, mean_mk)
    j = min(NEIGHBOURS, len(cells) - 1)
    place_md = _flattened(y_mg) if by_state else mean_mk
    neighbours_mj = _without_itself(nearest(place_md, place_md, j + 1)[0])
    source = np.repeat(np.arange(len(cells)), j)
    edges = np.stack([source, neighbours_mj.ravel()], axis=1)
    islands = _islands(edges, len(cells))[0]
    bridges = _bridges(place_md, edges)
    edges = np.concatenate([edges, bridges])
    # A length of exactly zero would be no edge at all.
    length = np.maximum(_lengths(y_mg, edges), 1e-6)
    one_way = sp.csr_matrix((length, (edges[:, 0], edges[:, 1])), shape=(len(cells), len(cells)))
    return CellGraph(
        cells=cells,
        mean_mk=mean_mk,
        neighbours_mj=neighbours_mj,
        lengths=one_way.maximum(one_way.T).tocsr(),
        bridges=len(bridges),
        islands=islands,
    )


@torch.no_grad()
def coordinates(geometry: Geometry, z_nk: Tensor) -> Tensor:
    """Fisher–Rao coordinates of many points, on the CPU, shape (n, g)."""
    size = max(1, _BLOCK_VALUES // geometry.vae.n_genes)
    device = geometry.vae.reference_library.device
    return torch.cat([geometry.coordinates(block_nk.to(device)).cpu() for block_nk in torch.split(z_nk, size)])


def nearest(points_nk: Tensor, among_mk: Tensor, j: int) -> tuple[np.ndarray, np.ndarray]:
    """The j nearest of some points to each of others: positions and Euclidean distances, each of shape (n, j)."""
    size = max(1, _BLOCK_VALUES // len(among_mk))
    # Not by way of a matrix product, which would lose the digits that tell near points apart.
    exact = "donot_use_mm_for_euclid_dist"
    found = [
        torch.cdist(block_nk, among_mk, compute_mode=exact).topk(min(j, len(among_mk)), largest=False)
        for block_nk in torch.split(points_nk, size)
    ]
    return torch.cat([f.indices for f in found]).numpy(), torch.cat([f.values for f in found]).numpy()


def _flattened(y_mg: Tensor) -> Tensor:
    """Fisher–Rao coordinates along the directions in which nodes differ most: distances all but kept, shape (m, d)."""
    showing_sg = y_mg[:: -(-len(y_mg) // _SHOWING)]
    centre_g = showing_sg.mean(0)
    axes_dg = torch.linalg.svd(showing_sg - centre_g, full_matrices=False).Vh[:_DIRECTIONS]
    size = max(1, _BLOCK_VALUES // y_mg.shape[1])
    return torch.cat([(block_ng - centre_g) @ axes_dg.T for block_ng in torch.split(y_mg, size)])


def _without_itself(neighbours: np.ndarray) -> np.ndarray:
    """Drop each node from its own neighbours; where a twin crowded it out, drop the farthest."""
    itself = neighbours == np.arange(len(neighbours))[:, None]
    itself[~itself.any(1), -1] = True
    others: np.ndarray = neighbours[~itself].reshape(len(neighbours), -1)
    return others


def _islands(edges: np.ndarray, m: int) -> tuple[int, np.ndarray]:
    """Number of parts of m nodes that hang together, and which one each node is in."""
    joined = sp.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(m, m))
    n_islands, island_m = connected_components(joined, directed=False)
    return int(n_islands), island_m


def _bridges(place_md: Tensor, edges: np.ndarray) -> np.ndarray:
    """Edges from every island to the nearest cell elsewhere, until all hang together, shape (bridges, 2).

    Two islands that are nearest to each other are joined twice, by the same edge or by two.
    """
    bridges = np.empty((0, 2), dtype=edges.dtype)
    while True:
        n_islands, island_m = _islands(np.concatenate([edges, bridges]), len(place_md))
        if n_islands == 1:
            return bridges
        largest = np.bincount(island_m).argmax()
        for island in range(n_islands):
            if island == largest:
                continue
            inside, outside = np.flatnonzero(island_m == island), np.flatnonzero(island_m != island)
            to, distance = nearest(place_md[torch.as_tensor(inside)], place_md[torch.as_tensor(outside)], 1)
            at = int(distance[:, 0].argmin())
            bridges = np.concatenate([bridges, [[inside[at], outside[to[at, 0]]]]])


def _lengths(y_mg: Tensor, edges: np.ndarray) -> np.ndarray:
    """Distance between the coordinates at both ends of every edge."""
    size = max(1, _BLOCK_VALUES // y_mg.shape[1])
    ends = torch.as_tensor(edges)
    parts = []
    for part in torch.split(ends, size):
        difference_eg = y_mg.index_select(0, part[:, 0])
        difference_eg -= y_mg.index_select(0, part[:, 1])
        parts.append(torch.linalg.vector_norm(difference_eg, dim=1))
    lengths: np.ndarray = torch.cat(parts).numpy()
    return lengths
