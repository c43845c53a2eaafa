"""Choice of the cells of a population that represent the end of a branch or of a trajectory.

Letters in array shapes: n nodes of a population's core, p nodes of a population, d coordinates.
"""

from __future__ import annotations

import numpy as np
import torch

from scvae_cli.latent.neighbor_graph import CellGraph
from scvae_cli.latent.populations import core, unusual
from scvae_cli.model.density import LatentDensity

# Number of nodes of a population's core divided by the number of nodes that represent the population.
_REPRESENTED = 10
# Fraction of a population's core, farthest from the start, from which the end of a trajectory is chosen. The single
# farthest node would often be an outlier.
_FARTHEST = 0.2


def standing(kind: str, time_p: np.ndarray, log_density_p: np.ndarray, position_pd: np.ndarray) -> np.ndarray:
    """Rank the nodes of one population from 0 to 1. The node with rank 1 represents the end of a trajectory best.

    Parameters
    ----------
    kind
        Which cells represent the end best. "extreme": the cells farthest along the order. "density": the cells at the
        highest latent density. "centroid": the cells nearest to the mean position.
    time_p, log_density_p, position_pd
        Position in the order, log density of cells, and position in expression space of each node.

    >>> standing("extreme", np.array([0.2, 0.9, 0.5]), np.zeros(3), np.zeros((3, 1)))
    array([0. , 1. , 0.5])
    """
    quality_p = {
        "extreme": time_p,
        "density": log_density_p,
        "centroid": -np.linalg.norm(position_pd - position_pd.mean(0), axis=1),
    }[kind]
    if len(quality_p) == 1:
        return np.ones(1)
    rank_p: np.ndarray = np.argsort(np.argsort(quality_p, kind="stable"), kind="stable") / (len(quality_p) - 1)
    return rank_p


def best(nodes: np.ndarray, quality_p: np.ndarray) -> np.ndarray:
    """Choose the 10% of the nodes that have the highest quality, but at least one node."""
    order = np.argsort(-quality_p, kind="stable")
    top: np.ndarray = nodes[order[: max(1, len(nodes) // _REPRESENTED)]]
    return top


def extreme(graph: CellGraph, density: LatentDensity, cells: np.ndarray, start: int) -> int:
    """Return the node of a population at which a trajectory from the node `start` ends.

    Cells differentiate away from the start, so the cells farthest from the start are the most differentiated cells.
    Distances are Fisher–Rao lengths along the neighbor graph. Among the 20% of the nodes that are farthest from the
    start, the node with the highest latent density is chosen.
    """
    nodes = core(graph, cells, ~unusual(graph, density))
    distance_n = graph.distances([start])[0, nodes]
    nodes = nodes[distance_n >= np.quantile(distance_n, 1 - _FARTHEST)]
    return int(nodes[int(density.log_prob(graph.mean_mk[torch.as_tensor(nodes)]).argmax())])
