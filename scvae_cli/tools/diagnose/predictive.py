"""Posterior predictive check, which compares the zeros and variances of genes between simulated and observed cells.

A replicate is a simulation of all cells. For each cell, a posterior sample is decoded at the cell's own library size
and in its batch, and a count of every gene is drawn from the likelihood. The zeros and variances of the genes
are computed for the observed cells and for every replicate. If the likelihood is well calibrated, the values of the
observed cells lie within the range of the replicates. The posterior samples depend on the observed counts, so simulated
and observed cells agree slightly too well.

Source: Gelman, Meng & Stern 1996.

Letters in array shapes: n cells, g genes, r replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import stdtrit

from scvae_cli.data.counts import Counts
from scvae_cli.latent.count_draws import drawn_counts
from scvae_cli.latent.gene_moments import GeneMoments
from scvae_cli.latent.posteriors import known_batches
from scvae_cli.model.bundle import Model
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent, tracked

Scale = Callable[[np.ndarray], np.ndarray]
N_REPLICATES = 25
# Probability that the observed statistic of a gene lies inside the band of the simulated statistics if the model is
# true.
BAND = 0.99
# Number of cells in which a gene must be detected to be evaluated, on average over the observed cells and the
# replicates.
_MIN_DETECTED = 5
# Fraction of the observed variance that is added to variances of real numbers before the logarithm. A fraction is used
# because the features may have any unit.
_LEAST_VARIANCE = 1e-6
_WORST = 10


@dataclass(frozen=True, kw_only=True)
class GeneStatistic:
    """One statistic of every gene, observed and predicted; arrays of shape (g,).

    Parameters
    ----------
    observed_g, predicted_g
        Statistic of the observed cells, and mean of the statistic over the replicates.
    score_g
        Difference between the observed statistic and the mean over the replicates, divided by the standard deviation
        that this difference has for a perfect model.
    evaluated_g
        Mask of the evaluated genes: for counts, the genes detected in enough cells; for real numbers, the genes that
        vary.
    limit, error_expected
        `limit` is the absolute score that 1% of the genes exceed under a perfect model. `error_expected` is the value
        of `error` that is expected of a perfect model: the mean absolute difference between a new replicate and the
        prediction.
    """

    observed_g: np.ndarray
    predicted_g: np.ndarray
    score_g: np.ndarray
    evaluated_g: np.ndarray
    limit: float
    error_expected: float

    @property
    def n_evaluated(self) -> int:
        """Number of evaluated genes."""
        return int(self.evaluated_g.sum())

    @property
    def outside_g(self) -> np.ndarray:
        """Mask of the evaluated genes with an absolute score above `limit`, shape (g,)."""
        outside_g: np.ndarray = self.evaluated_g & (np.abs(self.score_g) > self.limit)
        return outside_g

    @property
    def outside(self) -> float:
        """Fraction of the evaluated genes with an absolute score above `limit`; 0.01 is expected of a perfect model."""
        return float(self.outside_g.sum() / max(self.n_evaluated, 1))

    @property
    def error(self) -> float:
        """Mean absolute difference between observation and prediction over the evaluated genes."""
        return _mean(np.abs(self.observed_g - self.predicted_g)[self.evaluated_g])

    @property
    def median_ratio(self) -> float:
        """Median ratio of observation to prediction over the evaluated genes."""
        shown_g = self.evaluated_g & (self.predicted_g > 0)
        return float(np.median(self.observed_g[shown_g] / self.predicted_g[shown_g])) if shown_g.any() else float("nan")

    def worst(self, n: int = _WORST) -> np.ndarray:
        """Return the indices of the n evaluated genes with the largest absolute scores, in descending order."""
        order = np.argsort(-np.where(self.evaluated_g, np.abs(self.score_g), -1), kind="stable")
        return order[: min(n, self.n_evaluated)]

    def summary(self) -> dict[str, Any]:
        """Return numbers that summarize the statistic over all evaluated genes."""
        names = ("outside", "error", "error_expected", "median_ratio", "n_evaluated")
        return {name: getattr(self, name) for name in names}

    def values(self, genes: Sequence[str]) -> dict[str, Any]:
        """Return the summary, the genes with the largest scores, and arrays over all genes of the model."""
        worst = self.worst()
        return {
            "observed": self.observed_g,
            "predicted": self.predicted_g,
            "score": self.score_g,
            **self.summary(),
            "worst_genes": np.asarray([genes[g] for g in worst], dtype=object),
            "worst_scores": self.score_g[worst],
        }


@dataclass(frozen=True, kw_only=True)
class PredictiveCheck:
    """Comparison of gene statistics between observed cells and simulated replicates.

    Parameters
    ----------
    genes, mean_g
        Names of the g genes, and their means over the observed cells, shape (g,).
    zeros, variances
        Fraction of cells without a count of the gene, and variance of the gene over the cells. `zeros` is None for real
        numbers. The scores of the variances are computed from the logarithms of the variances.
    """

    genes: tuple[str, ...]
    mean_g: np.ndarray
    zeros: GeneStatistic | None
    variances: GeneStatistic

    def values(self) -> dict[str, Any]:
        """Return the statistics of the genes in a dictionary of numbers and arrays."""
        values: dict[str, Any] = {"genes": np.asarray(self.genes, dtype=object), "mean": self.mean_g}
        if self.zeros is not None:
            values["zeros"] = self.zeros.values(self.genes)
        return values | {"variances": self.variances.values(self.genes)}


def predictive_check(
    model: Model,
    counts: Counts,
    posterior: Posterior,
    *,
    n_replicates: int = N_REPLICATES,
    seed: int = 0,
    progress: Progress = silent,
) -> PredictiveCheck:
    """Compare n observed cells with two or more simulated replicates of the same cells.

    The cells must have the model's genes, and batches if the model has batches. `posterior` must be on the CPU.
    """
    batch_n = known_batches(model, counts)
    library_n = counts.library_n
    noise = torch.Generator().manual_seed(seed)
    seeds = np.random.SeedSequence(seed).spawn(n_replicates)
    replicates = []
    for of_replicate in tracked(seeds, progress, "Simulating replicates", n_replicates):
        z_nk = posterior.sample(torch.randn(posterior.mean_nk.shape, generator=noise))
        moments = GeneMoments(counts.n_genes)
        for block in drawn_counts(model, z_nk, library_n, batch_n, of_replicate):
            moments.add(block)
        replicates.append(moments)
    observed = GeneMoments(counts.n_genes).add(counts.matrix)
    return compare(observed, replicates, model.genes, zeros_are_counts=model.of_counts)


def compare(
    observed: GeneMoments, replicates: list[GeneMoments], genes: tuple[str, ...], *, zeros_are_counts: bool = True
) -> PredictiveCheck:
    """Compare the zero fractions and variances of the genes between observed cells and every replicate."""
    n = observed.n_cells
    variance_rg = np.stack([moments.variance_g for moments in replicates])
    if zeros_are_counts:
        detected_rg = np.stack([1 - moments.zero_g for moments in replicates])
        evaluated_g = n * (detected_rg.mean(0) + 1 - observed.zero_g) / 2 >= _MIN_DETECTED
        # A standard deviation of at least half a cell keeps the score finite for a gene that is detected in every
        # simulated cell.
        zeros = _statistic(observed.zero_g, 1 - detected_rg, evaluated_g, least_sd=0.5 / n, scale=lambda value: value)
        # 1 / n is about the variance of a gene with a single count in n cells; it keeps the logarithm finite.
        least_g = np.full(len(evaluated_g), 1 / n)
    else:
        zeros, evaluated_g = None, observed.varies_g
        # The value 1 keeps the logarithm finite for genes that are not evaluated.
        least_g = np.where(evaluated_g, _LEAST_VARIANCE * observed.variance_g, 1.0)
    variances = _statistic(
        observed.variance_g, variance_rg, evaluated_g, least_sd=1e-6, scale=lambda value: np.log(value + least_g)
    )
    return PredictiveCheck(genes=genes, mean_g=observed.mean_g, zeros=zeros, variances=variances)


def _statistic(
    observed_g: np.ndarray, value_rg: np.ndarray, evaluated_g: np.ndarray, *, least_sd: float, scale: Scale
) -> GeneStatistic:
    n_replicates = len(value_rg)
    scaled_rg, predicted_g = scale(value_rg), value_rg.mean(0)
    sd_g = np.maximum(scaled_rg.std(0, ddof=1), least_sd)
    # The score also includes the standard error of the mean over the replicates.
    widened = np.sqrt(1 + 1 / n_replicates)
    # A replicate is closer to a mean that includes this replicate than a new replicate would be.
    corrected = np.sqrt((n_replicates + 1) / (n_replicates - 1))
    return GeneStatistic(
        observed_g=observed_g,
        predicted_g=predicted_g,
        score_g=(scale(observed_g) - scaled_rg.mean(0)) / (sd_g * widened),
        evaluated_g=evaluated_g,
        limit=float(stdtrit(n_replicates - 1, (1 + BAND) / 2)),
        error_expected=float(corrected) * _mean(np.abs(value_rg - predicted_g).mean(0)[evaluated_g]),
    )


def _mean(value_g: np.ndarray) -> float:
    return float(value_g.mean()) if len(value_g) else float("nan")
