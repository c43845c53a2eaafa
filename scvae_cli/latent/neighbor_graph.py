"""The neighbor graph of the cells, in which the length of an edge is a Fisher–Rao distance.

Nodes are cells, at their posterior means. The decoded state of a cell is the decoded expression at its posterior mean,
in Fisher–Rao coordinates (`model/geometry.py`). Each node is connected to its nearest nodes. Which nodes are nearest is
decided by the distance in latent space, or by the distance between decoded states. The length of an edge is always the
distance between decoded states. If there are very many cells, only a random subset of the cells are nodes.

The two definitions of nearest nodes differ, because the prior makes all latent dimensions in use equally wide, whether
many or few genes change along a dimension. A graph of neighbors in latent space separates two cell fates even if only a
few genes distinguish the fates. In a graph of neighbors by decoded state, the neighbors of a cell have nearly the same
expression as the cell.

Shapes: n cells, k latent dimensions, g genes, m nodes, j neighbors, d directions, s cells of a subset.
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

NEIGHBORS = 15
# Largest number of nodes, and largest number of values in the decoded states of all nodes (half a GB in float32). More
# nodes do not make paths smoother.
MAX_NODES, MAX_VALUES = 20_000, 128_000_000
# Decoded states vary along as many directions as there are latent dimensions in use, and a few more because of
# curvature. `_DIRECTIONS` directions keep all but a hundredth of a percent of the variance. They are computed from at
# most `DIRECTION_CELLS` cells.
_DIRECTIONS, DIRECTION_CELLS = 64, 1000
# Duration of heat diffusion, in steps of a typical random walk: long enough to average over paths, and short enough
# that the distance from the start is still visible.
_HEAT_TIME = 30.0
# In heat diffusion, edges are at least this fraction of the median edge length.
_LEAST_LENGTH = 0.1
# Number of values processed at once, 8 MB in float32. Larger blocks exceed the cache, and temporary arrays become slow.
BLOCK_VALUES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class CellGraph:
    """A connected graph of cells.

    Parameters
    ----------
    cells, mean_mk
        Indices of the cells that are nodes, in ascending order, shape (m,); posterior means of these cells,
        shape (m, k).
    neighbors_mj
        Indices of the nearest nodes of each node, nearest first, without the node itself, shape (m, j).
    lengths
        Fisher–Rao lengths of the edges, symmetric CSR matrix (m, m). One unit is the standard deviation of a single
        count around its expected value; for real numbers, it is the standard deviation of the noise.
    bridges, n_components
        Number of edges that were added between disconnected components; number of connected components before these
        edges were added, at least 1. There are no cells along the added edges.
    """

    cells: np.ndarray
    mean_mk: Tensor
    neighbors_mj: np.ndarray
    lengths: sp.csr_matrix
    bridges: int
    n_components: int

    def node_of(self, cell: int) -> int:
        """Return the index of the node of a cell."""
        node = int(np.searchsorted(self.cells, cell))
        assert self.cells[node] == cell, "the cell must be a node of the graph"
        return node

    def nodes_of(self, cells: np.ndarray) -> np.ndarray:
        """Return the indices of the nodes of some cells; cells that are not nodes are ignored."""
        return np.flatnonzero(np.isin(self.cells, cells))

    def distances(self, nodes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Compute the length of the shortest path from some nodes to every node, shape (len(nodes), m)."""
        result: np.ndarray = dijkstra(self.lengths, directed=False, indices=np.asarray(nodes))
        return result

    def shortest_paths(self, pairs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Return the nodes on the shortest path between the two nodes of each pair, including both ends."""
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
        """Compute the distance from each set of nodes to every node by heat diffusion. Shape (sets, m).

        According to Varadhan, heat that starts in a set and diffuses for some time decreases as exp(−distance) far from
        the set. The negative log of the heat is therefore a distance, after subtracting its smallest value. This
        distance averages over all short paths, whereas the length of the shortest path depends on that path alone
        (Crane, Weischedel & Wardetzky 2013, doi:10.1145/2516971.2516977). Each edge conducts heat with the conductance
        1/length². L is the normalized Laplacian of the conductances, as in diffusion maps. The initial heat is
        multiplied by (I + tL)⁻¹ to obtain the heat at the time t (Smola & Kondor 2003,
        doi:10.1007/978-3-540-45167-9_12). The unit of the distance is arbitrary.
        """
        from scipy.sparse.linalg import splu

        if len(self.cells) == 1:
            return np.zeros((len(sets), 1))
        # Without this bound, nearly identical nodes would exchange heat only with each other.
        least = _LEAST_LENGTH * float(np.median(self.lengths.data))
        conductance = self.lengths.copy()
        conductance.data = 1 / np.maximum(conductance.data, least) ** 2
        root_m = np.sqrt(np.asarray(conductance.sum(1)).ravel())
        m = len(root_m)
        normalized = sp.diags(1 / root_m) @ conductance @ sp.diags(1 / root_m)
        system = sp.identity(m) + _HEAT_TIME * (sp.identity(m) - normalized)
        solver = splu(system.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
        heat_sm = np.zeros((len(sets), m))
        for start_m, nodes in zip(heat_sm, sets, strict=True):
            start_m[nodes] = 1 / len(nodes)
        distance_sm = -np.log(np.maximum(solver.solve(heat_sm.T).T, 1e-300))
        result: np.ndarray = distance_sm - distance_sm.min(1, keepdims=True)
        return result

    def spread(self, value_m: np.ndarray, mean_nk: Tensor) -> np.ndarray:
        """Extend values of the nodes to all n cells; a cell that is not a node gets the mean over its nearest nodes."""
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
    """Build the neighbor graph of some cells.

    Parameters
    ----------
    geometry, mean_nk
        Fisher–Rao geometry of the decoder, and posterior means of all cells in the coordinates of the networks.
    always
        Indices of cells that must be nodes. If there are too many cells, `seed` determines which other cells are nodes.
    by_state
        Whether the nearest nodes are found by Fisher–Rao distance instead of by distance in latent space. This option
        does not change which cells are nodes.
    """
    most = min(MAX_NODES, max(1000, MAX_VALUES // geometry.vae.n_genes))
    cells = np.arange(len(mean_nk))
    if len(cells) > most:
        chosen = np.random.default_rng(seed).choice(len(cells), most, replace=False)
        cells = np.unique(np.concatenate([chosen, always]))
    mean_mk = mean_nk[torch.as_tensor(cells)]
    y_mg = coordinates(geometry, mean_mk)
    j = min(NEIGHBORS, len(cells) - 1)
    point_md = _principal_coordinates(y_mg) if by_state else mean_mk
    neighbors_mj = _without_itself(nearest(point_md, point_md, j + 1)[0])
    source = np.repeat(np.arange(len(cells)), j)
    edges = np.stack([source, neighbors_mj.ravel()], axis=1)
    n_components = _components(edges, len(cells))[0]
    bridges = _bridges(point_md, edges)
    edges = np.concatenate([edges, bridges])
    # In a sparse matrix, a length of exactly zero would not be an edge.
    length = np.maximum(_lengths(y_mg, edges), 1e-6)
    directed = sp.csr_matrix((length, (edges[:, 0], edges[:, 1])), shape=(len(cells), len(cells)))
    return CellGraph(
        cells=cells,
        mean_mk=mean_mk,
        neighbors_mj=neighbors_mj,
        lengths=directed.maximum(directed.T).tocsr(),
        bridges=len(bridges),
        n_components=n_components,
    )


@torch.no_grad()
def coordinates(geometry: Geometry, z_nk: Tensor) -> Tensor:
    """Compute Fisher–Rao coordinates of many points, on the CPU, shape (n, g)."""
    size = max(1, BLOCK_VALUES // geometry.vae.n_genes)
    device = geometry.vae.reference_library.device
    return torch.cat([geometry.coordinates(block_nk.to(device)).cpu() for block_nk in torch.split(z_nk, size)])


def nearest(points_nk: Tensor, among_mk: Tensor, j: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the j points of `among_mk` nearest to each of n points: indices and Euclidean distances, shape (n, j)."""
    size = max(1, BLOCK_VALUES // len(among_mk))
    # A matrix product would be too inaccurate to distinguish nearby points.
    exact = "donot_use_mm_for_euclid_dist"
    found = [
        torch.cdist(block_nk, among_mk, compute_mode=exact).topk(min(j, len(among_mk)), largest=False)
        for block_nk in torch.split(points_nk, size)
    ]
    return torch.cat([f.indices for f in found]).numpy(), torch.cat([f.values for f in found]).numpy()


def principal_directions(y_mg: Tensor) -> tuple[Tensor, Tensor]:
    """Find the directions of largest variance of Fisher–Rao coordinates: their center, shape (g,), and axes, (d, g).

    Distances hardly change if points are projected on these directions. The directions are computed from at most
    `DIRECTION_CELLS` of the points.
    """
    some_sg = y_mg[:: -(-len(y_mg) // DIRECTION_CELLS)]
    center_g = some_sg.mean(0)
    return center_g, torch.linalg.svd(some_sg - center_g, full_matrices=False).Vh[:_DIRECTIONS]


def _principal_coordinates(y_mg: Tensor) -> Tensor:
    """Project Fisher–Rao coordinates on the directions of largest variance. Shape (m, d)."""
    center_g, axes_dg = principal_directions(y_mg)
    size = max(1, BLOCK_VALUES // y_mg.shape[1])
    return torch.cat([(block_ng - center_g) @ axes_dg.T for block_ng in torch.split(y_mg, size)])


def _without_itself(neighbors: np.ndarray) -> np.ndarray:
    """Remove each node from its own neighbors.

    If a node is not among its own neighbors, because identical nodes are listed instead, remove the farthest neighbor.
    """
    itself = neighbors == np.arange(len(neighbors))[:, None]
    itself[~itself.any(1), -1] = True
    others: np.ndarray = neighbors[~itself].reshape(len(neighbors), -1)
    return others


def _components(edges: np.ndarray, m: int) -> tuple[int, np.ndarray]:
    """Return the number of connected components of m nodes, and the component of each node."""
    adjacency = sp.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(m, m))
    n_components, component_m = connected_components(adjacency, directed=False)
    return int(n_components), component_m


def _bridges(point_md: Tensor, edges: np.ndarray) -> np.ndarray:
    """Add an edge from every component to the nearest outside node until one component is left. Shape (bridges, 2).

    Two components that are nearest to each other get two edges, which may be identical.
    """
    bridges = np.empty((0, 2), dtype=edges.dtype)
    while True:
        n_components, component_m = _components(np.concatenate([edges, bridges]), len(point_md))
        if n_components == 1:
            return bridges
        largest = np.bincount(component_m).argmax()
        for component in np.delete(np.arange(n_components), largest):
            inside, outside = np.flatnonzero(component_m == component), np.flatnonzero(component_m != component)
            to, distance = nearest(point_md[torch.as_tensor(inside)], point_md[torch.as_tensor(outside)], 1)
            at = int(distance[:, 0].argmin())
            bridges = np.concatenate([bridges, [[inside[at], outside[to[at, 0]]]]])


def _lengths(y_mg: Tensor, edges: np.ndarray) -> np.ndarray:
    """Compute the distance between the coordinates of the two nodes of every edge."""
    parts = []
    for part in torch.split(torch.as_tensor(edges), max(1, BLOCK_VALUES // y_mg.shape[1])):
        difference_eg = y_mg.index_select(0, part[:, 0])
        difference_eg -= y_mg.index_select(0, part[:, 1])
        parts.append(torch.linalg.vector_norm(difference_eg, dim=1))
    lengths: np.ndarray = torch.cat(parts).numpy()
    return lengths
