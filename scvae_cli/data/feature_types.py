"""Types of the features of a matrix: genes, antibodies, guides, peaks and others. Only genes are modeled.

The types are those of Cell Ranger, which scanpy stores in var["feature_types"].

Letters in array shapes: f features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scvae_cli.errors import DataError
from scvae_cli.labels import as_label

# Column of var with the type of each feature.
COLUMN = "feature_types"
# Types that are not genes, from the documentation of Cell Ranger and of muon. Features of any other type, such as
# "gene", count as genes, because many tools have their own names for genes.
_OTHERS = {
    "antibody capture", "antigen capture", "crispr guide capture", "custom", "multiplexing capture", "peaks", "peak",
    "chromatin accessibility", "vdj", "vdj-t", "vdj-b", "protein expression",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FeatureTypes:
    """Which features are genes.

    Parameters
    ----------
    are_genes
        Mask of the features that are genes, shape (f,).
    left_out
        Number of features of each type that is not a gene.
    """

    are_genes: np.ndarray
    left_out: dict[str, int]

    @property
    def about(self) -> str | None:
        """Text that lists the types of the features that are left out, or None if all features are genes."""
        return ", ".join(f"{number:,} {kind}" for kind, number in self.left_out.items()) or None


def feature_types(types: Sequence[Any] | np.ndarray, title: str) -> FeatureTypes:
    """Find the genes among features, by the type of each feature. A feature without a type is treated as a gene.

    Raises
    ------
    DataError
        If no feature is a gene. The message names the file `title`.
    """
    labels = [as_label(kind) or "" for kind in types]
    other = {label for label in set(labels) if label.strip().lower() in _OTHERS}
    are_genes = np.asarray([label not in other for label in labels], dtype=bool)
    left_out = dict(Counter(label for label in labels if label in other).most_common())
    found = FeatureTypes(are_genes=are_genes, left_out=left_out)
    if len(are_genes) and not are_genes.any():
        raise DataError(
            f"{title}: none of its features is a gene; left out: {found.about}",
            "scvae models the counts of genes; use the matrix of gene expression of the same cells",
        )
    return found
