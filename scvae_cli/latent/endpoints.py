"""Where a population ends: the position of its most differentiated cells."""

from __future__ import annotations

import numpy as np
import torch

from scvae_cli.latent.neighbor_graph import CellGraph
from scvae_cli.latent.populations import core, unusual
from scvae_cli.model.density import LatentDensity

# The end lies among this fraction of the core, the nodes farthest from the start. The farthest node of all would often
# be an outlier.
_FARTHEST = 0.2


def extreme(graph: CellGraph, density: LatentDensity, cells: np.ndarray, start: int) -> int:
    """Return the node where a population ends, for a trajectory that comes from the node `start`.

    Cells differentiate away from the start, so the most differentiated cells are those farthest from it. The distance
    is the Fisher–Rao length along the neighbor graph. Of the fifth of the population's core that is farthest from the
    start, the node with the highest latent density is chosen.
    """
    nodes = core(graph, cells, ~unusual(graph, density))
    distance_n = graph.distances([start])[0, nodes]
    nodes = nodes[distance_n >= np.quantile(distance_n, 1 - _FARTHEST)]
    return int(nodes[int(density.log_prob(graph.mean_mk[torch.as_tensor(nodes)]).argmax())])
