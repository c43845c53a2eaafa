"""Warnings about covariates that are confounded with other columns of obs, or with each other.

The decoder adds the effects of several covariates. For example, if all cells of lane 1 come from donor A, the data
determine only the sum of the effects of lane 1 and donor A.

Letters in array shapes: n cells, q batch keys, v continuous keys.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np

from scvae_cli.config import DataConfig
from scvae_cli.data.confounding import HINT, among_numbers, among_values, confounded_columns, confounding_message
from scvae_cli.data.counts import Counts
from scvae_cli.data.covariates import CellCovariates
from scvae_cli.data.store import CellStore

# Above this correlation, the effects of two continuous keys can hardly be distinguished.
_CORRELATED = 0.95


def warn_of_confounding(store: CellStore, counts: Counts, data: DataConfig, warn: Callable[[str], None]) -> None:
    """Warn before a training if covariates are confounded with columns of obs, or with each other.

    No warning is given for a column that divides the batches into smaller groups, as samples divide donors. Columns
    that divide the batches into smaller groups are reported by `scvae check`.
    """
    library_n = None if counts.real else counts.library_n
    keys = (*data.batch_keys, *data.continuous_keys)
    for q, key in enumerate(data.batch_keys):
        batch_n = counts.batch if counts.covariates is None else counts.covariates.category_nq[:, q]
        if batch_n is None:
            continue
        found = confounded_columns(store, batch_n, key, library_n=library_n, without=keys)
        found = [one for one in found if one.relation != "one_batch_per_value"]
        if found:
            warn(f"{confounding_message(key, found)}; {HINT}")
    if counts.covariates is not None:
        for message, hint in confounded_keys(counts.covariates):
            warn(f"{message}; {hint}")


def confounded_keys(covariates: CellCovariates) -> list[tuple[str, str]]:
    """Find covariates that have no effect, or whose effects cannot be distinguished.

    The result contains a message and a hint for each problem that was found.
    """
    keys, numbers = covariates.batch_keys, covariates.continuous_keys
    code_nq = np.empty(covariates.category_nq.shape, dtype=np.int64)
    for q, category_n in enumerate(covariates.category_nq.T):
        code_nq[:, q] = np.unique(category_n.astype(str), return_inverse=True)[1]
    found = []
    for q, key in enumerate(keys):
        if code_nq[:, q].max(initial=0) == 0:
            found.append((f"obs[{key!r}] has only one value", f"remove --batch-key {key}: it has no effect"))
    for i, j in combinations(range(len(keys)), 2):
        if min(code_nq[:, i].max(initial=0), code_nq[:, j].max(initial=0)) > 0:
            found += _between_batches(keys[i], keys[j], code_nq[:, i], code_nq[:, j])
    for v, number in enumerate(numbers):
        for q, key in enumerate(keys):
            one = among_numbers(number, code_nq[:, q], covariates.value_nv[:, v], None)
            if one is not None:
                found.append(
                    (
                        f"{int(100 * one.share)}% of the variance of continuous key {number!r} is between the "
                        f"categories of batch key {key!r}",
                        "the two effects can hardly be distinguished; one of the two keys is enough to correct both",
                    )
                )
    for i, j in combinations(range(len(numbers)), 2):
        if _correlation(covariates.value_nv[:, i], covariates.value_nv[:, j]) > _CORRELATED:
            found.append(
                (
                    f"continuous keys {numbers[i]!r} and {numbers[j]!r} are nearly proportional",
                    "the two effects can hardly be distinguished; name only one of the two keys",
                )
            )
    return found


def _between_batches(first: str, second: str, code_n: np.ndarray, other_n: np.ndarray) -> list[tuple[str, str]]:
    n_joint = len(np.unique(np.column_stack([code_n, other_n]), axis=0))
    inside = [len(np.unique(codes_n)) == n_joint for codes_n in (code_n, other_n)]
    if all(inside):
        same = f"batch keys {first!r} and {second!r} divide the cells in the same way"
        return [(same, "name only one of the two keys: the result is the same")]
    for (inner, outer), nested in zip(((first, second), (second, first)), inside, strict=True):
        if nested:
            return [
                (
                    f"batch key {inner!r} is nested in {outer!r}: all cells of a {inner} have the same {outer}",
                    f"both effects are corrected, but only their sum is known; with --batch-as, name a {inner}, which "
                    f"also fixes the {outer}",
                )
            ]
    for (inner, outer), pair in zip(
        ((first, second), (second, first)), ((code_n, other_n), (other_n, code_n)), strict=True
    ):
        one = among_values(outer, *pair)
        if one is not None and one.relation == "one_value_per_batch":
            return [
                (
                    f"batch key {inner!r} is nearly nested in {outer!r}: nearly all cells of a {inner} have the same "
                    f"{outer}",
                    "the two effects can hardly be distinguished; their sum is corrected",
                )
            ]
    return []


def _correlation(first_n: np.ndarray, second_n: np.ndarray) -> float:
    centered = [value_n - value_n.mean() for value_n in (first_n, second_n)]
    scale = float(np.linalg.norm(centered[0]) * np.linalg.norm(centered[1]))
    return abs(float(centered[0] @ centered[1])) / scale if scale > 0 else 0.0
