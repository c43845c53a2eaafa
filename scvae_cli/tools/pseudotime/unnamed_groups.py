"""Groups that are not named as ends, but may be fates of their own.

Every cell gets a probability for each of the named ends, even if its type develops into none of these ends. A group of
intermediate cells lies between the root and an end. A group that lies about as far from the root as its most probable
end is more likely a fate of its own, or is not a part of the process. Cells of such a group may be committed to an end,
or uncommitted because no end is near.

Letters in array shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from scvae_cli.latent.fates import AS_FAR
from scvae_cli.tools.pseudotime.result import Pseudotime

_SHOWN = 6


def warning_of_unnamed_groups(result: Pseudotime, group_n: np.ndarray, root: str) -> str | None:
    """Return a warning about groups that lie as far from the root as their most probable end; None if there are none.

    Parameters
    ----------
    group_n
        Group of each cell, a string, or None for a cell without a group.
    root
        The group of the root, or the name of the root cell.
    """
    found = _unnamed(result, group_n, {root, *result.ends})
    if not found:
        return None
    shown = ", ".join(f"{group} ({end})" for group, end in found[:_SHOWN])
    shown += f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return (
        "some groups are not named as ends, but lie as far from the root as the end that is most probable for their "
        f"cells: {shown}. If such a group is a fate of its own, name it with --to. If it is not a part of the process, "
        "leave it out with --subset"
    )


def _unnamed(result: Pseudotime, group_n: np.ndarray, named: Collection[str]) -> list[tuple[str, str]]:
    """Return the groups, each with the end that is most probable for its cells."""
    distance_e = [_median(result.pseudotime_n[group_n == end]) for end in result.ends]
    found = []
    for group in sorted(set(group_n) - {None, *named}):
        inside_n = group_n == group
        e = int(result.probability_ne[inside_n].mean(0).argmax())
        if np.median(result.pseudotime_n[inside_n]) >= AS_FAR * distance_e[e]:
            found.append((group, result.ends[e]))
    return found


def _median(position_n: np.ndarray) -> float:
    """Compute the median; infinity if there are no positions, because the end is a single cell."""
    return float(np.median(position_n)) if len(position_n) else np.inf
