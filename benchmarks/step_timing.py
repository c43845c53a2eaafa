"""Steady training speed from the times of single steps, for either tool."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median


@dataclass(kw_only=True)
class EpochTimes:
    """One epoch: when it began, and when each of its steps was done, with the step's number of cells."""

    began: float
    ends: list[float] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)


def cells_per_second(epochs: list[EpochTimes]) -> dict[str, float | list[float]]:
    """Speed within the epochs after the first.

    Returns
    -------
    `cells_per_s`, the median over epochs of the cells between the end of the first and of the last step, by the seconds
    in between; `epochs_cells_per_s`, the single epochs; and `with_first_step`, the median over epochs of all the cells
    by the seconds from the epoch's beginning, in which what is prepared for a whole epoch counts as well.

    >>> slow = EpochTimes(began=0.0, ends=[9.0, 20.0], cells=[10, 10])
    >>> fast = EpochTimes(began=20.0, ends=[21.5, 22.0, 22.5], cells=[10, 10, 5])
    >>> cells_per_second([slow, fast])
    {'cells_per_s': 15.0, 'epochs_cells_per_s': [15.0], 'with_first_step': 10.0}
    """
    steady = epochs[1:]
    between = [sum(e.cells[1:]) / (e.ends[-1] - e.ends[0]) for e in steady]
    whole = [sum(e.cells) / (e.ends[-1] - e.began) for e in steady]
    return {
        "cells_per_s": round(median(between), 1),
        "epochs_cells_per_s": [round(speed, 1) for speed in between],
        "with_first_step": round(median(whole), 1),
    }
