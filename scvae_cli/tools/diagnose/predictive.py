"""Would cells decoded where these cells are have their genes' zeros and variances? A posterior predictive check.

Replicates are drawn as the model says the cells came about: of every cell a posterior sample, decoded at the cell's own
depth and in its batch, and a count from the likelihood for every gene. Whatever is computed of the cells is computed of
every replicate, and where the cells stand among the replicates says how calibrated the likelihood is. Cells that told
the encoder where they lie agree a little better than new ones would.

Source: Gelman, Meng & Stern 1996.

Shapes: n cells, g genes, r replicates.
"""

from __future__ import annotations

from collections.abc import Callable
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

N_REPLICATES = 25
# What a band covers.
BAND = 0.99
# A gene seen in fewer cells, on the average of cells and replicates, has no variance to speak of.
_MIN_SEEN = 5
# What is added to variances of real numbers, which may have any unit, as a share of the observed one.
_LEAST_VARIANCE = 1e-6
# Likelihoods under which a zero is a count of zero.
_OF_COUNTS = ("zinb", "nb", "poisson")
_WORST = 10


@dataclass(frozen=True, kw_only=True)
class GeneStatistic:
    """A number of every gene, observed and predicted; shape (g,) each.

    Parameters
    ----------
    observed_g, predicted_g
        Of the cells, and the mean of the replicates.
    score_g
        How far the observed one is from the replicates' mean, in standard errors of a replicate.
    judged_g
        Genes that are seen often enough to be judged; of real numbers, those that vary.
    limit
        Score of the border of the 99% band.
    error_expected
        Mean distance of a replicate from the prediction, for comparison with `error`.
    """

    observed_g: np.ndarray
    predicted_g: np.ndarray
    score_g: np.ndarray
    judged_g: np.ndarray
    limit: float
    error_expected: float

    @property
    def outside_g(self) -> np.ndarray:
        """Mask of the judged genes outside their band."""
        outside_g: np.ndarray = self.judged_g & (np.abs(self.score_g) > self.limit)
        return outside_g

    @property
    def outside(self) -> float:
        """Their share; 0.01 would be expected of a perfect model."""
        return float(self.outside_g.sum() / max(self.judged_g.sum(), 1))

    @property
    def error(self) -> float:
        """Mean absolute distance of the observed numbers from the predicted ones, over the judged genes."""
        return _mean(np.abs(self.observed_g - self.predicted_g)[self.judged_g])

    @property
    def median_ratio(self) -> float:
        """Of observed over predicted, over the judged genes."""
        seen_g = self.judged_g & (self.predicted_g > 0)
        return float(np.median(self.observed_g[seen_g] / self.predicted_g[seen_g])) if seen_g.any() else float("nan")

    def worst(self, n: int = _WORST) -> np.ndarray:
        """Indices of the judged genes that are most standard errors off."""
        order = np.argsort(-np.where(self.judged_g, np.abs(self.score_g), -1), kind="stable")
        return order[: min(n, int(self.judged_g.sum()))]

    def values(self, genes: tuple[str, ...]) -> dict[str, Any]:
        """Plain numbers, and arrays over all genes of the model."""
        worst = self.worst()
        return {
            "observed": self.observed_g,
            "predicted": self.predicted_g,
            "score": self.score_g,
            "outside": self.outside,
            "error": self.error,
            "error_expected": self.error_expected,
            "median_ratio": self.median_ratio,
            "judged": int(self.judged_g.sum()),
            "worst_genes": np.asarray([genes[g] for g in worst], dtype=object),
            "worst_scores": self.score_g[worst],
        }


@dataclass(frozen=True, kw_only=True)
class PredictiveCheck:
    """How the genes of cells and of replicates compare.

    Parameters
    ----------
    genes
        Their names, g.
    mean_g
        Mean of every gene over the cells.
    zeros
        Shares of cells without a count; None for a likelihood that is not one of counts.
    variances
        Variances over the cells; scored in logarithms.
    """

    genes: tuple[str, ...]
    mean_g: np.ndarray
    zeros: GeneStatistic | None
    variances: GeneStatistic

    def values(self) -> dict[str, Any]:
        """Plain numbers and arrays."""
        values: dict[str, Any] = {"genes": np.asarray(self.genes, dtype=object), "mean": self.mean_g}
        if self.zeros is not None:
            values["zeros"] = self.zeros.values(self.genes)
        return values | {"variances": self.variances.values(self.genes)}


