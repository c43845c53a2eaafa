"""What a cell's fit to the model should be, learned from cells the model made up, and how rare a fit as bad is.

A cell can be unlike the model in two ways: its counts are badly explained by its place, or its place is one where the
model has few cells. They are the two halves of a bound, E_q[log p(x|z)] and −KL(q ‖ density), and each is judged by
itself: what the counts of one cell add or take by chance, tens of nats, would drown what a place tells.

How well counts are explained depends on their number, and on where the cell lies: a shallow cell, or one of a kind that
shows few genes, is easier to tell. So a cell is not compared with all simulated cells as they stand: the mean and the
spread of both halves are learned from them as functions of depth and batch, that of the counts as one of the place too,
and what is ranked is the distance from the mean in spreads, the two together. All simulated cells then speak about
every depth, and the p-value is a share of them. Shares too small to be counted are read off a tail fitted to the worst
of them, as is done where permutations are few (Knijnenburg et al. 2009, doi:10.1093/bioinformatics/btp211): without it
no cell among many could ever be told from chance.

Shapes: n cells, k latent dimensions, b batches, f features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

_FOLDS = 5
# Weights of the penalties, as if so many cells had been seen that say nothing depends on anything.
_MEAN_RIDGE, _SPREAD_RIDGE = 1.0, 50.0
# Beyond so many standard deviations of the simulated cells nothing is extrapolated: there a cell is just far out.
_FARTHEST = 4.0
# Residuals below this share of the mean one count as this large, or their logarithms would rule the spread.
_SMALLEST = 0.1
# The worst share of the simulated cells, whose scores the tail is fitted to.
_TAIL = 0.05


@dataclass(frozen=True)
class Circumstances:
    """What a value is allowed to depend on.

    Parameters
    ----------
    library_n
        Counts of each cell, shape (n,).
    batch_n
        Index of each cell's batch, or None.
    mean_nk
        Posterior means, shape (n, k); None for a value that should be the same wherever a cell lies.
    """

    library_n: np.ndarray
    batch_n: np.ndarray | None
    mean_nk: np.ndarray | None


@dataclass(frozen=True)
class CellFit:
    """How well some cells are explained, and how usual their places are.

    Parameters
    ----------
    explained_n
        E_q[log p(x|z)], nats, shape (n,).
    usual_n
        −KL(q ‖ density), nats up to a constant, shape (n,).
    circumstances
        Of these cells, their places among them.
    """

    explained_n: np.ndarray
    usual_n: np.ndarray
    circumstances: Circumstances

    @property
    def halves(self) -> list[tuple[np.ndarray, Circumstances]]:
        """Both values, each with what it may depend on: whether a place is usual cannot be left to the place."""
        anywhere = replace(self.circumstances, mean_nk=None)
        return [(self.explained_n, self.circumstances), (self.usual_n, anywhere)]


@dataclass(frozen=True)
class _Features:
    """Circumstances as numbers, scaled to the simulated cells."""

    centre: np.ndarray
    scale: np.ndarray
    n_batches: int

    @classmethod
    def of(cls, circumstances: Circumstances, n_batches: int) -> _Features:
        raw = cls._raw(circumstances)
        spread = raw.std(0)
        return cls(raw.mean(0), np.where(spread > 1e-6, spread, 1.0), n_batches)

    @staticmethod
    def _raw(circumstances: Circumstances) -> np.ndarray:
        depth_n, mean_nk = np.log(circumstances.library_n), circumstances.mean_nk
        return np.column_stack([depth_n] if mean_nk is None else [depth_n, mean_nk.astype(np.float64)])

    def __call__(self, circumstances: Circumstances) -> np.ndarray:
        """Depth up to its cube, place, their product, and batch; shape (n, f)."""
        unit = np.clip((self._raw(circumstances) - self.centre) / self.scale, -_FARTHEST, _FARTHEST)
        depth_n1, place_nk = unit[:, :1], unit[:, 1:]
        parts = [np.ones_like(depth_n1), depth_n1, depth_n1**2, depth_n1**3, place_nk, place_nk * depth_n1]
        if self.n_batches > 1 and circumstances.batch_n is not None:
            parts.append(np.eye(self.n_batches)[circumstances.batch_n])
        return np.column_stack(parts)


@dataclass(frozen=True)
class _Expectation:
    """Mean and log spread of the fit, linear in the features."""

    mean_f: np.ndarray
    log_spread_f: np.ndarray

    @classmethod
    def learned(cls, features_nf: np.ndarray, value_n: np.ndarray) -> _Expectation:
        mean_f = _ridge(features_nf, value_n, _MEAN_RIDGE)
        rest_n = np.abs(value_n - features_nf @ mean_f)
        log_rest_n = np.log(np.maximum(rest_n, _SMALLEST * rest_n.mean() + 1e-12))
        log_spread_f = _ridge(features_nf, log_rest_n, _SPREAD_RIDGE)
        # In units of a standard deviation.
        log_spread_f[0] += 0.5 * np.log(np.mean((rest_n / np.exp(features_nf @ log_spread_f)) ** 2) + 1e-12)
        return cls(mean_f, log_spread_f)

    def distance(self, features_nf: np.ndarray, value_n: np.ndarray) -> np.ndarray:
        distance_n: np.ndarray = (features_nf @ self.mean_f - value_n) / np.exp(features_nf @ self.log_spread_f)
        return distance_n


class Gauge:
    """Tells how far below what is to be expected a value is.

    Parameters
    ----------
    value_n
        Of simulated cells, high where all is well, shape (n,).
    circumstances
        Of the same cells.
    n_batches
        Batches of the model; 0 or 1 for none.
    """

    def __init__(self, value_n: np.ndarray, circumstances: Circumstances, n_batches: int) -> None:
        self._features = _Features.of(circumstances, n_batches)
        features_nf = self._features(circumstances)
        self._expectation = _Expectation.learned(features_nf, value_n)
        # A simulated cell is judged by an expectation learned without it, as every other cell is.
        self.distance_n = np.empty(len(value_n))
        fold_n = np.arange(len(value_n)) % _FOLDS
        for fold in range(_FOLDS):
            out = fold_n == fold
            learned = _Expectation.learned(features_nf[~out], value_n[~out])
            self.distance_n[out] = learned.distance(features_nf[out], value_n[out])

    def distance(self, value_n: np.ndarray, circumstances: Circumstances) -> np.ndarray:
        """How many standard deviations each value lies below those of its like, shape (n,)."""
        return self._expectation.distance(self._features(circumstances), value_n)


class Calibration:
    """Compares cells with simulated ones.

    Parameters
    ----------
    simulated
        Fit of cells drawn from the model.
    n_batches
        Batches of the model; 0 or 1 for none.
    """

    def __init__(self, simulated: CellFit, n_batches: int) -> None:
        self._gauges = [Gauge(value_n, circumstances, n_batches) for value_n, circumstances in simulated.halves]
        self.score_n = _together([gauge.distance_n for gauge in self._gauges])
        self._ascending = np.sort(self.score_n)

    def score(self, cells: CellFit) -> np.ndarray:
        """How many standard deviations worse than expected of its like each cell is, in both halves; shape (n,)."""
        return _together([gauge.distance(*half) for gauge, half in zip(self._gauges, cells.halves, strict=True)])

    def p_value(self, score_n: np.ndarray) -> np.ndarray:
        """Share of the model's own cells that score as high or higher, shape (n,).

        Down to 5% simulated cells are counted, the cell itself among them; below, the fitted tail speaks.
        """
        n_simulated = len(self._ascending)
        below_n = np.searchsorted(self._ascending, score_n, side="left")
        p_n: np.ndarray = (1 + n_simulated - below_n) / (1 + n_simulated)
        n_tail = max(1, int(_TAIL * n_simulated))
        start = self._ascending[-n_tail]
        beyond_n = np.maximum(score_n - start, 0)
        in_tail_p_n = (1 + n_tail) / (1 + n_simulated) * self._tail.survival(beyond_n)
        return np.where(beyond_n > 0, np.maximum(in_tail_p_n, np.finfo(float).tiny), p_n)

    @property
    def _tail(self) -> ParetoTail:
        worst = self._ascending[-max(1, int(_TAIL * len(self._ascending))) :]
        return ParetoTail.fitted(worst - worst[0])


@dataclass(frozen=True)
class ParetoTail:
    """A generalised Pareto distribution of what exceeds a threshold.

    Parameters
    ----------
    shape
        0 falls off as an exponential, more is heavier; a tail that ends, below 0, is not offered: a cell beyond its
        end would have a p-value of 0 on the word of a few simulated cells.
    scale
        In the unit of the values.
    """

    shape: float
    scale: float

    @classmethod
    def fitted(cls, excess_m: np.ndarray) -> ParetoTail:
        """Fit by probability-weighted moments (Hosking & Wallis 1987, doi:10.1080/00401706.1987.10488243).

        Parameters
        ----------
        excess_m
            How far values lie above the threshold, ascending, shape (m,).
        """
        mean = float(excess_m.mean())
        if mean <= 0:
            return cls(0.0, 1e-12)
        weighted = float((excess_m * (1 - (np.arange(len(excess_m)) + 0.65) / len(excess_m))).mean())
        shape = float(np.clip(2 - mean / max(mean - 2 * weighted, 1e-12), 0.0, 0.5))
        return cls(shape, mean * (1 - shape))

    def survival(self, excess_n: np.ndarray) -> np.ndarray:
        """Probability of as much excess or more, shape (n,)."""
        if self.shape < 1e-6:
            return np.exp(-excess_n / self.scale)
        survival_n: np.ndarray = (1 + self.shape * excess_n / self.scale) ** (-1 / self.shape)
        return survival_n


def adjusted(p_n: np.ndarray) -> np.ndarray:
    """p-values adjusted after Benjamini and Hochberg (1995), shape (n,).

    Calling all cells with an adjusted p-value up to q anomalous keeps the expected share of false calls below q.

    >>> adjusted(np.array([0.01, 0.5, 0.02])).tolist()
    [0.03, 0.5, 0.03]
    """
    order = np.argsort(p_n)[::-1]
    ranked_n = p_n[order] * len(p_n) / np.arange(len(p_n), 0, -1)
    adjusted_n = np.empty(len(p_n))
    adjusted_n[order] = np.minimum.accumulate(np.minimum(ranked_n, 1.0))
    return adjusted_n


def _together(distances_n: list[np.ndarray]) -> np.ndarray:
    """Distances as one, which has the spread of each if they have nothing to do with each other (Stouffer); (n,)."""
    together_n: np.ndarray = np.sum(distances_n, axis=0) / math.sqrt(len(distances_n))
    return together_n


def _ridge(features_nf: np.ndarray, value_n: np.ndarray, weight: float) -> np.ndarray:
    """Least squares with a penalty on all but the first feature, which is constant; shape (f,)."""
    penalty_f = np.full(features_nf.shape[1], weight)
    # A whiff of it keeps the system regular when batches add up to the constant.
    penalty_f[0] = 1e-6
    solution: np.ndarray = np.linalg.solve(features_nf.T @ features_nf + np.diag(penalty_f), features_nf.T @ value_n)
    return solution
