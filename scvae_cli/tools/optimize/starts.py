"""Start of an optimization: a cell that is typical of its group.

A typical cell lies where the cells of the group are dense. Cells of other groups have no influence on which cell is
typical. A few cells with a wrong label therefore do not change which cell is typical, even if the wrongly labeled cells
lie among many cells of other groups.

Letters in array shapes: n cells, m cells of the group, k latent dimensions, s starts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scvae_cli.latent.populations import Population

# The density at a cell is measured by the radius of the smallest ball around the cell that contains this fraction of
# the group.
_NEAREST = 0.5


def typical(mean_nk: Tensor, start: Population) -> int:
    """Return the typical cell of a group: the center of the smallest ball that contains half of the group."""
    cells = start.candidates()
    mean_mk = mean_nk[torch.as_tensor(cells)].double()
    place = max(int(np.ceil(_NEAREST * len(cells))), 1)
    radius_m = torch.cdist(mean_mk, mean_mk).kthvalue(place, dim=1).values
    return int(cells[int(radius_m.argmin())])


def spread_out(mean_nk: Tensor, first: int, cells: np.ndarray, n: int) -> list[int]:
    """Choose n cells that are far from each other: first the cell `first`, then the cell farthest from it, and so on.

    Each further cell is the cell with the largest distance from the nearest chosen cell.
    """
    chosen = [first]
    mean_mk = mean_nk[torch.as_tensor(cells)]
    distance_m = (mean_mk - mean_nk[first]).norm(dim=1)
    while len(chosen) < n and (distance_m > 0).any():
        chosen.append(int(cells[int(distance_m.argmax())]))
        distance_m = torch.minimum(distance_m, (mean_mk - mean_nk[chosen[-1]]).norm(dim=1))
    return chosen
