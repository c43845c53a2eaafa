"""Waypoints of trajectories: one position for each population, or pairs of cells from optimal transport.

Letters in array shapes: n cells, k latent dimensions, w waypoints, p paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scvae_cli.latent.end_cells import extreme
from scvae_cli.latent.neighbor_graph import CellGraph, coordinates, nearest
from scvae_cli.latent.populations import Population, densest
from scvae_cli.model.density import LatentDensity
from scvae_cli.model.geometry import Geometry

# Maximum number of cells of each population in optimal transport. The cost of optimal transport increases with the
# product of the two numbers of cells.
COUPLED_CELLS = 500


@dataclass(frozen=True, kw_only=True)
class Waypoints:
    """Latent positions of waypoints in the coordinates of the networks, and the graph node nearest to each waypoint."""

    z_pwk: np.ndarray
    nodes_pw: np.ndarray


def positions(
    graph: CellGraph, density: LatentDensity, mean_nk: Tensor, populations: Sequence[Population], endpoint: str
) -> Waypoints:
    """Choose the position of each population, in order, as the waypoints of one path.

    With the endpoint "density", a population is represented by its typical cell with the highest latent density. With
    "centroid", a population is represented by the mean of its cells. With "extreme", the last population is represented
    by a cell among those farthest from the start (`end_cells.extreme`), and every earlier population by its typical
    cell with the highest latent density. The position of a single cell is its posterior mean.
    """
    z, nodes = [], []
    for number, population in enumerate(populations):
        cells = population.cells
        if len(cells) > 1 and endpoint == "centroid":
            center_1k = mean_nk[torch.as_tensor(cells)].mean(0, keepdim=True)
            z.append(center_1k[0].numpy())
            nodes.append(int(nearest(center_1k, graph.mean_mk, 1)[0][0, 0]))
            continue
        if len(cells) == 1:
            node = graph.node_of(cells[0])
        elif endpoint == "extreme" and 0 < number == len(populations) - 1:
            node = extreme(graph, density, cells, nodes[0])
        else:
            node = densest(graph, density, cells)
        z.append(graph.mean_mk[node].numpy())
        nodes.append(node)
    return Waypoints(z_pwk=np.stack(z)[None], nodes_pw=np.asarray(nodes)[None])


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
    """Draw pairs of cells from the first and the last population, as the ends of paths.

    Pairs are drawn from the transport plan that moves one population onto the other with the least sum of squared
    Fisher–Rao distances (Monge–Kantorovich, solved exactly by POT). All paths pass the same intermediate waypoints,
    which `single` contains. A pair is repeated only if the plan has fewer pairs than `n_paths`.
    """
    import ot

    random = np.random.default_rng(seed)
    members = [graph.nodes_of(population.cells) for population in (start, end)]
    members = [random.permutation(nodes)[:COUPLED_CELLS] for nodes in members]
    y_ag, y_bg = (coordinates(geometry, graph.mean_mk[torch.as_tensor(nodes)]).double() for nodes in members)
    plan_ab = ot.emd([], [], torch.cdist(y_ag, y_bg).square().numpy())
    drawn = random.choice(
        plan_ab.size, size=n_paths, replace=n_paths > (plan_ab > 0).sum(), p=plan_ab.ravel() / plan_ab.sum()
    )
    starts, ends = members[0][drawn // plan_ab.shape[1]], members[1][drawn % plan_ab.shape[1]]
    nodes_pw = np.repeat(single.nodes_pw, n_paths, axis=0)
    z_pwk = np.repeat(single.z_pwk, n_paths, axis=0)
    for column, nodes in ((0, starts), (-1, ends)):
        nodes_pw[:, column] = nodes
        z_pwk[:, column] = graph.mean_mk[torch.as_tensor(nodes)].numpy()
    return Waypoints(z_pwk=z_pwk, nodes_pw=nodes_pw)
