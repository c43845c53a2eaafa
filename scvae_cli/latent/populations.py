"""Populations of cells, and the core of each population in latent space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scvae_cli.latent.neighbor_graph import CellGraph
from scvae_cli.model.density import LatentDensity

# Number of neighbors from which the purity of a node is computed; smallest purity of a core node, relative to the
# highest purity in the population.
_PURITY_NEIGHBORS, _PURE = 15, 0.9
# Fraction of held-out cells at a higher density than a node, above which the node is regarded as unusual. A trajectory
# starts at an unusual node only if all nodes of the population are unusual.
_USUAL = 0.9
# Largest number of cells of each population that are always nodes of the neighbor graph.
_ALWAYS_NODES = 500


@dataclass(frozen=True, kw_only=True)
class Population:
    """A group of cells or a single cell: the name that the user typed, and the indices of the cells."""

    label: str
    cells: np.ndarray

    def candidates(self) -> np.ndarray:
        """Return the indices of at most 500 cells of the population, chosen at regular intervals."""
        return self.cells[:: -(-len(self.cells) // _ALWAYS_NODES)]


def core(graph: CellGraph, cells: np.ndarray, usual_m: np.ndarray | None = None) -> np.ndarray:
    """Return the nodes of a population whose neighbors mostly belong to the same population.

    The purity of a node is the fraction of its neighbors that belong to the population. The core contains the nodes
    whose purity is close to the highest purity in the population. Where a small population borders on a large
    population, the density of the cells may be highest at the border, only because cells of the large population are
    near. Cells at the border are not typical of the small population, so the core does not contain them. The mask
    `usual_m`, shape (m,), selects the nodes that may belong to the core. If the mask selects no node of the population,
    the mask is ignored.
    """
    members = graph.nodes_of(cells)
    inside_m = np.zeros(len(graph.cells), dtype=bool)
    inside_m[members] = True
    if usual_m is not None and usual_m[members].any():
        members = members[usual_m[members]]
    purity = inside_m[graph.neighbors_mj[members, :_PURITY_NEIGHBORS]].mean(1)
    chosen: np.ndarray = members[purity >= _PURE * purity.max()]
    return chosen


def unusual(graph: CellGraph, density: LatentDensity) -> np.ndarray:
    """Return a mask of the nodes at an unusually low density, shape (m,)."""
    unusual_m: np.ndarray = density.off_manifold(graph.mean_mk).numpy() > _USUAL
    return unusual_m


def densest(graph: CellGraph, density: LatentDensity, cells: np.ndarray) -> int:
    """Return the node with the highest latent density in the core of a population.

    Nodes at an unusually low density are left out, unless all nodes of the population have an unusually low density.
    """
    nodes = core(graph, cells, ~unusual(graph, density))
    return int(nodes[int(density.log_prob(graph.mean_mk[torch.as_tensor(nodes)]).argmax())])
