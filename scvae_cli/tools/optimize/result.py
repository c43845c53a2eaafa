"""An optimized trajectory with the score of every step, and the slots of an AnnData that contain the result.

Letters in array shapes: t steps, f genes of the file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.tools.optimize.gradient_ascent import MAX_LENGTH, MAXIMUM
from scvae_cli.tools.trajectory.result import Trajectory

# A decrease of the score is reported if it is larger than this fraction of the total increase of the score.
_REPORTED_DECREASE = 0.05
# A warning about a local maximum is given if less than this fraction of the cells has a lower score.
_HIGH = 0.99


class Start(NamedTuple):
    """A start of gradient ascent: name and score of the cell, and the score at the end of gradient ascent."""

    cell: str
    score: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """A trajectory along which a score increases.

    Parameters
    ----------
    toward, away
        Genes to increase and genes to decrease. If the score is a function, `toward` contains the name of the function.
    score_t
        Score of every step. The score of a gene program is in standard deviations over the cells. If `toward` is a
        function, the score is the value of the function.
    best_score, best_cell
        Highest score of all cells, and the name of the cell with this score. Cells are scored at their posterior means.
    share_below
        Fraction of the cells whose score is lower than the score of the last step.
    stopped
        Why the trajectory ends: "maximum", "max_length" or "max_steps" (see `Ascent`).
    through_cells
        Whether gradient ascent from the start ended at a lower maximum, so that the trajectory leads through cells to a
        higher one.
    starts
        Cells from which the score was increased. The trajectory starts at the first of these cells.
    """

    __repr__ = brief

    trajectory: Trajectory
    toward: tuple[str, ...]
    away: tuple[str, ...]
    score_t: np.ndarray
    best_score: float
    best_cell: str
    share_below: float
    stopped: str
    through_cells: bool
    starts: tuple[Start, ...]

    @property
    def extrapolated_from(self) -> int | None:
        """Index of the first extrapolated step; None if no step is extrapolated.

        From the first extrapolated step to the end of the trajectory, all scores are higher than the score of any cell.
        """
        lower_t = np.flatnonzero(self.score_t <= self.best_score)
        first = int(lower_t[-1]) + 1 if len(lower_t) else 0
        return first if first < len(self.score_t) else None

    @property
    def decrease(self) -> float:
        """Largest decrease of the score from a step to a later step; 0 if the score never decreases."""
        return float((np.maximum.accumulate(self.score_t) - self.score_t).max())

    def warnings(self) -> list[str]:
        """Say where the result must not be trusted, and whether higher scores exist."""
        texts, last = [], len(self.score_t) - 1
        if (first := self.extrapolated_from) is not None:
            texts.append(
                f"steps {first}–{last} of 0–{last} are extrapolated: their scores are higher than the score of every "
                f"cell (end {self.score_t[-1]:.3g}, best cell {self.best_score:.3g}), so no cell confirms the "
                "expression decoded at these steps"
            )
        texts += self.trajectory.warnings()
        if self.stopped == MAXIMUM and self.share_below < _HIGH:
            texts.append(
                f"the trajectory ends at a local maximum: {1 - self.share_below:.1%} of the cells have a higher score "
                f"(end {self.score_t[-1]:.3g}, best cell {self.best_cell!r} {self.best_score:.3g}); start elsewhere, "
                "or interpolate to the best cell"
            )
        return texts

    def notes(self) -> list[str]:
        """Say whether the score decreases along the trajectory, and whether `--max-length` ends the trajectory."""
        texts = []
        if self.decrease > _REPORTED_DECREASE * (self.score_t[-1] - self.score_t[0]):
            texts.append(
                f"the score decreases by up to {self.decrease:.3g} on the way to a higher maximum; with --starts 1, "
                "the score only increases, but ends at a lower maximum"
            )
        if self.stopped == MAX_LENGTH:
            texts.append(
                "the trajectory reaches its maximum length while the score still increases; a larger --max-length "
                "extends the trajectory"
            )
        return texts

    def slots(self, names: SlotNames, file_genes: np.ndarray) -> list[Slot]:
        """List the slots of the data to which the trajectory is written. The slot in uns also contains the scores."""
        sides = {"toward": self.toward, "away": self.away}
        facts: dict[str, Any] = {side: np.asarray(genes, dtype=object) for side, genes in sides.items() if genes}
        facts |= {"score": self.score_t, "best_score": self.best_score, "best_cell": self.best_cell}
        facts |= {"share_below": self.share_below, "stopped": self.stopped, "start_cell": self.starts[0].cell}
        facts["through_cells"] = self.through_cells
        if self.extrapolated_from is not None:
            facts["extrapolated_from"] = self.extrapolated_from
        first, *rest = self.trajectory.slots(names, file_genes)
        return [replace(first, value=first.value | facts), *rest]
