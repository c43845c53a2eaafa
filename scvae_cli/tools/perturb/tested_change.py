"""Result of the test whether a perturbation changes any gene, and whether a change counts as detected.

The test is computed in `label_permutation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# A change is detected if the p-value, multiplied by the number of labels that are tested, is at most this value.
LEVEL = 0.01
# Family-wise error: probability that any unchanged gene is counted as changed.
GENE_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Result of the test for one label: p-values, and the number of changed genes.

    Parameters
    ----------
    label
        Label of the treated cells.
    p, group_p
        p-value of the change that the groups share, and p-value of the change in each group.
    n_changed
        Number of genes that change significantly in the average over the groups. The probability that any unchanged
        gene is counted is at most 0.05 (family-wise error).
    """

    label: str
    p: float
    group_p: dict[str, float]
    n_changed: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def any_changed(tests: Sequence[Tested]) -> bool:
    """Whether a change was detected under any of the labels."""
    return any(test.p * len(tests) <= LEVEL for test in tests)
