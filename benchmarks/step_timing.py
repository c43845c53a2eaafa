"""Training speed of scvae and scvi-tools, computed from the times of single steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median


@dataclass(kw_only=True)
class EpochTimes:
    """The start time of an epoch, and the end time and the number of cells of each step of the epoch."""

    began: float
    ends: list[float] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)


def cells_per_second(epochs: list[EpochTimes]) -> dict[str, float | list[float]]:
    """Compute the speed within the epochs after the first.

    Returns
    -------
    `cells_per_s` is the median over epochs of the number of cells between the end of the first step and the end of the
    last step, divided by the seconds in between. `epochs_cells_per_s` holds the speeds of the single epochs.
    `with_first_step` is the median over epochs of all cells divided by the seconds from the start of the epoch, which
    include preparations for the whole epoch.

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
