"""The order of the cells, and the slots of an AnnData to which the order is written.

Letters in array shapes: n cells, e ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames, slug
from scvae_cli.latent.gaps import LongestStep
from scvae_cli.tools.pseudotime.options import UNCOMMITTED

# A warning is given if more than this fraction of the cells are uncommitted, that is, have no clear fate.
_MOSTLY = 0.9
# A warning is given if more than this fraction of the cells of the root group are committed to an end.
_ROOT_COMMITTED = 0.25
# A warning is given if the number of cells of other groups that are committed to an end is at most this fraction of the
# number of committed cells of the end. In simulated trees without missing cells, the fraction was at least 0.06.
_FEW_BEFORE = 0.02
# A warning names at most this number of groups that may be ends.
_SHOWN = 6


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
        Order of the cells from 0 to 1, shape (n,): the length of the shortest path from the root in diffusion
        coordinates of expression space, divided by the largest length.
    distance_n
        Mean length of the shortest paths from the cells in `root_cells`, shape (n,). One unit of distance is the
        standard deviation of a single count around its expected value; for real numbers, it is the standard deviation
        of the noise.
    probability_ne
        Probability that a cell develops into each end, shape (n, e); rows sum to 1.
    branch_n
        For each cell, the label of its most probable end; "uncommitted" if the probability of this end is less than 0.5
        or less than twice the probability of another end. If there are no ends, all labels are "". Shape (n,).
    root_share_apart, end_shares_apart
        Share of the cells of the root, and of each end, that lie in another cloud than the cells that represent the
        root or the end.
    longest_steps
        The longest step from cell to cell on the way from the root to each end.
    unnamed
        Groups that may be ends although they are not named, each with the named end that is most probable for its
        cells.
    n_committed_outside
        For each end, the number of cells of other groups that are committed to the end.
    root_branches
        Number of cells of the root group in each branch, as in `branch_sizes`. Empty without ends, or if the root is a
        single cell.
    n_components
        Number of connected components of the graph that joins neighboring cells in expression space.
    """

    __repr__ = brief

    name: str
    root: str
    ends: tuple[str, ...]
    root_cells: tuple[str, ...]
    end_cells: tuple[tuple[str, ...], ...]
    pseudotime_n: np.ndarray
    distance_n: np.ndarray
    probability_ne: np.ndarray
    branch_n: np.ndarray
    root_share_apart: float
    end_shares_apart: tuple[float, ...]
    longest_steps: tuple[LongestStep, ...]
    unnamed: tuple[tuple[str, str], ...]
    n_committed_outside: tuple[int, ...]
    root_branches: dict[str, int]
    n_components: int

    def branch_sizes(self) -> dict[str, int]:
        """Count the cells of each branch: first "uncommitted", then the ends. Without ends, the result is empty."""
        return sizes_of(self.branch_n, self.ends)

    def warnings(self) -> list[str]:
        """Return warnings about disconnected cells, and about fates that are unreliable."""
        found = []
        if self.n_components > 1:
            found.append(
                f"the neighbor graph has {self.n_components} disconnected components; no cells lie between them, so "
                "the order and the fates across these gaps are uncertain: remove groups that do not belong to the "
                "process"
            )
        sizes = self.branch_sizes()
        n_uncommitted = sizes.pop(UNCOMMITTED, 0)
        if n_uncommitted > _MOSTLY * len(self.branch_n):
            found.append(
                f"{n_uncommitted:,} of {len(self.branch_n):,} cells are uncommitted: the ends are hardly "
                "distinguishable; name ends that differ in expression"
            )
        empty = [repr(end) for end, size in sizes.items() if size == 0]
        if empty:
            found.append(
                f"no cell is committed to {', '.join(empty)}: the cells of this end lie among those of another end"
            )
        alone = [
            f"{end!r} ({n_outside:,})"
            for end, n_outside in zip(self.ends, self.n_committed_outside, strict=True)
            if sizes[end] and n_outside <= _FEW_BEFORE * (sizes[end] - n_outside)
        ]
        if alone:
            found.append(
                f"hardly any cell of another group is committed to {' or '.join(alone)}: intermediate cells are "
                "uncommitted, develop into another end, or are missing in the data"
            )
        return [
            *found,
            *self._warning_of_gaps(),
            *self._warning_of_clouds(),
            *self._warning_of_root(),
            *self._warning_of_unnamed(),
        ]

    def _warning_of_gaps(self) -> list[str]:
        """Warn of ends that are separated from the root by a gap without cells."""
        gaps = [
            f"{end!r} ({step.described()})"
            for end, step in zip(self.ends, self.longest_steps, strict=True)
            if step.is_gap
        ]
        if not gaps:
            return []
        return [
            f"there is a gap without cells on the way from {self.root!r} to {', '.join(gaps)}: the order across the "
            "gap and the fates before it are uncertain, and progenitors of this end may be committed to another end; "
            "with --subset, include the groups between them, or leave out groups that do not belong to the process"
        ]

    def _warning_of_clouds(self) -> list[str]:
        """Warn of a root or an end that consists of two clouds."""
        populations = zip((self.root, *self.ends), (self.root_share_apart, *self.end_shares_apart), strict=True)
        apart = [f"{share:.0%} of the cells of {label!r}" for label, share in populations if share > 0]
        if not apart:
            return []
        return [
            f"{', '.join(apart)} lie in another cloud than the cells that represent the group: the group may consist "
            "of several cell types; divide the group, and name the right part with --root, or each part with --to"
        ]

    def _warning_of_unnamed(self) -> list[str]:
        """Warn of groups that may be ends although they are not named."""
        if not self.unnamed:
            return []
        shown = ", ".join(f"{group} ({end})" for group, end in self.unnamed[:_SHOWN])
        shown += f", and {len(self.unnamed) - _SHOWN} more" if len(self.unnamed) > _SHOWN else ""
        return [
            "some groups are not named as ends, but the order seems to end there, or they lie as far from the root as "
            f"the end that is most probable for their cells: {shown}. If such a group is a fate of its own, name it "
            "with --to. If it is not a part of the process, leave it out with --subset"
        ]

    def _warning_of_root(self) -> list[str]:
        """Warn of a root whose cells are committed. With one end, all cells are committed to it."""
        n_cells = sum(self.root_branches.values())
        sizes = {end: n for end, n in self.root_branches.items() if n and end != UNCOMMITTED}
        n_committed = sum(sizes.values())
        if len(self.ends) < 2 or n_committed <= _ROOT_COMMITTED * n_cells:
            return []
        named = ", ".join(f"{n:,} to {end!r}" for end, n in sorted(sizes.items(), key=lambda size: -size[1]))
        return [
            f"{n_committed:,} of {n_cells:,} cells of the root {self.root!r} are committed to an end ({named}): "
            "the root should contain the uncommitted cells from which all ends develop; choose an earlier group as the "
            "root, or divide the group"
        ]

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        slots = [
            Slot(group="obs", key=names.pseudotime(self.name), value=self.pseudotime_n),
            Slot(group="obs", key=names.root_distance(self.name), value=self.distance_n),
        ]
        if self.ends:
            # pandas is imported only here, because it is slow to import and an order without ends does not need it
            import pandas as pd

            branches = pd.Categorical(self.branch_n, categories=[UNCOMMITTED, *self.ends])
            slots += [
                Slot(group="obs", key=names.branch(self.name), value=branches),
                Slot(group="obsm", key=names.end_weights(self.name), value=self.probability_ne.astype(np.float32)),
            ]
        return slots


def sizes_of(branch_n: np.ndarray, ends: Sequence[str]) -> dict[str, int]:
    """Count the cells of each branch: first "uncommitted", then the ends. Without ends, the result is empty.

    >>> sizes_of(np.array(["b", "uncommitted", "b"]), ["a", "b"])
    {'uncommitted': 1, 'a': 0, 'b': 2}
    """
    return {branch: int((branch_n == branch).sum()) for branch in ((UNCOMMITTED, *ends) if ends else ())}


def default_name(root: str) -> str:
    """Make the name of an order from the label of its root.

    >>> default_name("CD34+ HSC")
    'from_CD34_HSC'
    """
    return f"from_{slug(root)}"
