"""The neighbor graph of the cells, in which the length of an edge is a Fisher–Rao distance.

Each node of the graph is a cell, and the position of the node is the posterior mean of the cell. The decoded state of a
cell is the expression that the decoder computes at the posterior mean, in Fisher–Rao coordinates (`model/geometry.py`).
Each node is connected to its nearest nodes in latent space. The length of an edge is the distance between the decoded
states of its two cells. If there are very many cells, only a random subset of the cells are nodes.

The prior makes the variance of the cells about 1 along every latent dimension in use, even if only a few genes change
along the dimension. A graph of neighbors in latent space therefore separates two cell fates even if only a few genes
distinguish the fates. `euclidean_graph` makes a neighbor graph from coordinates of any kind, such as positions in
expression space.

Letters in array shapes: n cells, k latent dimensions, d coordinates, g genes, m nodes, j neighbors.
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
# Number of values that are processed at once, which take 8 MB in float32. Larger blocks exceed the processor's cache,
# so that temporary arrays become slow.
BLOCK_VALUES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class CellGraph:
    """A connected graph of cells.

    Parameters
    ----------
    cells, mean_mk
        Indices of the cells that are nodes, in ascending order, shape (m,); posterior means of the nodes, shape (m, k).
    neighbors_mj
        Indices of the nearest nodes of each node, nearest first, without the node itself, shape (m, j).
    lengths
        Fisher–Rao lengths of the edges, symmetric CSR matrix (m, m). One unit of length is the standard deviation of a
        single count around its expected value. For real numbers, one unit is the standard deviation of the noise.
    bridges, n_components
        Number of edges that were added between disconnected components; number of connected components before edges
        were added, at least 1. There are no cells along the added edges.
    """

    cells: np.ndarray
    mean_mk: Tensor
    neighbors_mj: np.ndarray
    lengths: sp.csr_matrix
    bridges: int
    n_components: int

    def node_of(self, cell: int) -> int:
        """Return the node index of a cell in the graph."""
        node = int(np.searchsorted(self.cells, cell))
        assert self.cells[node] == cell, "the cell must be a node of the graph"
        return node

    def nodes_of(self, cells: np.ndarray) -> np.ndarray:
        """Return the node indices of the cells `cells` in the graph. Cells that are not nodes are ignored."""
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

    def spread(self, value_m: np.ndarray, mean_nk: Tensor) -> np.ndarray:
        """Extend values of the nodes to all n cells.

        A cell that is not a node gets the mean over its five nearest nodes, weighted by the inverse distances.
        """
        if len(self.cells) == len(mean_nk):
            return value_m
        nearest_nj, distance_nj = nearest(mean_nk, self.mean_mk, 5)
        weight_nj = 1 / (distance_nj + 1e-6)
        weights = weight_nj.reshape(*weight_nj.shape, *[1] * (value_m.ndim - 1))
        value_n: np.ndarray = (value_m[nearest_nj] * weights).sum(1) / weights.sum(1)
        value_n[self.cells] = value_m
        return value_n


def cell_graph(geometry: Geometry, mean_nk: Tensor, *, always: np.ndarray, seed: int = 0) -> CellGraph:
    """Build the neighbor graph of all cells, or of a random part of the cells if there are very many.

    Parameters
    ----------
    geometry, mean_nk
        Fisher–Rao geometry of the decoder, and posterior means of all cells in the coordinates of the networks.
    always
        Indices of cells that must be nodes. If there are more cells than possible nodes, `seed` determines which other
        cells are nodes.
    """
    most = min(MAX_NODES, max(1000, MAX_VALUES // geometry.vae.n_genes))
    cells = np.arange(len(mean_nk))
    if len(cells) > most:
        chosen = np.random.default_rng(seed).choice(len(cells), most, replace=False)
        cells = np.unique(np.concatenate([chosen, always]))
    mean_mk = mean_nk[torch.as_tensor(cells)]
    y_mg = coordinates(geometry, mean_mk)
    return _graph(cells, mean_mk, y_mg, NEIGHBORS)


def euclidean_graph(cells: np.ndarray, point_md: Tensor, n_neighbors: int = NEIGHBORS) -> CellGraph:
    """Build the neighbor graph of given cells in coordinates whose Euclidean distances are the lengths of the edges.

    Parameters
    ----------
    cells, point_md
        Indices of the cells that are nodes, in ascending order, shape (m,); coordinates of the nodes, shape (m, d),
        which are stored as `CellGraph.mean_mk`.
    """
    return _graph(cells, point_md, point_md, n_neighbors)


def _graph(cells: np.ndarray, point_md: Tensor, y_mg: Tensor, n_neighbors: int) -> CellGraph:
    """Connect each point to its nearest points. The length of an edge is the distance between two rows of `y_mg`."""
    j = min(n_neighbors, len(cells) - 1)
    neighbors_mj = _without_itself(nearest(point_md, point_md, j + 1)[0])
    source = np.repeat(np.arange(len(cells)), j)
    edges = np.stack([source, neighbors_mj.ravel()], axis=1)
    n_components = components(edges, len(cells))[0]
    bridges = _bridges(point_md, edges)
    edges = np.concatenate([edges, bridges])
    # In a sparse matrix, an edge with a length of exactly zero would be missing.
    length = np.maximum(_lengths(y_mg, edges), 1e-6)
    directed = sp.csr_matrix((length, (edges[:, 0], edges[:, 1])), shape=(len(cells), len(cells)))
    return CellGraph(
        cells=cells,
        mean_mk=point_md,
        neighbors_mj=neighbors_mj,
        lengths=directed.maximum(directed.T).tocsr(),
        bridges=len(bridges),
        n_components=n_components,
    )


@torch.no_grad()
def coordinates(geometry: Geometry, z_nk: Tensor) -> Tensor:
    """Compute Fisher–Rao coordinates of many latent points, shape (n, g). The result is on the CPU."""
    size = max(1, BLOCK_VALUES // geometry.vae.n_genes)
    device = geometry.vae.reference_library.device
    return torch.cat([geometry.coordinates(block_nk.to(device)).cpu() for block_nk in torch.split(z_nk, size)])


def nearest(points_nk: Tensor, among_mk: Tensor, j: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the j points of `among_mk` nearest to each of n points.

    The results are the indices and the Euclidean distances of the nearest points, each of shape (n, j).
    """
    size = max(1, BLOCK_VALUES // len(among_mk))
    # Distances that are computed with a matrix product would be too inaccurate to distinguish nearby points.
    exact = "donot_use_mm_for_euclid_dist"
    found = [
        torch.cdist(block_nk, among_mk, compute_mode=exact).topk(min(j, len(among_mk)), largest=False)
        for block_nk in torch.split(points_nk, size)
    ]
    return torch.cat([f.indices for f in found]).numpy(), torch.cat([f.values for f in found]).numpy()


def _without_itself(neighbors: np.ndarray) -> np.ndarray:
    """Remove each node from the list of its neighbors.

    If many nodes have the same position, a list of neighbors may lack the node itself. The farthest neighbor is then
    removed.
    """
    itself = neighbors == np.arange(len(neighbors))[:, None]
    itself[~itself.any(1), -1] = True
    others: np.ndarray = neighbors[~itself].reshape(len(neighbors), -1)
    return others


def components(edges: np.ndarray, m: int) -> tuple[int, np.ndarray]:
    """Return the number of connected components of m nodes, and the component of each node."""
    adjacency = sp.csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(m, m))
    n_components, component_m = connected_components(adjacency, directed=False)
    return int(n_components), component_m


