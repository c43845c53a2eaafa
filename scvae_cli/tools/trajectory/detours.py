"""Four signs that a trajectory is implausible.

A trajectory is implausible if it returns to an earlier state, has a gap without cells, passes groups beyond its end, or
goes back along a known order of the cells.

Letters in array shapes: n cells, t steps, g genes, j nearest cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist

from scvae_cli.latent.selection import even

# A trajectory returns if the distance between two steps is below the fraction `_BACK` of the excursion between the two
# steps, and if the excursion is at least the fraction `_FAR` of the length of the trajectory. A circular trajectory
# thus returns, and a gently bent trajectory does not.
_BACK, _FAR = 0.5, 0.1
# A trajectory goes back along an order of the cells if its end, or some step between its ends, is earlier in the order
# than the start by at least this fraction of the order. A step between the ends must also be earlier than the end.
_GOES_BACK = 0.1
# Largest number of steps that are compared with each other; the computation time grows with the cube of this number.
_MOST_STEPS = 100
# A gap is reported if it is at least this fraction of the trajectory.
_EMPTY = 0.2


def returning_steps(y_tg: np.ndarray) -> tuple[int, int, int] | None:
    """Find the longest excursion of a trajectory that comes back to where it began.

    `y_tg` are the Fisher–Rao coordinates of the decoded steps. Returns three steps: where the excursion begins, where
    it is farthest, and where it has come back. Returns None if no excursion comes back. The distance of a step is
    measured from the beginning or the end of the excursion, whichever is nearer. If there are very many steps, only
    some are compared, at regular intervals.

    >>> there_and_back = np.array([[0.0], [1], [2], [3], [2], [1], [0.1]])
    >>> returning_steps(there_and_back), returning_steps(there_and_back[:4])
    ((0, 3, 6), None)
    """
    compared = even(np.arange(len(y_tg)), _MOST_STEPS)
    y_tg = y_tg[compared]
    distance_tt = cdist(y_tg, y_tg)
    least = _FAR * float(np.diagonal(distance_tt, 1).sum())
    found = None
    for begin in range(len(y_tg)):
        for end in range(begin + 2, len(y_tg)):
            away = np.minimum(distance_tt[begin, begin + 1 : end], distance_tt[begin + 1 : end, end])
            farthest = int(away.argmax())
            if away[farthest] > least and distance_tt[begin, end] < _BACK * away[farthest]:
                least, found = float(away[farthest]), (begin, begin + 1 + farthest, end)
    if found is None:
        return None
    begin, farthest, end = compared[list(found)].tolist()
    return begin, farthest, end


def empty_steps(position_n: np.ndarray, n_steps: int) -> tuple[int, int] | None:
    """Find the longest part of a trajectory without cells (a gap), and return its first and last step.

    `position_n` holds the positions, from 0 to 1, of the cells that belong to the trajectory. Returns None if the
    longest gap is short.

    >>> empty_steps(np.array([0.0, 0.1, 0.2, 0.6, 0.7, 0.8, 0.9]), 51), empty_steps(np.linspace(0, 1, 20), 51)
    ((11, 29), None)
    """
    sorted_n = np.sort(np.concatenate([[0.0], position_n, [1.0]]))
    gap_n = np.diff(sorted_n)
    longest = int(gap_n.argmax())
    if gap_n[longest] < _EMPTY:
        return None
    # The gap consists of the steps strictly between the two cells at its edges; rounding must not exclude a step.
    first, last = sorted_n[longest] * (n_steps - 1), sorted_n[longest + 1] * (n_steps - 1)
    steps = np.arange(int(np.floor(first + 1e-9)) + 1, int(np.ceil(last - 1e-9)))
    return (int(steps[0]), int(steps[-1])) if len(steps) else None


def groups_beyond(passed: Sequence[str], end: str, groups_n: np.ndarray, time_n: np.ndarray) -> tuple[str, ...]:
    """Find the groups that a trajectory passes although they are farther from the start than the end is.

    A developing cell does not pass its fate and then return. A group that is farther from the start than the end
    therefore belongs to another branch. Groups are compared by the median of `time_n`, the distance of the cells from
    the start along the order of the cells. `time_n` is NaN for cells without a known distance.

    >>> groups_n = np.array(["stem", "a", "a", "sister", "sister", "end"], dtype=object)
    >>> time_n = np.array([0.0, 0.5, 0.4, 1.0, 0.9, 0.8])
    >>> groups_beyond(["stem", "a", "sister", "end"], "end", groups_n, time_n)
    ('sister',)
    """

    def median(group: str) -> float:
        known_n = (groups_n == group) & np.isfinite(time_n)
        return float(np.median(time_n[known_n])) if known_n.any() else -np.inf

    return tuple(group for group in dict.fromkeys(passed) if group != end and median(group) > median(end))


def earliest_step(nearest_tj: np.ndarray, time_n: np.ndarray) -> int | None:
    """Find the step up to which a trajectory goes back along an order of the cells.

    `time_n` is the position of each cell in the order, from 0 to 1; the position of a step is the mean over its nearest
    cells. If the trajectory first goes back and then forward, the result is the step at which it turns. If the
    trajectory ends earlier in the order than it starts, the result is the last step. Returns None if the trajectory
    does not go back.

    >>> earliest_step(np.arange(5)[:, None], np.array([0.9, 0.5, 0.2, 0.6, 1.0]))
    2
    >>> earliest_step(np.arange(5)[:, None], np.array([0.9, 0.6, 0.3, 0.2, 0.25]))
    4
    >>> earliest_step(np.arange(5)[:, None], np.array([0.2, 0.15, 0.3, 0.6, 1.0]))
    """
    time_t = time_n[nearest_tj].mean(1)
    earliest = int(time_t.argmin())
    if min(time_t[0], time_t[-1]) - time_t[earliest] >= _GOES_BACK:
        return earliest
    return len(time_t) - 1 if time_t[0] - time_t[-1] >= _GOES_BACK else None