def predictive_check(
    model: Model, counts: Counts, posterior: Posterior, *, n_replicates: int = N_REPLICATES, seed: int = 0
) -> PredictiveCheck:
    """Compare cells with replicates.

    Parameters
    ----------
    model
        Decodes and draws.
    counts
        n cells in the model's genes, with the batches of a model that has them.
    posterior
        Theirs, on the CPU.
    n_replicates
        r, 2 or more.
    seed
        Of everything drawn.
    """
    batch_n = known_batches(model, counts)
    library_n = counts.library_n
    noise = torch.Generator().manual_seed(seed)
    replicates = []
    for of_replicate in np.random.SeedSequence(seed).spawn(n_replicates):
        z_nk = posterior.sample(torch.randn(posterior.mean_nk.shape, generator=noise))
        moments = GeneMoments(counts.n_genes)
        for block in drawn_counts(model, z_nk, library_n, batch_n, of_replicate):
            moments.add(block)
        replicates.append(moments)
    observed = GeneMoments(counts.n_genes).add(counts.matrix)
    return compare(
        observed, replicates, model.genes, zeros_are_counts=model.config.model.likelihood in _OF_COUNTS
    )  # fmt: skip


def compare(
    observed: GeneMoments, replicates: list[GeneMoments], genes: tuple[str, ...], *, zeros_are_counts: bool = True
) -> PredictiveCheck:
    """Where the moments of some cells' genes stand among those of replicates of them."""
    n = observed.n_cells
    variance_rg = np.stack([moments.variance_g for moments in replicates])
    if zeros_are_counts:
        seen_rg = np.stack([1 - moments.zero_g for moments in replicates])
        judged_g = n * (seen_rg.mean(0) + 1 - observed.zero_g) / 2 >= _MIN_SEEN
        # Half a cell keeps the score of a gene finite that every replicate shows in every cell.
        zeros = _statistic(observed.zero_g, 1 - seen_rg, judged_g, least_sd=0.5 / n, scale=lambda value: value)
        # One count in n cells: variances of few large counts spread over orders of magnitude.
        least_g = np.full(len(judged_g), 1 / n)
    else:
        zeros, judged_g = None, observed.varies_g
        # Whatever stands in for the variance of what is not judged, its logarithm is to be finite.
        least_g = np.where(judged_g, _LEAST_VARIANCE * observed.variance_g, 1.0)
    variances = _statistic(
        observed.variance_g, variance_rg, judged_g, least_sd=1e-6, scale=lambda value: np.log(value + least_g)
    )
    return PredictiveCheck(genes=genes, mean_g=observed.mean_g, zeros=zeros, variances=variances)


def _statistic(
    observed_g: np.ndarray,
    value_rg: np.ndarray,
    judged_g: np.ndarray,
    *,
    least_sd: float,
    scale: Callable[[np.ndarray], np.ndarray],
) -> GeneStatistic:
    n_replicates = len(value_rg)
    scaled_rg, predicted_g = scale(value_rg), value_rg.mean(0)
    sd_g = np.maximum(scaled_rg.std(0, ddof=1), least_sd)
    # The mean of the replicates is itself known up to the spread of r of them.
    widened = np.sqrt(1 + 1 / n_replicates)
    # A replicate is nearer to the mean it is part of than another one would be.
    apart = np.sqrt((n_replicates + 1) / (n_replicates - 1))
    return GeneStatistic(
        observed_g=observed_g,
        predicted_g=predicted_g,
        score_g=(scale(observed_g) - scaled_rg.mean(0)) / (sd_g * widened),
        judged_g=judged_g,
        limit=float(stdtrit(n_replicates - 1, (1 + BAND) / 2)),
        error_expected=float(apart) * _mean(np.abs(value_rg - predicted_g).mean(0)[judged_g]),
    )


def _mean(value_g: np.ndarray) -> float:
    return float(value_g.mean()) if len(value_g) else float("nan")
