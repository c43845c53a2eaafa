"""Where a trajectory passes: one place for each population, or pairs of cells that optimal transport joins.

Shapes: n cells, k latent dimensions, w waypoints, p paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scvae_cli.latent.neighbor_graph import CellGraph, coordinates, nearest
from scvae_cli.latent.populations import Population, densest
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.geometry import Geometry

# Cells of each population that optimal transport pairs: its cost grows with their product.
_COUPLED_CELLS = 500


@dataclass(frozen=True, kw_only=True)
class Waypoints:
    """Where paths pass.

    Parameters
    ----------
    ends_pwk
        Latent waypoints of each path, in the frame of the training.
    nodes_pw
        The graph's node at, or nearest to, each of them.
    """

    ends_pwk: np.ndarray
    nodes_pw: np.ndarray


def places(
    graph: CellGraph, density: LatentDensity, mean_nk: Tensor, waypoints: Sequence[Population], endpoint: str
) -> Waypoints:
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
    return Waypoints(ends_pwk=np.stack(ends)[None], nodes_pw=np.asarray(nodes)[None])


def coupled(
    graph: CellGraph,
    geometry: Geometry,
    single: Waypoints,
    start: Population,
    end: Population,
    *,
    n_paths: int,
    seed: int,
) -> Waypoints:
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
    return Waypoints(ends_pwk=ends_pwk, nodes_pw=nodes_pw)
