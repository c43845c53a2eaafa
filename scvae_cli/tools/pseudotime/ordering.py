"""Cells in order: how far each has gone from a root, and towards which of several ends.

Distances are geodesic, through the cells' graph, whose edges are as long as they are on the manifold the decoder draws:
along shortest paths between latent neighbours where their length matters, or the fate they lead to; where the order
does, smoothed over all short ways between cells that express the same.

Shapes: n cells, m nodes of the graph, e ends, k latent dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames, slug
from scvae_cli.errors import DataError
from scvae_cli.latent.neighbor_graph import CellGraph, cell_graph
from scvae_cli.latent.populations import Population, core
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.bundle import Model
from scvae_cli.model.geometry import Geometry

SHARED = "shared"
# A cell belongs to an end when the odds are at least this; below, it has not decided.
_DECIDED = 0.8
# Cells that stand for all the others when the outermost cell of a root is looked for.
_WITNESSES = 200


@dataclass(frozen=True, kw_only=True)
class Pseudotime:
    """Order of the cells.

    Parameters
    ----------
    name
        Of the ordering, in slots.
    root, ends
        Names of the root and of the ends.
    root_cells, end_cells
        The cells distances are measured from; of each end.
    pseudotime_n
        Smoothed distance from the root over the largest one: 0 to 1.
    distance_n
        Mean length of the shortest paths from the root's cells, standard deviations of a count.
    weight_ne
        How much each end draws a cell, rows sum to 1: exp(−detour/usual detour), where the detour is how much longer
        the way from root to end gets by way of the cell.
    branch_n
        The end whose weight is at least 0.8, else "shared"; "" without ends.
    bridges
        Stretches of the graph without cells.
    islands
        Parts of the graph that these join.
    """

    name: str
    root: str
    ends: tuple[str, ...]
    root_cells: tuple[str, ...]
    end_cells: tuple[tuple[str, ...], ...]
    pseudotime_n: np.ndarray
    distance_n: np.ndarray
    weight_ne: np.ndarray
    branch_n: np.ndarray
    bridges: int
    islands: int

    def branch_sizes(self) -> dict[str, int]:
        """Number of cells of each branch, the shared ones first; empty without ends."""
        return {branch: int((self.branch_n == branch).sum()) for branch in ((SHARED, *self.ends) if self.ends else ())}

    def warning(self) -> str | None:
        """What to doubt, or None."""
        if self.islands == 1:
            return None
        return (
            f"the cells lie on {self.islands} islands; between them there are none, and the order across the gaps "
            "is a guess: leave out populations that do not belong to the process"
        )

    def slots(self, names: SlotNames) -> list[Slot]:
        """Where the result goes."""
        slots = [
            Slot(group="obs", key=names.pseudotime(self.name), value=self.pseudotime_n),
            Slot(group="obs", key=names.root_distance(self.name), value=self.distance_n),
        ]
        if self.ends:
            # Here, not above: a training from Python imports this file too, and does without pandas.
            import pandas as pd

            branches = pd.Categorical(self.branch_n, categories=[SHARED, *dict.fromkeys(self.ends)])
            slots += [
                Slot(group="obs", key=names.branch(self.name), value=branches),
                Slot(group="obsm", key=names.end_weights(self.name), value=self.weight_ne.astype(np.float32)),
            ]
        return slots


def pseudotime(
    model: Model, counts: Counts, root: Population, ends: Sequence[Population] = (), *, name: str, seed: int = 0
) -> Pseudotime:
    """Order cells from a root, and share them out among ends.

    A population as root is represented by the tenth of its core that is farthest from the ends (without ends, from all
    cells outside it); a population as end by the tenth of its core that is farthest from the root.

    Parameters
    ----------
    model
        Encodes and decodes.
    counts
        n cells in the model's genes.
    root, ends
        Populations or single cells.
    name
        Of the ordering.
    seed
        Of the selections made among very many cells.

    Raises
    ------
    DataError
        When an end is at the same place as the root, or is called as the cells are that have not decided.
    """
    if any(point.label == SHARED for point in ends):
        raise DataError(
            f"an end is called {SHARED!r}, as are cells that have not decided between the ends",
            "give that population another name in obs",
        )
    geometry = Geometry(model.vae)
    mean_nk, _ = posteriors(model, counts)
    always = np.concatenate([point.candidates() for point in (root, *ends)])
    graph = cell_graph(geometry, mean_nk, always=always, seed=seed)
    start = _outermost(graph, root, ends, np.random.default_rng(seed))
    from_root_m = graph.distances(start).mean(0)
    end_nodes = [_farthest(graph, point, from_root_m) for point in ends]
    for point, nodes in zip(ends, end_nodes, strict=True):
        if np.isin(nodes, start).any():
            raise DataError(f"the end {point.label!r} is at the root", "choose an end apart from the root")
    alike = cell_graph(geometry, mean_nk, always=always, by_state=True, seed=seed)
    smooth_m = alike.smooth_distances([start])[0]
    weight_ne = np.empty((len(mean_nk), 0))
    branch_n = np.full(len(mean_nk), "", dtype=object)
    if ends:
        weight_ne = graph.spread(_weights(graph, from_root_m, end_nodes), mean_nk)
        labels = np.asarray([point.label for point in ends], dtype=object)
        branch_n = np.where(weight_ne.max(1) >= _DECIDED, labels[weight_ne.argmax(1)], SHARED)

    def names(nodes: np.ndarray) -> tuple[str, ...]:
        return tuple(str(cell) for cell in counts.cell_names[graph.cells[nodes]])

    return Pseudotime(
        name=name,
        root=root.label,
        ends=tuple(point.label for point in ends),
        root_cells=names(start),
        end_cells=tuple(names(nodes) for nodes in end_nodes),
        pseudotime_n=graph.spread(smooth_m / max(float(smooth_m.max()), 1e-12), mean_nk),
        distance_n=graph.spread(from_root_m, mean_nk),
        weight_ne=weight_ne,
        branch_n=branch_n,
        bridges=graph.bridges,
        islands=graph.islands,
    )


def _outermost(
    graph: CellGraph, root: Population, ends: Sequence[Population], random: np.random.Generator
) -> np.ndarray:
    """The root's nodes that the cells flow away from."""
    if len(root.cells) == 1:
        return graph.nodes_of(root.cells)
    members = core(graph, root.cells)
    if ends:
        far = [core(graph, point.cells) for point in ends]
        # Each end weighs the same, however many cells it has.
        witnesses = [random.permutation(nodes)[: max(1, _WITNESSES // len(ends))] for nodes in far]
    else:
        outside = np.setdiff1d(np.arange(len(graph.cells)), graph.nodes_of(root.cells))
        witnesses = [random.permutation(outside if len(outside) else members)[:_WITNESSES]]
    distance_m = np.mean([graph.distances(nodes).mean(0) for nodes in witnesses], axis=0)
    return _top_tenth(members, distance_m)


def _farthest(graph: CellGraph, point: Population, from_root_m: np.ndarray) -> np.ndarray:
    if len(point.cells) == 1:
        return graph.nodes_of(point.cells)
    return _top_tenth(core(graph, point.cells), from_root_m)


def _top_tenth(nodes: np.ndarray, value_m: np.ndarray) -> np.ndarray:
    """Those of some nodes with the largest values, a tenth of them but at least one."""
    order = np.argsort(-value_m[nodes], kind="stable")
    top: np.ndarray = nodes[order[: max(1, len(nodes) // 10)]]
    return top


def _weights(graph: CellGraph, from_root_m: np.ndarray, end_nodes: Sequence[np.ndarray]) -> np.ndarray:
    """How much each end draws each node, by the detour that the way to it takes by way of the node, shape (m, e)."""
    to_end_em = np.stack([graph.distances(nodes).mean(0) for nodes in end_nodes])
    whole_e = np.asarray([from_root_m[nodes].mean() for nodes in end_nodes])
    detour_me = (from_root_m + to_end_em).T - whole_e
    least_m1 = detour_me.min(1, keepdims=True)
    # What even the cells on the way have: the spread of cells across it.
    usual = max(float(np.median(least_m1)), 1e-12)
    weight_me: np.ndarray = np.exp(-(detour_me - least_m1) / usual)
    weight_me /= weight_me.sum(1, keepdims=True)
    return weight_me


def default_name(root: str) -> str:
    """An ordering's name made of its root.

    >>> default_name("CD34+ HSC")
    'from_CD34_HSC'
    """
    return f"from_{slug(root)}"
