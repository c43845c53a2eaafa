"""The result of a test whether a perturbation changes any gene, and the verdict.

The test is computed in `label_permutation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# A change is detected if the p-value, multiplied by the number of labels that are tested, is at most this.
LEVEL = 0.01
# Probability that any of the genes counted as changed is unchanged.
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
        Number of genes that the shared change reaches. The probability that any of these genes is unchanged is at most
        0.05.
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
