"""Diffusion of cells along a neighbor graph: a kernel, and coordinates that order cells along branches.

The kernel turns the distance d between two neighbors into a similarity, exp(−d²/(σ₁ σ₂)), where σ is the distance of
each of the two cells to its fifth neighbor. The kernel therefore adapts to the density of the cells (Haghverdi et al.
2016, doi:10.1038/nmeth.3971).

The diffusion coordinates are the eigenvectors of the diffusion that belong to the largest eigenvalues λ, each
multiplied by λ/(1−λ). Euclidean distance in these coordinates is the multiscale distance of Palantir (Setty et al.
2019, doi:10.1038/s41587-019-0068-4): it averages over all paths between two cells, of any length.

Shapes: m nodes, d coordinates, j neighbors.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from scvae_cli.latent.neighbor_graph import CellGraph, euclidean_graph

# Number of neighbors and of diffusion coordinates for the order of cells, as in Palantir.
ORDER_NEIGHBORS, _COORDINATES = 30, 10
# The neighbor whose distance is the width of the kernel at a cell.
_WIDTH_NEIGHBOR = 5
# Smallest similarity, for edges that join disconnected parts of the graph: small, but large enough for the solver.
_LEAST_SIMILARITY = 1e-6


def order_graph(expression: CellGraph, n_ends: int = 0) -> CellGraph:
    """Connect cells that are near in diffusion coordinates: lengths of paths in this graph order the cells.

    Parameters
    ----------
    expression
        Neighbor graph of the same cells in expression space, with `ORDER_NEIGHBORS` neighbors.
    n_ends
        Number of ends among which the cells develop; more ends than usual need more coordinates.
    """
    if len(expression.cells) == 1:
        return expression
    coordinate_md = diffusion_coordinates(
        similarities(expression), max(_COORDINATES, n_ends), n_components=expression.n_components
    )
    return euclidean_graph(expression.cells, torch.as_tensor(coordinate_md), ORDER_NEIGHBORS)


def similarities(graph: CellGraph) -> sp.csr_matrix:
    """Compute the similarity of connected nodes of a graph, a symmetric matrix of shape (m, m)."""
    width_m = _widths(graph)
    edges = graph.lengths.tocoo()
    similarity = np.exp(-(edges.data.astype(np.float64) ** 2) / (width_m[edges.row] * width_m[edges.col]))
    similarity = np.maximum(similarity, _LEAST_SIMILARITY)
    return sp.csr_matrix((similarity, (edges.row, edges.col)), shape=edges.shape)


def _widths(graph: CellGraph) -> np.ndarray:
    at = min(_WIDTH_NEIGHBOR, graph.neighbors_mj.shape[1]) - 1
    m = len(graph.cells)
    width_m = np.asarray(graph.lengths[np.arange(m), graph.neighbors_mj[:, at]], dtype=np.float64).ravel()
    # Without this minimum, a node with several identical neighbors would have no similarity to any other node.
    least = float(np.median(width_m)) / 100
    floored: np.ndarray = np.maximum(width_m, max(least, 1e-6))
    return floored


def diffusion_coordinates(similarity: sp.csr_matrix, n_coordinates: int, n_components: int = 1) -> np.ndarray:
    """Compute the coordinates whose Euclidean distances are multiscale diffusion distances, shape (m, d).

    If the graph had several connected components before bridges were added, some coordinates only separate the
    components: one fewer than there are components. These coordinates are computed in addition to the others, and
    scaled to the width of the widest of the others. Otherwise, the gaps between components would dominate all
    distances.

    The similarities are first divided by the densities of both nodes, so that the distances do not depend on how many
    cells there are along a branch (Coifman & Lafon 2006, doi:10.1016/j.acha.2006.04.006, with α = 1).
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
