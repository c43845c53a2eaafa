"""Find cells that fit the model worse than cells that are simulated from the model.

A cell can fit the model badly in two ways: the decoder explains its counts badly, or few training cells lie near its
latent position. A lower bound on log p(x) is the sum of two terms: E_q[log p(x|z)] for the counts, and −KL(q ‖ density)
for the latent position. The symbol q means the posterior of the cell, and "density" means the density of the training
cells in latent space. The two terms are evaluated separately, because the term of the counts varies between cells by
tens of nats by chance. In a sum of the two terms, the term of the counts would hide the term of the position.

How well the decoder explains the counts of a cell depends on the library size and on the state of the cell. Cells with
few counts, and cells of a type that expresses few genes, are easier to explain. Cells are therefore not compared with
all simulated cells directly. Instead, the mean and the standard deviation of each term are learned from the simulated
cells, as functions of library size and batch. The mean and standard deviation of the term of the counts also depend on
the latent position. Each term of a cell is standardized: the term is subtracted from its mean, and the difference is
divided by the standard deviation. The anomaly score of the cell combines the two standardized terms (Stouffer's
method). The p-value of the cell is the share of the simulated cells with the same anomaly score or a higher one.
Because scores are relative to the library size, a cell of any library size can be compared with all simulated cells.
Very small p-values are extrapolated, as for permutation tests with few permutations (Knijnenburg et al. 2009,
doi:10.1093/bioinformatics/btp211). For the extrapolation, a tail distribution is fitted to the excesses of the highest
scores over a threshold. Without extrapolation, no cell could be significant after adjustment for testing many cells.

Letters in array shapes: n cells, k latent dimensions, b batches, f features, m excesses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

_FOLDS = 5
# Weights of the ridge penalties, as numbers of pseudo-observations that do not depend on the features.
_MEAN_RIDGE, _SPREAD_RIDGE = 1.0, 50.0
# Features are clipped at this many standard deviations of the simulated cells, to avoid extrapolation.
_CLIP = 4.0
# Residuals are raised to at least this share of the mean residual, so that logarithms of tiny residuals do not dominate
# the regression.
_SMALLEST = 0.1
# The tail distribution is fitted to this share of the simulated cells: those with the highest scores.
_TAIL = 0.05


@dataclass(frozen=True)
class Covariates:
    """Properties on which the expected fit of a cell may depend: library size, batch and posterior mean.

    `batch_n` holds the index of each cell's batch, or the design matrix of a model with several covariates.

    `mean_nk` is None if the expected fit must not depend on the latent position.
    """

    library_n: np.ndarray
    batch_n: np.ndarray | None
    mean_nk: np.ndarray | None


@dataclass(frozen=True)
class CellFit:
    """Fit of n cells to the model: how well counts are explained, and how common latent positions are.

    The fields are E_q[log p(x|z)] in nats, −KL(q ‖ density) in nats up to a constant, and the covariates including the
    latent positions.
    """

    log_likelihood_n: np.ndarray
    negative_kl_n: np.ndarray
    covariates: Covariates

    @property
    def parts(self) -> list[tuple[np.ndarray, Covariates]]:
        """The fit of the counts and the fit of the latent position, each with covariates.

        The expected fit of the latent position must not depend on the position itself, because otherwise no position
        would be rare.
        """
        without_position = replace(self.covariates, mean_nk=None)
        return [(self.log_likelihood_n, self.covariates), (self.negative_kl_n, without_position)]


@dataclass(frozen=True)
class _Features:
    """Covariates as regression features, standardized by the mean and standard deviation over the simulated cells."""

    center: np.ndarray
    scale: np.ndarray
    n_batches: int

    @classmethod
    def of(cls, covariates: Covariates, n_batches: int) -> _Features:
        raw = cls._raw(covariates)
        spread = raw.std(0)
        return cls(raw.mean(0), np.where(spread > 1e-6, spread, 1.0), n_batches)

    @staticmethod
    def _raw(covariates: Covariates) -> np.ndarray:
        log_library_n, mean_nk = np.log(covariates.library_n), covariates.mean_nk
        return np.column_stack([log_library_n] if mean_nk is None else [log_library_n, mean_nk.astype(np.float64)])

    def __call__(self, covariates: Covariates) -> np.ndarray:
        """Return the features: constant, log library size with its square and cube, position, and batch, shape (n, f).

        The products of latent position and log library size are features, too.
        """
        unit = np.clip((self._raw(covariates) - self.center) / self.scale, -_CLIP, _CLIP)
        library_n1, position_nk = unit[:, :1], unit[:, 1:]
        parts = [np.ones_like(library_n1), library_n1, library_n1**2, library_n1**3]
        parts += [position_nk, position_nk * library_n1]
        if self.n_batches > 1 and covariates.batch_n is not None:
            batch_n = covariates.batch_n
            parts.append(np.eye(self.n_batches)[batch_n] if batch_n.ndim == 1 else np.clip(batch_n, -_CLIP, _CLIP))
        return np.column_stack(parts)


class _Expectation:
    """Mean and log standard deviation of the fit of cells, both linear in the features of the cells."""

    def __init__(self, features_nf: np.ndarray, fit_n: np.ndarray) -> None:
        mean_f = _ridge(features_nf, fit_n, _MEAN_RIDGE)
        residual_n = np.abs(fit_n - features_nf @ mean_f)
        log_residual_n = np.log(np.maximum(residual_n, _SMALLEST * residual_n.mean() + 1e-12))
        log_spread_f = _ridge(features_nf, log_residual_n, _SPREAD_RIDGE)
        # The mean of log residuals is not the log of their standard deviation. A constant is therefore added, so that
        # the scores of the simulated cells have unit variance.
        log_spread_f[0] += 0.5 * np.log(np.mean((residual_n / np.exp(features_nf @ log_spread_f)) ** 2) + 1e-12)
        self.mean_f, self.log_spread_f = mean_f, log_spread_f

    def shortfall(self, features_nf: np.ndarray, fit_n: np.ndarray) -> np.ndarray:
        shortfall_n: np.ndarray = (features_nf @ self.mean_f - fit_n) / np.exp(features_nf @ self.log_spread_f)
        return shortfall_n


class ExpectedFit:
    """The expected fit of a cell with given covariates, learned from simulated cells; a higher fit is better.

    `n_batches` is 0 or 1 for a model without batches. For a model with several covariates, `n_batches` is the number of
    effects of the design plus one.
    """

    def __init__(self, fit_n: np.ndarray, covariates: Covariates, n_batches: int) -> None:
        self._features = _Features.of(covariates, n_batches)
        features_nf = self._features(covariates)
        self._expectation = _Expectation(features_nf, fit_n)
        # Like a real cell, a simulated cell is compared with an expectation learned without this cell
        # (cross-validation).
        self.shortfall_n = np.empty(len(fit_n))
        fold_n = np.arange(len(fit_n)) % _FOLDS
        for fold in range(_FOLDS):
            in_fold = fold_n == fold
            learned = _Expectation(features_nf[~in_fold], fit_n[~in_fold])
            self.shortfall_n[in_fold] = learned.shortfall(features_nf[in_fold], fit_n[in_fold])

    def shortfall(self, fit_n: np.ndarray, covariates: Covariates) -> np.ndarray:
        """Compute by how many standard deviations each cell fits worse than expected, shape (n,)."""
        return self._expectation.shortfall(self._features(covariates), fit_n)


class Calibration:
    """Compares how well cells fit the model with how well simulated cells fit; `ExpectedFit` describes `n_batches`."""

    def __init__(self, simulated: CellFit, n_batches: int) -> None:
        self._expected = [ExpectedFit(fit_n, covariates, n_batches) for fit_n, covariates in simulated.parts]
        self.score_n = _combined([expected.shortfall_n for expected in self._expected])
        self._ascending = np.sort(self.score_n)

    def score(self, cells: CellFit) -> np.ndarray:
        """Compute by how many standard deviations each cell fits worse than expected, shape (n,).

        The score combines the fit of the counts and the fit of the latent position.
        """
        pairs = zip(self._expected, cells.parts, strict=True)
        return _combined([expected.shortfall(*part) for expected, part in pairs])

    def p_value(self, score_n: np.ndarray) -> np.ndarray:
        """Compute the share of the simulated cells with the same score or a higher one, shape (n,).

        Shares above 5% are computed by counting simulated cells, and the cell itself counts as one more simulated cell.
        Smaller shares are computed from the tail distribution that was fitted to the highest scores.
        """
        n_simulated = len(self._ascending)
        below_n = np.searchsorted(self._ascending, score_n, side="left")
        p_n: np.ndarray = (1 + n_simulated - below_n) / (1 + n_simulated)
        highest = self._ascending[-max(1, int(_TAIL * n_simulated)) :]
        tail = ParetoTail.fitted(highest - highest[0])
        excess_n = np.maximum(score_n - highest[0], 0)
        in_tail_p_n = (1 + len(highest)) / (1 + n_simulated) * tail.survival(excess_n)
        return np.where(excess_n > 0, np.maximum(in_tail_p_n, np.finfo(float).tiny), p_n)


@dataclass(frozen=True)
class ParetoTail:
    """A generalized Pareto distribution of excesses over a threshold.

    Shape 0 is an exponential tail, and tails with larger shapes are heavier. Negative shapes are not used, because a
    tail with a negative shape ends at a maximum. The maximum would be estimated from few simulated cells, and a cell
    with a score above the maximum would have a p-value of 0.
    """

    shape: float
    scale: float

    @classmethod
    def fitted(cls, excess_m: np.ndarray) -> ParetoTail:
        """Fit the distribution to ascending excesses by probability-weighted moments.

        Source: Hosking & Wallis 1987, doi:10.1080/00401706.1987.10488243.
        """
        mean = float(excess_m.mean())
        if mean <= 0:
            return cls(0.0, 1e-12)
        weighted = float((excess_m * (1 - (np.arange(len(excess_m)) + 0.65) / len(excess_m))).mean())
        shape = float(np.clip(2 - mean / max(mean - 2 * weighted, 1e-12), 0.0, 0.5))
        return cls(shape, mean * (1 - shape))

    def survival(self, excess_n: np.ndarray) -> np.ndarray:
        """Compute the probability of an excess that is at least as large as each given excess, shape (n,)."""
        if self.shape < 1e-6:
            return np.exp(-excess_n / self.scale)
        survival_n: np.ndarray = (1 + self.shape * excess_n / self.scale) ** (-1 / self.shape)
        return survival_n


def adjusted(p_n: np.ndarray) -> np.ndarray:
    """Adjust p-values after Benjamini and Hochberg (1995), shape (n,).

    If all cells with an adjusted p-value of at most q are called anomalies, the expected share of false anomalies among
    them is at most q.

    >>> adjusted(np.array([0.01, 0.5, 0.02])).tolist()
    [0.03, 0.5, 0.03]
    """
    order = np.argsort(p_n)[::-1]
    ranked_n = p_n[order] * len(p_n) / np.arange(len(p_n), 0, -1)
    adjusted_n = np.empty(len(p_n))
    adjusted_n[order] = np.minimum.accumulate(np.minimum(ranked_n, 1.0))
    return adjusted_n


def _combined(shortfalls_n: list[np.ndarray]) -> np.ndarray:
    """Combine standardized values by Stouffer's method, shape (n,)."""
    combined_n: np.ndarray = np.sum(shortfalls_n, axis=0) / math.sqrt(len(shortfalls_n))
    return combined_n


def _ridge(features_nf: np.ndarray, value_n: np.ndarray, weight: float) -> np.ndarray:
    """Fit least squares with a penalty on all features except the first, which is constant. Shape (f,)."""
    penalty_f = np.full(features_nf.shape[1], weight)
    # A small penalty on the constant keeps the system regular, since the batch indicators add up to the constant.
    penalty_f[0] = 1e-6
    solution: np.ndarray = np.linalg.solve(features_nf.T @ features_nf + np.diag(penalty_f), features_nf.T @ value_n)
    return solution
