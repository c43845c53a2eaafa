"""Diffusion along a neighbor graph of cells: a kernel, and diffusion coordinates that order cells along branches.

The kernel computes the similarity exp(−d²/(σ₁ σ₂)) of two neighboring cells from their distance d, where σ₁ and σ₂ are
the distances of the two cells to their fifth neighbors. The kernel therefore adapts to the density of the cells
(Haghverdi et al. 2016, doi:10.1038/nmeth.3971).

The diffusion coordinates are the eigenvectors of the diffusion operator with the largest eigenvalues λ, each multiplied
by λ/(1−λ). The Euclidean distance in diffusion coordinates is the multiscale distance of Palantir (Setty et al. 2019,
doi:10.1038/s41587-019-0068-4). The multiscale distance averages over paths of any length between two cells.

Letters in array shapes: m nodes, d coordinates, j neighbors.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from scvae_cli.latent.neighbor_graph import CellGraph, euclidean_graph

# Number of neighbors and number of diffusion coordinates from which the order of cells is computed, as in Palantir.
ORDER_NEIGHBORS, _COORDINATES = 30, 10
# Rank of the neighbor whose distance from a cell is the width of the kernel at the cell.
_WIDTH_NEIGHBOR = 5
# Smallest similarity of an edge. Edges that join disconnected parts of the graph would otherwise have similarities too
# small for the eigenvalue solver.
_LEAST_SIMILARITY = 1e-6


def order_graph(expression: CellGraph, n_ends: int = 0) -> CellGraph:
    """Connect cells that are near to each other in diffusion coordinates.

    Cells can then be ordered by the lengths of paths in the resulting graph.

    Parameters
    ----------
    expression
        Neighbor graph of the cells in expression space, with `ORDER_NEIGHBORS` neighbors.
    n_ends
        Number of ends towards which the cells develop. If there are more than ten ends, more diffusion coordinates are
        used.
    """
    if len(expression.cells) == 1:
        return expression
    coordinate_md = diffusion_coordinates(
        similarities(expression), max(_COORDINATES, n_ends), n_components=expression.n_components
    )
    return euclidean_graph(expression.cells, torch.as_tensor(coordinate_md), ORDER_NEIGHBORS)


def similarities(graph: CellGraph) -> sp.csr_matrix:
    """Compute the similarities of connected nodes of a graph, as a symmetric matrix of shape (m, m)."""
    width_m = _widths(graph)
    edges = graph.lengths.tocoo()
    similarity = np.exp(-(edges.data.astype(np.float64) ** 2) / (width_m[edges.row] * width_m[edges.col]))
    similarity = np.maximum(similarity, _LEAST_SIMILARITY)
    return sp.csr_matrix((similarity, (edges.row, edges.col)), shape=edges.shape)


def _widths(graph: CellGraph) -> np.ndarray:
    at = min(_WIDTH_NEIGHBOR, graph.neighbors_mj.shape[1]) - 1
    m = len(graph.cells)
    width_m = np.asarray(graph.lengths[np.arange(m), graph.neighbors_mj[:, at]], dtype=np.float64).ravel()
    # Without a smallest width, a node with several identical neighbors would have no similarity to any other node.
    least = float(np.median(width_m)) / 100
    floored: np.ndarray = np.maximum(width_m, max(least, 1e-6))
    return floored


def diffusion_coordinates(similarity: sp.csr_matrix, n_coordinates: int, n_components: int = 1) -> np.ndarray:
    """Compute the coordinates whose Euclidean distances are multiscale diffusion distances, shape (m, d).

    If edges were added to connect c > 1 components of the graph, c − 1 coordinates only separate the components.
    Coordinates that separate components are computed in addition to the requested coordinates. The factor λ/(1−λ) of a
    coordinate that separates components is reduced to the factor of the first requested coordinate. With larger
    factors, the gaps between components would dominate all distances.

    The similarity of two nodes is first divided by the densities of the two nodes (Coifman & Lafon 2006,
    doi:10.1016/j.acha.2006.04.006, with α = 1). Distances therefore do not depend on how many cells there are along a
    branch.
    """
    from scipy.sparse.linalg import eigsh

    m = similarity.shape[0]
    inverse = sp.diags(1 / np.asarray(similarity.sum(1)).ravel())
    weight = inverse @ similarity @ inverse
    total_m = np.asarray(weight.sum(1)).ravel()
    half = sp.diags(1 / np.sqrt(total_m))
    symmetric = half @ weight @ half
    gaps = n_components - 1
    wanted = min(n_coordinates + gaps + 1, m)
    if wanted >= m - 1:
        value_d, vector_md = np.linalg.eigh(symmetric.toarray())
    else:
        start_m = np.random.default_rng(0).random(m)
        value_d, vector_md = eigsh(symmetric.tocsr(), k=wanted, which="LA", v0=start_m)
    largest = np.argsort(-value_d)[1:wanted]
    value_d, vector_md = value_d[largest], vector_md[:, largest] / np.sqrt(total_m)[:, None]
    vector_md /= np.linalg.norm(vector_md, axis=0)
    value_d[:gaps] = value_d[min(gaps, len(value_d) - 1)]
    value_d = np.clip(value_d, 0, 1 - 1e-9)
    coordinate_md: np.ndarray = vector_md * (value_d / (1 - value_d))
    return coordinate_md
