"""The order of the cells from a root, and the probability of each end for each cell.

The root is where the order of the cells begins, and the ends are groups where the order may end.

- The order is computed in expression space, the space of the embedding. The positions of the cells are replaced by
  their diffusion coordinates (`latent/diffusion.py`), in which noise across a branch is small. The order is the length
  of the shortest path from the root along neighbors in diffusion coordinates, as in Palantir (Setty et al. 2019,
  doi:10.1038/s41587-019-0068-4).
- The distance from the root is the length of the shortest path in the neighbor graph in latent space, whose edges have
  Fisher–Rao lengths.
- The probabilities of the ends are computed in `latent/fates.py`.

Letters in array shapes: n cells, m nodes of the graphs, e ends, p nodes of a population.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from scvae_cli.errors import DataError
from scvae_cli.latent.clouds import share_apart
from scvae_cli.latent.diffusion import ORDER_NEIGHBORS, order_graph, similarities
from scvae_cli.latent.end_cells import best, standing
from scvae_cli.latent.fates import committed, fate_probabilities
from scvae_cli.latent.gaps import longest_step
from scvae_cli.latent.neighbor_graph import CellGraph, cell_graph, euclidean_graph
from scvae_cli.latent.populations import Population, core
from scvae_cli.model.geometry import Geometry
from scvae_cli.session import Session
from scvae_cli.tools.pseudotime.options import UNCOMMITTED, EndKind
from scvae_cli.tools.pseudotime.result import Pseudotime, sizes_of
from scvae_cli.tools.pseudotime.unnamed_groups import unnamed_ends

# Largest number of reference cells in the search for the cells that represent the root, and largest number of cells
# from which a mean distance is computed.
_REFERENCES = 200


@dataclass(frozen=True, kw_only=True)
class _Graphs:
    """Three neighbor graphs of the same nodes: in latent space, in expression space, and in diffusion coordinates."""

    latent: CellGraph
    expression: CellGraph
    order: CellGraph


def pseudotime(
    session: Session,
    root: Population,
    ends: Sequence[Population],
    *,
    name: str,
    seed: int,
    endpoint: EndKind = "extreme",
    groups_n: np.ndarray | None = None,
) -> Pseudotime:
    """Order cells by their distance from a root, and compute the probability of each end.

    The core of a population consists of the cells whose neighbors mostly belong to the same population. A population is
    represented by a tenth of its core. The root is represented by the tenth of its core that is farthest from the ends.
    Without ends, the root is represented by the tenth of its core that is farthest from the cells outside the root.

    Parameters
    ----------
    session
        The n cells and the model.
    root, ends
        Populations, or single cells, where the order begins and where it may end.
    name, seed
        Name of the result, and random seed. If there are very many cells, the nodes of the graphs are a random
        selection of the cells. The cells that represent the root are found from distances to a random selection of
        cells of the ends, or of cells outside the root. Both selections are drawn with the seed.
    endpoint
        Which cells of a group represent an end (`scvae_cli.latent.end_cells`).
    groups_n
        Group of each cell, None for a cell without a group. `groups_n` itself is None without groups. The groups are
        used to find groups that may be ends although they are not named.

    Raises
    ------
    DataError
        If an end has the same position as the root.
    ModelError
        If the model was trained by an earlier version of scvae, which did not compute the map to expression space.
    """
    mean_nk, position_nd = session.cells.mean_nk, torch.as_tensor(session.expression)
    always = np.concatenate([population.candidates() for population in (root, *ends)])
    with session.progress("Ordering", 4) as advance:
        latent = cell_graph(Geometry(session.model.vae), mean_nk, always=always, seed=seed)
        advance(1, "neighbors in expression space")
        graphs = _graphs(latent, position_nd[torch.as_tensor(latent.cells)], len(ends))
        advance(1, "distances from the root")
        start = _outermost(graphs, root, ends, np.random.default_rng(seed))
        time_m = _mean_distance(graphs.order, start)
        distance_m = _mean_distance(latent, start)
        end_nodes = [latent.nodes_of(end.cells) for end in ends]
        ranked = [_standing(session, graphs, nodes, time_m, endpoint) for nodes in end_nodes]
        end_cells = [
            best(*_in_core(graphs, end, nodes, rank_p))
            for end, nodes, rank_p in zip(ends, end_nodes, ranked, strict=True)
        ]
        for end, nodes in zip(ends, end_cells, strict=True):
            if np.isin(nodes, start).any():
                raise DataError(f"the end {end.label!r} has the same position as the root", "choose another end")
        advance(1, "fates")
        probability_ne = np.empty((len(mean_nk), 0))
        branch_n = np.full(len(mean_nk), "", dtype=object)
        unnamed: tuple[tuple[str, str], ...] = ()
        group_m = np.full(len(latent.cells), None) if groups_n is None else groups_n[latent.cells]
        if ends:
            near = [similarities(euclidean_graph(latent.cells, graph.mean_mk)) for graph in (graphs.expression, latent)]
            stops = list(zip(end_nodes, ranked, strict=True))
            probability_me = fate_probabilities(near, time_m, stops)
            probability_ne = graphs.expression.spread(probability_me, position_nd)
            labels = np.asarray([end.label for end in ends], dtype=object)
            branch_n = np.where(committed(probability_ne), labels[probability_ne.argmax(1)], UNCOMMITTED)
            # The distances from the core of the root do not depend on the named ends.
            from_core_m = _mean_distance(graphs.expression, core(graphs.expression, root.cells))
            unnamed = unnamed_ends(
                graphs.expression,
                near,
                (time_m - time_m.min(), from_core_m),
                probability_me,
                group_m,
                ends=labels.tolist(),
                stops=stops,
                root=root.label,
            )
        advance()

    def names(nodes: np.ndarray) -> tuple[str, ...]:
        return tuple(str(cell) for cell in session.counts.cell_names[latent.cells[nodes]])

    first = time_m.min()
    return Pseudotime(
        name=name,
        root=root.label,
        ends=tuple(end.label for end in ends),
        root_cells=names(start),
        end_cells=tuple(names(nodes) for nodes in end_cells),
        pseudotime_n=graphs.expression.spread((time_m - first) / max(float(time_m.max() - first), 1e-12), position_nd),
        distance_n=latent.spread(distance_m, mean_nk),
        probability_ne=probability_ne,
        branch_n=branch_n,
        root_share_apart=_share_apart(graphs, latent.nodes_of(root.cells), start),
        end_shares_apart=tuple(
            _share_apart(graphs, nodes, chosen) for nodes, chosen in zip(end_nodes, end_cells, strict=True)
        ),
        longest_steps=tuple(longest_step(graphs.order, start, nodes, group_m) for nodes in end_cells),
        unnamed=unnamed,
        n_committed_outside=tuple(int(np.delete(branch_n == end.label, end.cells).sum()) for end in ends),
        root_branches=sizes_of(branch_n[root.cells], [end.label for end in ends]) if len(root.cells) > 1 else {},
        n_components=graphs.expression.n_components,
    )


def _graphs(latent: CellGraph, position_md: torch.Tensor, n_ends: int) -> _Graphs:
    """Make the neighbor graphs in expression space, with the same nodes as the neighbor graph in latent space."""
    expression = euclidean_graph(latent.cells, position_md, ORDER_NEIGHBORS)
    return _Graphs(latent=latent, expression=expression, order=order_graph(expression, n_ends))


def _share_apart(graphs: _Graphs, nodes: np.ndarray, represented: np.ndarray) -> float:
    """Compute the share of the nodes of a population that lie in another cloud than some of these nodes."""
    point_pd = graphs.expression.mean_mk[torch.as_tensor(nodes)]
    return share_apart(point_pd, np.searchsorted(nodes, represented))


def _mean_distance(graph: CellGraph, nodes: np.ndarray) -> np.ndarray:
    """Compute the mean distance from some nodes to every node, shape (m,)."""
    few = nodes[:: -(-len(nodes) // _REFERENCES)]
    distance_m: np.ndarray = graph.distances(few).mean(0)
    return distance_m


def _outermost(
    graphs: _Graphs, root: Population, ends: Sequence[Population], random: np.random.Generator
) -> np.ndarray:
    """Find the nodes that represent the root: the nodes of the root's core that are farthest from the ends.

    If there are no ends, the root is represented by the nodes of its core that are farthest from the cells outside the
    root.
    """
    members = graphs.latent.nodes_of(root.cells)
    if len(members) == 1:
        return members
    if ends:
        far = [core(graphs.expression, end.cells) for end in ends]
        # Each end has the same weight, regardless of its number of cells.
        references = [random.permutation(nodes)[: max(1, _REFERENCES // len(ends))] for nodes in far]
    else:
        outside = np.setdiff1d(np.arange(len(graphs.latent.cells)), members)
        references = [random.permutation(outside if len(outside) else members)[:_REFERENCES]]
    distance_m = np.mean([_mean_distance(graphs.order, nodes) for nodes in references], axis=0)
    inner = core(graphs.expression, root.cells)
    return best(inner, distance_m[inner])


def _standing(
    session: Session, graphs: _Graphs, nodes: np.ndarray, time_m: np.ndarray, endpoint: EndKind
) -> np.ndarray:
    """Rank the nodes of an end from 0 to 1, where 1 is the node that represents the end best; shape (p,)."""
    at = torch.as_tensor(nodes)
    log_density_p = session.model.density.to(torch.device("cpu")).log_prob(graphs.latent.mean_mk[at]).numpy()
    return standing(endpoint, time_m[nodes], log_density_p, graphs.expression.mean_mk[at].numpy())


def _in_core(graphs: _Graphs, end: Population, nodes: np.ndarray, rank_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes in the core of an end, and their ranks."""
    if len(nodes) == 1:
        return nodes, rank_p
    inside_p = np.isin(nodes, core(graphs.expression, end.cells))
    return nodes[inside_p], rank_p[inside_p]
