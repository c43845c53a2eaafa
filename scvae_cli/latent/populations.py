"""Populations of cells, and where in latent space each of them is at home."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scvae_cli.latent.neighbor_graph import CellGraph
from scvae_cli.model.density import LatentDensity

# Neighbours whose labels say how much a place belongs to a population, and how nearly the purest a place must be.
_PURITY_NEIGHBOURS, _PURE = 15, 0.9
# A walk does not start where more than this share of held-out cells lies in denser places, if it can be helped.
_USUAL = 0.9
# Cells of each population that are always nodes of the graph.
_ALWAYS_NODES = 500


@dataclass(frozen=True, kw_only=True)
class Population:
    """Cells that go by one name: a group, or a single cell.

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
