"""What each gene does along a walk.

Changes are measured in the Fisher–Rao coordinate y = 2√θ·asinh(√(μ/θ)), whose unit is the standard deviation of a
count: a change of 2 is as plain for a rare gene as for a common one.

Shapes: t steps, g genes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DIRECTIONS = ("up", "down", "peak", "dip")
# A gene that ends where it started, but for this share of its range, has a peak or a dip instead of a direction.
_RETURNED = 0.5


@dataclass(frozen=True, kw_only=True)
class GeneChanges:
    """Summary of every gene, each of shape (g,).

    Parameters
    ----------
    effect_g
        Range of the gene along the walk, standard deviations of a count.
    net_g
        Its value at the end minus that at the start, the same unit.
    direction_g
        "up" or "down"; "peak" or "dip" for one that mostly returns.
    monotonicity_g
        |net| over the sum of all changes, both ways: 1 for a gene that never turns.
    switch_g
        Step at which it has made half its change; of a peak or dip, the step of its extreme.
    """

    effect_g: np.ndarray
    net_g: np.ndarray
    direction_g: np.ndarray
    monotonicity_g: np.ndarray
    switch_g: np.ndarray


def gene_changes(y_tg: np.ndarray) -> GeneChanges:
    """Summarise coordinates along a walk.

    >>> y = np.array([[0.0, 1, 0], [0, 1, 2], [1, 0, 2.5], [1, 0, 0]])
    >>> changes = gene_changes(y)
    >>> changes.direction_g.tolist(), changes.switch_g.tolist(), changes.monotonicity_g.tolist()
    (['up', 'down', 'peak'], [2, 2, 2], [1.0, 1.0, 0.0])
    """
    y_tg = np.asarray(y_tg, dtype=np.float64)
    low_g, high_g = y_tg.min(0), y_tg.max(0)
    effect_g, net_g = high_g - low_g, y_tg[-1] - y_tg[0]
    travelled_g = np.abs(np.diff(y_tg, axis=0)).sum(0)
    # The crossing of the half-way level nearest the start is the switch, whichever way the gene goes.
    above_tg = y_tg > (low_g + high_g) / 2
    switch_g = (above_tg != above_tg[0]).argmax(0)
    returned_g = np.abs(net_g) < _RETURNED * effect_g
    base_g = (y_tg[0] + y_tg[-1]) / 2
    peak_g = high_g - base_g >= base_g - low_g
    turned_g = np.where(peak_g, y_tg.argmax(0), y_tg.argmin(0))
    return GeneChanges(
        effect_g=effect_g,
        net_g=net_g,
        direction_g=np.where(returned_g, np.where(peak_g, "peak", "dip"), np.where(net_g >= 0, "up", "down")).astype(
            object
        ),
        monotonicity_g=np.abs(net_g) / np.maximum(travelled_g, 1e-12),
        switch_g=np.where(returned_g, turned_g, switch_g),
    )
