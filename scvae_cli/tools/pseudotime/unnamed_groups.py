"""Groups that are not named as ends, but may be fates of their own.

Every cell gets a probability for each of the named ends, even if its type develops into none of these ends. A group of
intermediate cells lies between the root and an end. A group that lies about as far from the root as the end itself is
more likely a fate of its own, or is not a part of the process.

Letters in array shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from scvae_cli.latent.fates import AS_FAR
from scvae_cli.tools.pseudotime.result import Pseudotime

_SHOWN = 6


def warning_of_unnamed_groups(result: Pseudotime, group_n: np.ndarray, root: str) -> str | None:
    """Return a warning about groups that are committed to an end but do not precede this end; None if there are none.

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
        "most cells of some groups are committed to an end, although these groups are not named as ends and lie as far "
        f"from the root as this end: {shown}. If such a group is a fate of its own, name it with --to. If it is not a "
        "part of the process, leave it out with --subset"
    )


def _unnamed(result: Pseudotime, group_n: np.ndarray, named: Collection[str]) -> list[tuple[str, str]]:
    """Return the groups, each with the end to which most of its cells are committed."""
    found = []
    for group in sorted(set(group_n) - {None, *named}):
        inside_n = group_n == group
        for end in result.ends:
            committed = np.mean(result.branch_n[inside_n] == end) > 0.5
            at_end = result.pseudotime_n[group_n == end]
            if committed and len(at_end) and np.median(result.pseudotime_n[inside_n]) >= AS_FAR * np.median(at_end):
                found.append((group, end))
    return found
