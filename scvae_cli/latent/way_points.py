"""Places a path goes through, and which cells of one population lead to which of another.

Shapes: n cells, k latent dimensions, w way-points, p paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scvae_cli.latent.cell_graph import CellGraph, coordinates, nearest
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.geometry import Geometry

ENDPOINTS = ("density", "centroid")
COUPLINGS = ("none", "ot")
# Neighbours whose labels say how much a place belongs to a population, and how nearly the purest a place must be.
_PURITY_NEIGHBOURS, _PURE = 15, 0.9
# A walk does not start where more than this share of held-out cells lies in denser places, if it can be helped.
_USUAL = 0.9
# Cells of each population that optimal transport pairs: its cost grows with their product.
_COUPLED_CELLS = 500
# Cells of each population that are always nodes of the graph.
_ALWAYS_NODES = 500


@dataclass(frozen=True, kw_only=True)
class Waypoint:
    """A place a path goes through: a population, or one cell.

    Parameters
    ----------
    label
        Its name, as the user gave it.
    cells
        Indices of its cells; one index for a single cell.
    """

    label: str
    cells: np.ndarray

    def candidates(self) -> np.ndarray:
        """Its cells, an even selection of very many."""
        return self.cells[:: -(-len(self.cells) // _ALWAYS_NODES)]


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where paths go through.

    Parameters
    ----------
    ends_pwk
        Latent way-points of each path, in the frame of the training.
    nodes_pw
        The graph's node at, or nearest to, each of them.
    """

    ends_pwk: np.ndarray
    nodes_pw: np.ndarray


def core(graph: CellGraph, cells: np.ndarray, usual_m: np.ndarray | None = None) -> np.ndarray:
    """Those nodes of a population that lie among their own kind: nearly as surely as any of it does.

    Where a small population borders on a large one its densest places are the other's; they do not stand for it.

    Parameters
    ----------
    usual_m
        Mask of the nodes to choose from, where the population has any of them.
    """
    members = graph.nodes_of(cells)
    inside_m = np.zeros(len(graph.cells), dtype=bool)
    inside_m[members] = True
    if usual_m is not None and usual_m[members].any():
        members = members[usual_m[members]]
    share = inside_m[graph.neighbours_mj[members, :_PURITY_NEIGHBOURS]].mean(1)
    chosen: np.ndarray = members[share >= _PURE * share.max()]
    return chosen


def densest(graph: CellGraph, density: LatentDensity, cells: np.ndarray) -> int:
    """The node of a population's core where the density of all cells is highest, outliers aside."""
    usual_m = density.off_manifold(graph.mean_mk).numpy() <= _USUAL
    nodes = core(graph, cells, usual_m)
    return int(nodes[int(density.log_prob(graph.mean_mk[torch.as_tensor(nodes)]).argmax())])


def places(
    graph: CellGraph, density: LatentDensity, mean_nk: Tensor, waypoints: Sequence[Waypoint], endpoint: str
) -> Places:
    """One path through a place for each way-point.

    Parameters
    ----------
    endpoint
        "density": a population stands at the densest place of its core; "centroid": at the mean of its cells.
        A single cell stands where it is.
    """
    ends, nodes = [], []
    for point in waypoints:
        if len(point.cells) > 1 and endpoint == "centroid":
            centre_1k = mean_nk[torch.as_tensor(point.cells)].mean(0, keepdim=True)
            ends.append(centre_1k[0].numpy())
            nodes.append(int(nearest(centre_1k, graph.mean_mk, 1)[0][0, 0]))
            continue
        node = graph.node_of(point.cells[0]) if len(point.cells) == 1 else densest(graph, density, point.cells)
        ends.append(graph.mean_mk[node].numpy())
        nodes.append(node)
    return Places(ends_pwk=np.stack(ends)[None], nodes_pw=np.asarray(nodes)[None])


def coupled(
    graph: CellGraph, geometry: Geometry, single: Places, start: Waypoint, end: Waypoint, *, n_paths: int, seed: int
) -> Places:
    """Paths from cells of the first population to the cells of the last that optimal transport pairs them with.

    The plan moves one population onto the other at the least sum of squared Fisher–Rao distances (Monge–Kantorovich,
    solved exactly by POT); pairs are drawn from it. The way-points between are those of the single path.
    """
    import ot

    random = np.random.default_rng(seed)
    members = [graph.nodes_of(point.cells) for point in (start, end)]
    members = [random.permutation(nodes)[:_COUPLED_CELLS] for nodes in members]
    y_ag, y_bg = (coordinates(geometry, graph.mean_mk[torch.as_tensor(nodes)]).double() for nodes in members)
    plan_ab = ot.emd([], [], torch.cdist(y_ag, y_bg).square().numpy())
    drawn = random.choice(
        plan_ab.size, size=n_paths, replace=n_paths > (plan_ab > 0).sum(), p=plan_ab.ravel() / plan_ab.sum()
    )
    starts, ends = members[0][drawn // plan_ab.shape[1]], members[1][drawn % plan_ab.shape[1]]
    nodes_pw = np.repeat(single.nodes_pw, n_paths, axis=0)
    ends_pwk = np.repeat(single.ends_pwk, n_paths, axis=0)
    for column, nodes in ((0, starts), (-1, ends)):
        nodes_pw[:, column] = nodes
        ends_pwk[:, column] = graph.mean_mk[torch.as_tensor(nodes)].numpy()
    return Places(ends_pwk=ends_pwk, nodes_pw=nodes_pw)
