"""The distance of each cell from a root, and the weight of each end for each cell.

The root is where the order of the cells begins, and the ends are groups where the order may end. Distances are
geodesic: they are measured along the edges of a neighbor graph of the cells, and the edges have Fisher–Rao lengths.
There are two such graphs. The first graph joins neighbors in latent space. The distances from the root and the weights
of the ends are computed from shortest paths in the first graph. The second graph joins cells with similar expression.
The order of the cells is computed from smoothed distances in the second graph. A smoothed distance averages over all
short paths from the root to a cell, while the length of the shortest path depends on that path alone.

Shapes: n cells, m nodes of the graph, e ends, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scvae_cli.errors import DataError
from scvae_cli.latent.neighbor_graph import CellGraph, cell_graph
from scvae_cli.latent.populations import Population, core
from scvae_cli.model.geometry import Geometry
from scvae_cli.session import Session
from scvae_cli.tools.pseudotime.options import SHARED
from scvae_cli.tools.pseudotime.result import Pseudotime

# A cell belongs to an end if the weight of the end for this cell is at least this value.
_DECIDED = 0.8
# Number of cells that represent all others in the search for the outermost cells of a root.
_REFERENCES = 200


def pseudotime(session: Session, root: Population, ends: Sequence[Population], *, name: str, seed: int) -> Pseudotime:
    """Order cells by their distance from a root, and assign them to ends.

    The core of a population consists of the cells whose neighbors mostly belong to the same population. A population is
    represented by a tenth of the core. For an end, this is the tenth that is farthest from the root. For the root, this
    is the tenth that is farthest from the ends. If there are no ends, this is the tenth that is farthest from the cells
    outside the root.

    Parameters
    ----------
    session
        The n cells and the model.
    root, ends
        Populations or single cells.
    name, seed
        Name of the result, and random seed. If there are very many cells, only some are nodes of the graphs, and they
        are drawn with the seed. To find the tenth that represents the root, distances are measured to only some cells
        of the ends, or to only some cells outside the root. These cells are drawn with the seed, too.

    Raises
    ------
    DataError
        If an end has the same position as the root.
    """
    geometry, mean_nk = Geometry(session.model.vae), session.cells.mean_nk
    always = np.concatenate([population.candidates() for population in (root, *ends)])
    with session.progress("Ordering", 4) as advance:
        graph = cell_graph(geometry, mean_nk, always=always, seed=seed)
        advance(1, "distances from the root")
        start = _outermost(graph, root, ends, np.random.default_rng(seed))
        from_root_m = graph.distances(start).mean(0)
        end_nodes = [_farthest(graph, end, from_root_m) for end in ends]
        for end, nodes in zip(ends, end_nodes, strict=True):
            if np.isin(nodes, start).any():
                raise DataError(f"the end {end.label!r} has the same position as the root", "choose another end")
        advance(1, "neighbor graph by expression")
        by_state = cell_graph(geometry, mean_nk, always=always, by_state=True, seed=seed)
        advance(1, "smoothed distances")
        smooth_m = by_state.smooth_distances([start])[0]
        advance()
    weight_ne = np.empty((len(mean_nk), 0))
    branch_n = np.full(len(mean_nk), "", dtype=object)
    if ends:
        weight_ne = graph.spread(_weights(graph, from_root_m, end_nodes), mean_nk)
        labels = np.asarray([end.label for end in ends], dtype=object)
        branch_n = np.where(weight_ne.max(1) >= _DECIDED, labels[weight_ne.argmax(1)], SHARED)

    def names(nodes: np.ndarray) -> tuple[str, ...]:
        return tuple(str(cell) for cell in session.counts.cell_names[graph.cells[nodes]])

    return Pseudotime(
        name=name,
        root=root.label,
        ends=tuple(end.label for end in ends),
        root_cells=names(start),
        end_cells=tuple(names(nodes) for nodes in end_nodes),
        pseudotime_n=graph.spread(smooth_m / max(float(smooth_m.max()), 1e-12), mean_nk),
        distance_n=graph.spread(from_root_m, mean_nk),
        weight_ne=weight_ne,
        branch_n=branch_n,
        n_components=graph.n_components,
    )


def _outermost(
    graph: CellGraph, root: Population, ends: Sequence[Population], random: np.random.Generator
) -> np.ndarray:
    """Find the nodes that represent the root: the nodes of the root's core that are farthest from the ends.

    If there are no ends, these are the nodes that are farthest from the cells outside the root.
    """
    if len(root.cells) == 1:
        return graph.nodes_of(root.cells)
    members = core(graph, root.cells)
    if ends:
        far = [core(graph, end.cells) for end in ends]
        # Each end has the same weight, regardless of its number of cells.
        references = [random.permutation(nodes)[: max(1, _REFERENCES // len(ends))] for nodes in far]
    else:
        outside = np.setdiff1d(np.arange(len(graph.cells)), graph.nodes_of(root.cells))
        references = [random.permutation(outside if len(outside) else members)[:_REFERENCES]]
    distance_m = np.mean([graph.distances(nodes).mean(0) for nodes in references], axis=0)
    return _farthest(graph, root, distance_m)


def _farthest(graph: CellGraph, population: Population, distance_m: np.ndarray) -> np.ndarray:
    """Choose the tenth of a population's core that has the largest distances; at least one node is chosen."""
    nodes = core(graph, population.cells) if len(population.cells) > 1 else graph.nodes_of(population.cells)
    order = np.argsort(-distance_m[nodes], kind="stable")
    top: np.ndarray = nodes[order[: max(1, len(nodes) // 10)]]
    return top


def _weights(graph: CellGraph, from_root_m: np.ndarray, end_nodes: Sequence[np.ndarray]) -> np.ndarray:
    """Compute the weight of each end for each node, shape (m, e).

    The weight is computed from a detour: the additional length of the path from the root to the end if the path passes
    the node.
    """
    to_end_em = np.stack([graph.distances(nodes).mean(0) for nodes in end_nodes])
    direct_e = np.asarray([from_root_m[nodes].mean() for nodes in end_nodes])
    detour_me = (from_root_m + to_end_em).T - direct_e
    least_m1 = detour_me.min(1, keepdims=True)
    # Even cells on the path have a detour, because cells scatter around the path. `usual` is the typical length of this
    # detour.
    usual = max(float(np.median(least_m1)), 1e-12)
    weight_me: np.ndarray = np.exp(-(detour_me - least_m1) / usual)
    weight_me /= weight_me.sum(1, keepdims=True)
    return weight_me
