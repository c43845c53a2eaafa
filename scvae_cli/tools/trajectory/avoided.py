"""Cells that a trajectory avoids because they develop into another fate.

Letters in array shapes: n points, m nodes of the neighbor graph, s some of the nodes, k latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from scvae_cli.latent.neighbor_graph import CellGraph
from scvae_cli.latent.selection import even
from scvae_cli.model.posterior import Posterior

# Largest number of cells from which the fraction of avoided cells at a position is computed.
_MOST_CELLS = 5000


@dataclass(frozen=True, kw_only=True)
class AvoidedCells:
    """The nodes of a neighbor graph that a trajectory avoids.

    Parameters
    ----------
    avoided_m
        Mask of the nodes that are avoided, shape (m,).
    mean_sk, var_sk, avoided_s
        Posteriors of some of the nodes, at regular intervals, in the coordinates of the networks; 1 for the nodes that
        are avoided, and 0 for the other nodes.
    """

    avoided_m: np.ndarray
    mean_sk: Tensor
    var_sk: Tensor
    avoided_s: Tensor

    @classmethod
    def among(cls, graph: CellGraph, cells: Posterior, avoided_m: np.ndarray) -> AvoidedCells:
        """Make the object from the mask of the nodes that are avoided, shape (m,)."""
        some = even(np.arange(len(avoided_m)), _MOST_CELLS)
        rows = torch.as_tensor(graph.cells[some])
        return cls(
            avoided_m=avoided_m,
            mean_sk=cells.mean_nk[rows],
            var_sk=cells.var_nk[rows],
            avoided_s=torch.as_tensor(avoided_m[some], dtype=cells.mean_nk.dtype),
        )

    def share(self, z_nk: Tensor) -> Tensor:
        """Compute the probability that a cell at a position is one of the avoided cells, shape (n,); differentiable.

        By Bayes' theorem, the probability is the density of the posteriors of the avoided cells, divided by the density
        of the posteriors of all cells.
        """
        precision_sk = 1 / self.var_sk
        constant_s = (self.mean_sk.square() * precision_sk - precision_sk.log()).sum(1)
        squared_ns = z_nk.square() @ precision_sk.T - 2 * z_nk @ (self.mean_sk * precision_sk).T + constant_s
        return torch.softmax(-0.5 * squared_ns, dim=1) @ self.avoided_s

    def to(self, device: torch.device) -> AvoidedCells:
        """Return a copy on another device."""
        mean_sk, var_sk, avoided_s = (part.to(device) for part in (self.mean_sk, self.var_sk, self.avoided_s))
        return AvoidedCells(avoided_m=self.avoided_m, mean_sk=mean_sk, var_sk=var_sk, avoided_s=avoided_s)


def with_long_edges(graph: CellGraph, avoided_m: np.ndarray, factor: float) -> CellGraph:
    """Multiply the lengths of all edges of avoided nodes by a factor. `avoided_m` is the mask of these nodes."""
    edges = graph.lengths.tocoo()
    longer = np.where(avoided_m[edges.row] | avoided_m[edges.col], factor, 1.0)
    return replace(graph, lengths=sp.csr_matrix((edges.data * longer, (edges.row, edges.col)), shape=edges.shape))
