"""The two groups of cells that are compared, and how large groups are subsampled.

Letters in array shapes: n cells of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.errors import DataError
from scvae_cli.tools.de.options import MIN_CELLS

# Name of the reference that consists of all other cells, as in scanpy.
REST = "rest"
# Largest number of replicates per group. The sums of more replicates would need too much memory, and data with more
# donors are rare.
MAX_REPLICATES = 500


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A group and a reference group in a column of obs, and the indices of the cells of both groups.

    The group and the reference have at least three cells each. The reference "rest" consists of all other cells.

    Parameters
    ----------
    groupby, group, reference
        Column of obs, and labels of the group and of the reference in this column.
    group_cells, reference_cells
        Indices of the cells of the group, and of the reference.
    replicate_key, replicate_n
        Column of obs with the replicates, and the replicate of every cell of the data (None for a cell without a
        replicate). `replicate_key` and `replicate_n` are None if cells are compared.

    Raises
    ------
    DataError
        If the group or the reference has too few cells or replicates, or too many replicates.
    """

    groupby: str
    group: str
    reference: str
    group_cells: np.ndarray
    reference_cells: np.ndarray
    replicate_key: str | None = None
    replicate_n: np.ndarray | None = None

    def __post_init__(self) -> None:
        sides = ((self.group, self.group_cells), (self.reference, self.reference_cells))
        for name, cells in sides:
            if len(cells) < MIN_CELLS:
                raise DataError(
                    f"{name!r} of obs[{self.groupby!r}] has {amount(len(cells), 'cell')} to compare",
                    f"a group needs at least {MIN_CELLS} cells; merge groups, or choose other groups",
                )
        if self.replicate_n is None:
            return
        for name, cells in sides:
            labels = set(self.replicate_n[cells]) - {None}
            if len(labels) < 2:
                only = f" ({next(iter(labels))!r})" if labels else ""
                raise DataError(
                    f"{name!r} of obs[{self.groupby!r}] has {amount(len(labels), 'replicate')} in "
                    f"obs[{self.replicate_key!r}]{only}, but at least 2 per group are needed to estimate the "
                    "spread between replicates",
                    "without --replicate-key, cells are compared, and differences between these replicates are "
                    "reported as differences between the groups",
                )
            if len(labels) > MAX_REPLICATES:
                raise DataError(
                    f"{name!r} of obs[{self.groupby!r}] has {len(labels):,} replicates in "
                    f"obs[{self.replicate_key!r}], but at most {MAX_REPLICATES} can be compared",
                    "--replicate-key takes a column of donors, animals or other samples, not of single cells",
                )

    @property
    def cells(self) -> np.ndarray:
        """Indices of the cells of both groups."""
        return np.concatenate([self.group_cells, self.reference_cells])

    def drawn(self, max_cells: int, seed: int) -> Contrast:
        """Return the contrast with at most `max_cells` random cells per group.

        If replicates are compared, cells without a replicate are left out. More cells are dropped from large replicates
        than from small replicates, so that no replicate is lost.
        """
        cells = (self._drawn(part, max_cells, seed) for part in (self.group_cells, self.reference_cells))
        group_cells, reference_cells = cells
        return replace(self, group_cells=group_cells, reference_cells=reference_cells)

    def _drawn(self, cells: np.ndarray, max_cells: int, seed: int) -> np.ndarray:
        if self.replicate_n is not None:
            cells = cells[np.asarray([label is not None for label in self.replicate_n[cells]])]
        if len(cells) <= max_cells:
            return cells
        random = np.random.default_rng(seed)
        if self.replicate_n is None:
            return np.sort(random.choice(cells, max_cells, replace=False))
        shuffled = random.permutation(cells)
        _, replicate = np.unique(self.replicate_n[shuffled].astype(str), return_inverse=True)
        # Take the first cell of every replicate, then the second cell of every replicate, and so on, up to `max_cells`
        # cells.
        rank = np.empty(len(shuffled), dtype=np.int64)
        for one in range(replicate.max() + 1):
            rank[replicate == one] = np.arange((replicate == one).sum())
        return np.sort(shuffled[np.argsort(rank, kind="stable")[:max_cells]])
