"""Checks of the values of classifiers that were read from a model folder.

A model folder may come from a stranger, so its numbers may be finite and still impossible: sizes of billions of cells,
or distances of which the classifiers would compute others. If a check fails, the function raises a ValueError that
describes the fault.

Letters in array shapes: h held-out labeled cells, c labels, k parts of the labeled cells, j coordinates.
"""

from __future__ import annotations

import numpy as np

from scvae_cli.tools.annotate.learning import Learned
from scvae_cli.tools.annotate.novelty import nearest

# Relative tolerance for numbers that were rounded to float32.
_ROUNDING = 1e-5
# Tolerance for distances and log probabilities that are computed again from numbers that were rounded to float32.
_REPEATED = 1e-2
# Smallest log probability of a label that a regression on real cells can give.
_LEAST_LOG_P = -1e6


def check_values(learned: Learned, n_cells: int) -> None:
    """Check that sizes, weights, distances and probabilities are possible and agree with each other.

    `n_cells` is the number of cells of the training.
    """
    size_c, code_h, weight_h = learned.size_c, learned.code_h, learned.weight_h
    if size_c.min() < 1 or size_c.sum() > n_cells * (1 + _ROUNDING):
        raise ValueError(f"size_c has more labeled cells than the training has cells ({n_cells:,}), or none of a label")
    if learned.n_trained > size_c.sum():
        raise ValueError("n_trained is larger than the number of labeled cells")
    if (weight_h < 1 - _ROUNDING).any() or (weight_h > size_c[code_h] * (1 + _ROUNDING)).any():
        raise ValueError("weight_h is below 1, or larger than the number of cells of a label")
    if learned.log_p_vhc.min() < _LEAST_LOG_P:
        raise ValueError("log_p_vhc is out of range")
    with np.errstate(all="ignore"):  # products of extreme numbers are not finite, and differ from the stored numbers
        for part, metric in enumerate(learned.metrics_k):
            if not metric.factor_jj.any():
                raise ValueError("factor_kjj is zero, so all distances would be zero")
            mine_h = learned.part_h == part
            state_hj = learned.state_hj[mine_h]
            log_p_hc = learned.regressions_kv[part][0].log_probabilities(state_hj)
            if not _same(nearest(state_hj, metric), learned.nearest_h[mine_h]):
                raise ValueError("nearest_h does not agree with factor_kjj, center_kcj and state_hj")
            if not _same(np.exp(log_p_hc), np.exp(learned.log_p_vhc[0, mine_h])):
                raise ValueError("log_p_vhc does not agree with the coefficients of the decoded states")


def _same(computed: np.ndarray, stored: np.ndarray) -> bool:
    return bool(np.allclose(computed, stored, rtol=_REPEATED, atol=_REPEATED))
