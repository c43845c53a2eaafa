"""Labels of a column that are probably mistakes, such as "B cell" and "b cell " for the same cells.

Such labels are used as they are, because no program can know which labels are meant to differ. A warning names them.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable

from scvae_cli.amounts import amount
from scvae_cli.errors import ScvaeWarning

_SHOWN = 3
# Texts of infinite numbers, which are no names of groups, in lower case.
_INFINITE = frozenset(("inf", "-inf", "+inf", "infinity", "-infinity"))


def alike(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the labels that differ only by case or by spaces, as sorted tuples of two or more labels.

    >>> alike(["B", "b ", "T", "NK cell", "NK  cell", "NK-cell"])
    [('B', 'b '), ('NK  cell', 'NK cell')]
    """
    by_text = defaultdict(set)
    for label in labels:
        # The form NFKC replaces characters that look alike, such as no-break spaces and wide letters.
        by_text[" ".join(unicodedata.normalize("NFKC", label).casefold().split())].add(label)
    return sorted(tuple(sorted(same)) for same in by_text.values() if len(same) > 1)


def warn_of_doubtful(title: str, key: str, labels: Iterable[str | None]) -> None:
    """Warn of labels of the column `key` of obs that are probably mistakes; `labels` has the label of every cell."""
    sizes = Counter(label for label in labels if label is not None)

    def shown(label: str) -> str:
        return f"{label!r} ({amount(sizes[label], 'cell')})"

    pairs = alike(label for label in sizes if label.strip())
    if pairs:
        named = "; ".join(" and ".join(map(shown, same)) for same in pairs[:_SHOWN])
        named += f"; and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
        message = (
            f"{title}: labels in obs[{key!r}] that differ only by case or spaces are taken as different labels: "
            f"{named}: if they mean the same, give them one name before the analysis"
        )
        warnings.warn(ScvaeWarning(message), stacklevel=3)
    infinite = [label for label in sizes if label.strip().casefold() in _INFINITE]
    if infinite:
        message = (
            f"{title}: obs[{key!r}] has infinite numbers as labels: {', '.join(map(shown, infinite))}: if these cells "
            "have no label, make them missing values"
        )
        warnings.warn(ScvaeWarning(message), stacklevel=3)
