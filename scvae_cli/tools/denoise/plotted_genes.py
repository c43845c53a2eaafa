"""Choice of a column of obs and of genes for the plot that `denoise` suggests.

Letters in array shapes: n cells, g genes, p groups.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.counts import Counts
from scvae_cli.data.inspection import groupings
from scvae_cli.data.store import CellStore

# Largest number of groups that a plot can show, and largest number of genes in the plot.
_MOST_GROUPS, _MOST_GENES = 40, 6


def plotted_column(store: CellStore, without: Collection[str]) -> str | None:
    """Return the first column of obs with categories, of which each plot has one row; None if there is none."""
    found = groupings(store)
    columns = [key for key, n in found.items() if 2 <= n <= _MOST_GROUPS and key not in without]
    return next((key for key in columns if store.obs_categories(key) is not None), None)


def plotted_genes(counts: Counts, label_n: np.ndarray, genes: Sequence[str]) -> list[str]:
    """Return the genes that distinguish the largest groups, at most one for each group.

    A gene distinguishes a group if its value exceeds the value in all other groups. The values are the square roots of
    the shares of the counts or, for real numbers, the means.
    """
    groups, size_p = np.unique(label_n[label_n != None].astype(str), return_counts=True)  # noqa: E711  # elementwise
    index = {group: p for p, group in enumerate(groups)}
    rows = np.asarray([index.get(label, -1) for label in label_n])
    known = np.flatnonzero(rows >= 0)
    member_pn = sp.csr_matrix((np.ones(len(known)), (rows[known], known)), shape=(len(groups), len(rows)))
    sum_pg = (member_pn @ counts.matrix).toarray().astype(np.float64)
    value_pg = sum_pg / size_p[:, None] if counts.real else np.sqrt(sum_pg / sum_pg.sum(1, keepdims=True))
    chosen = set(genes)
    columns = np.flatnonzero([gene in chosen for gene in counts.gene_names])
    value_pg = value_pg[:, columns]
    found: dict[str, None] = {}
    for p in np.argsort(-size_p, kind="stable"):
        others_g = np.delete(value_pg, p, axis=0).max(0) if len(groups) > 1 else np.zeros(value_pg.shape[1])
        found[str(counts.gene_names[columns[np.argmax(value_pg[p] - others_g)]])] = None
    return list(found)[:_MOST_GENES]