def _bridges(point_md: Tensor, edges: np.ndarray) -> np.ndarray:
    """Find edges that join the connected components of a graph into one component, shape (edges, 2).

    In each round, every component except the largest is connected to the nearest node outside the component. The result
    may contain the same edge twice.
    """
    bridges = np.empty((0, 2), dtype=edges.dtype)
    while True:
        n_components, component_m = components(np.concatenate([edges, bridges]), len(point_md))
        if n_components == 1:
            return bridges
        largest = np.bincount(component_m).argmax()
        for component in np.delete(np.arange(n_components), largest):
            inside, outside = np.flatnonzero(component_m == component), np.flatnonzero(component_m != component)
            to, distance = nearest(point_md[torch.as_tensor(inside)], point_md[torch.as_tensor(outside)], 1)
            at = int(distance[:, 0].argmin())
            bridges = np.concatenate([bridges, [[inside[at], outside[to[at, 0]]]]])


def _lengths(y_mg: Tensor, edges: np.ndarray) -> np.ndarray:
    """Compute the length of every edge: the Euclidean distance between two rows of `y_mg`."""
    parts = []
    for part in torch.split(torch.as_tensor(edges), max(1, BLOCK_VALUES // y_mg.shape[1])):
        difference_eg = y_mg.index_select(0, part[:, 0])
        difference_eg -= y_mg.index_select(0, part[:, 1])
        parts.append(torch.linalg.vector_norm(difference_eg, dim=1))
    lengths: np.ndarray = torch.cat(parts).numpy()
    return lengths
