"""Changes of each gene along a trajectory.

Changes are measured in the Fisher–Rao coordinate y = 2√θ·asinh(√(μ/θ)) of the expected count μ, where θ is the inverse
dispersion. One unit of y is the standard deviation of a single count around its expected value. Changes of rare and of
highly expressed genes can therefore be compared.

Letters in array shapes: t steps, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A gene whose net change is less than this fraction of its range has a peak or a dip instead of a direction.
_RETURNED = 0.5


@dataclass(frozen=True, kw_only=True)
class GeneChanges:
    """Summary of the changes of every gene. All arrays have shape (g,).

    Parameters
    ----------
    effect_g, net_g
        The effect is the highest minus the lowest value along the trajectory. The net change is the value at the end
        minus the value at the start. Effect and net change are differences of the Fisher–Rao coordinate y.
    direction_g
        "up" or "down" if the absolute net change is at least half of the effect, and otherwise "peak" or "dip".
    monotonicity_g
        |net change| divided by the sum of the absolute changes between consecutive steps. A gene that only increases or
        only decreases has the value 1.
    switch_g
        For a gene with direction "up" or "down", the first step beyond the midpoint between the lowest and the highest
        value. For a "peak", the step with the highest value; for a "dip", the step with the lowest value.
    """

    effect_g: np.ndarray
    net_g: np.ndarray
    direction_g: np.ndarray
    monotonicity_g: np.ndarray
    switch_g: np.ndarray


def gene_changes(y_tg: np.ndarray) -> GeneChanges:
    """Summarize the changes of Fisher–Rao coordinates along a trajectory.

    >>> y = np.array([[0.0, 1, 0], [0, 1, 2], [1, 0, 2.5], [1, 0, 0]])
    >>> changes = gene_changes(y)
    >>> changes.direction_g.tolist(), changes.switch_g.tolist(), changes.monotonicity_g.tolist()
    (['up', 'down', 'peak'], [2, 2, 2], [1.0, 1.0, 0.0])
    """
    y_tg = np.asarray(y_tg, dtype=np.float64)
    low_g, high_g = y_tg.min(0), y_tg.max(0)
    effect_g, net_g = high_g - low_g, y_tg[-1] - y_tg[0]
    total_g = np.abs(np.diff(y_tg, axis=0)).sum(0)
    # The first crossing of the middle of the range is the switch, for increasing and decreasing genes alike.
    above_tg = y_tg > (low_g + high_g) / 2
    switch_g = (above_tg != above_tg[0]).argmax(0)
    returned_g = np.abs(net_g) < _RETURNED * effect_g
    base_g = (y_tg[0] + y_tg[-1]) / 2
    peak_g = high_g - base_g >= base_g - low_g
    extreme_g = np.where(peak_g, y_tg.argmax(0), y_tg.argmin(0))
    direction_g = np.where(returned_g, np.where(peak_g, "peak", "dip"), np.where(net_g >= 0, "up", "down"))
    return GeneChanges(
        effect_g=effect_g,
        net_g=net_g,
        direction_g=direction_g.astype(object),
        monotonicity_g=np.abs(net_g) / np.maximum(total_g, 1e-12),
        switch_g=np.where(returned_g, extreme_g, switch_g),
    )
