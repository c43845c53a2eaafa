"""The order of the cells, and the slots of an AnnData to which the order is written.

Shapes: n cells, e ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames, slug
from scvae_cli.tools.pseudotime.options import SHARED


@dataclass(frozen=True, kw_only=True)
class Pseudotime:
    """The order of the cells.

    Parameters
    ----------
    name, root, ends
        Name of the result, label of the root, and labels of the ends. The root is where the order begins, and the ends
        are groups where the order may end.
    root_cells, end_cells
        Names of the cells that represent the root, and of the cells that represent each end.
    pseudotime_n
        Smoothed distance from the root, divided by the largest such distance: 0 to 1. Shape (n,).
    distance_n
        Mean length of the shortest paths from the cells in `root_cells`, shape (n,). One unit is the standard deviation
        of a single count around its expected value; for real numbers, it is the standard deviation of the noise.
    weight_ne
        Weight of each end for each cell, shape (n, e); rows sum to 1. The detour of a cell to an end is the additional
        length of the path from the root to the end if the path passes the cell. The weight is proportional to
        exp(−detour/usual detour). The usual detour is the median over the cells of the smallest detour of a cell.
    branch_n
        For each cell, the label of the end whose weight is at least 0.8; "shared" if all weights are smaller. If there
        are no ends, all labels are "". Shape (n,).
    n_components
        Number of connected components of the graph that joins neighboring cells in latent space.
    """

    __repr__ = brief

    name: str
    root: str
    ends: tuple[str, ...]
    root_cells: tuple[str, ...]
    end_cells: tuple[tuple[str, ...], ...]
    pseudotime_n: np.ndarray
    distance_n: np.ndarray
    weight_ne: np.ndarray
    branch_n: np.ndarray
    n_components: int

    def branch_sizes(self) -> dict[str, int]:
        """Count the cells of each branch: first "shared", then the ends. The result is empty if there are no ends."""
        return {branch: int((self.branch_n == branch).sum()) for branch in ((SHARED, *self.ends) if self.ends else ())}

    def warning(self) -> str | None:
        """Return a warning if the neighbor graph is disconnected; None otherwise."""
        if self.n_components == 1:
            return None
        return (
            f"the neighbor graph has {self.n_components} disconnected components; no cells lie between them, so the "
            "order across these gaps is uncertain: remove groups that do not belong to the process"
        )

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        slots = [
            Slot(group="obs", key=names.pseudotime(self.name), value=self.pseudotime_n),
            Slot(group="obs", key=names.root_distance(self.name), value=self.distance_n),
        ]
        if self.ends:
            import pandas as pd  # only here: it takes time to import, and an order without ends does not need it

            branches = pd.Categorical(self.branch_n, categories=[SHARED, *self.ends])
            slots += [
                Slot(group="obs", key=names.branch(self.name), value=branches),
                Slot(group="obsm", key=names.end_weights(self.name), value=self.weight_ne.astype(np.float32)),
            ]
        return slots


def default_name(root: str) -> str:
    """Make the name of an order from the label of its root.

    >>> default_name("CD34+ HSC")
    'from_CD34_HSC'
    """
    return f"from_{slug(root)}"
