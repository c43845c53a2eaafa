"""Mean expression of a group of cells: the expected mean, corrected by the group's own counts.

For the genes of a model, the decoder predicts the expected counts. Decoded means alone are biased, because a decoder
smooths: it spreads the change of some genes over genes that do not change. The bias of the decoder is the same in all
cells, so averaging over more cells does not reduce the bias. Correcting each cell by its own counts does not help,
because a single count of a gene with low dispersion hardly changes the decoder's estimate. The decoded mean R of a
group is therefore multiplied by a correction C, which is computed from the counts of the whole group together. Cell n
has the library size ℓ_n and, for each gene, the observed count x_n and the expected count m_n. The expected count
includes zero inflation. The mean of a gene is computed as follows:

    mean of the group  =  R · C,    R = Σ v_n m_n / ℓ_n,    C = (κ + E·X/M) / (κ + E),

    X = Σ a_n x_n,    M = Σ a_n m_n,    a_n = v_n · m_n / Var(x_n),    E = M² / Σ a_n² m_n.

The correction C is a posterior mean in a Gamma–Poisson model. C is a weighted average of two numbers: the ratio X/M of
observed to expected counts, and the number 1 (no correction). The ratio X/M has the weight E, the expected number of
counts in the group, and the number 1 has the weight κ = 1. The weights a_n of the cells are statistically efficient, so
cells with large libraries have larger weights. The share v_n of a cell is its weight in the decoded mean R; the shares
of all cells of a group sum to 1. The shares of the cells of one batch sum to the same number in both groups. The effect
of a batch on a gene is therefore the same in both groups, even if the decoder does not model this effect.

The formulas also hold for genes that the model lacks. The expected count of a gene that the model lacks is the cell's
library size times the gene's share of the counts of all compared cells. For a gene that the model lacks, R is therefore
the same in both groups, and only C describes the change.

The standard error of the log of R · C describes the random sampling of cells within each batch. The standard error is
estimated from the spread of the cells within each batch, and is at least the error that the model's count distribution
implies.

In this module, a sample consists of the cells of a group in one batch. If replicates are compared, a sample consists of
the cells of one replicate in one group. The sums R, X and M are computed for each sample, with shares v_n that sum to 1
in each sample. The sums of a group are the averages of the samples' sums, weighted by the shares of the samples.

Letters in array shapes: n cells, g genes, s samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import polygamma

from scvae_cli.progress import Advance
from scvae_cli.tools.de.cell_blocks import ExpectedCounts

# The weight κ of the decoder, in counts. With κ = 1, a gene without counts in a group still has a mean above 0, and
# almost every gene is corrected by its counts.
PRIOR_COUNTS = 1.0


class SampleSums(NamedTuple):
    """The sums of one sample, with shares v_n = 1/n. The last axis of each array holds the g genes.

    Parameters
    ----------
    n_cells
        Number of cells n.
    sum_3g
        The sums R, X and M of the module's formulas.
    variance_33g
        Covariances of the sums R, X and M, estimated for random samples of n cells; None if the sample has a single
        cell.
    poisson_g, model_g
        The sums Σ a_n² m_n and Σ a_n² Var(x_n).
    raw_g
        Mean over the cells of a cell's count divided by its library size.
    n_counts_g
        Total counts of each gene in the sample.
    """

    n_cells: int
    sum_3g: np.ndarray
    variance_33g: np.ndarray | None
    poisson_g: np.ndarray
    model_g: np.ndarray
    raw_g: np.ndarray
    n_counts_g: np.ndarray

    def with_genes_of(self, other: SampleSums) -> SampleSums:
        """Append the sums of other genes, computed for the same cells."""
        joined: list[Any] = [
            None if mine is None else np.concatenate([mine, theirs], axis=-1)
            for mine, theirs in zip(self[1:], other[1:], strict=True)
        ]
        return SampleSums(self.n_cells, *joined)


class GroupMean(NamedTuple):
    """Mean expression of one group. All arrays have shape (g,).

    Parameters
    ----------
    log_mean_g, variance_g
        Natural log of the gene's mean share of a cell's counts, and the squared standard error of this log. The mean
        share is R · C in the formulas of this module.
    raw_g
        The gene's count divided by the library size, averaged over the cells without use of the model. The batches have
        the same weights as in `log_mean_g`.
    n_counts_g
        Total counts of each gene in the group.
    """

    log_mean_g: np.ndarray
    variance_g: np.ndarray
    raw_g: np.ndarray
    n_counts_g: np.ndarray


def sample_sums(source: ExpectedCounts, rows: np.ndarray, advance: Advance) -> SampleSums:
    """Compute the sums of one sample.

    Parameters
    ----------
    source
        Counts and expected counts of the cells.
    rows
        Indices of the sample's cells.
    advance
        Function that is called after each block of cells, with the number of cells in the block.
    """
    n = len(rows)
    sum_3g, product_33g = np.zeros((3, source.n_genes)), np.zeros((3, 3, source.n_genes))
    poisson_g, model_g, raw_g, n_counts_g = np.zeros((4, source.n_genes))
    for x_ng, library_n, expected_ng, excess_ng in source.blocks(rows):
        library_n1 = library_n[:, None]
        a_ng = 1 / (n * (1 + expected_ng * excess_ng))
        part_3ng = np.stack([expected_ng / (n * library_n1), a_ng * x_ng, a_ng * expected_ng])
        sum_3g += part_3ng.sum(1)
        product_33g += np.einsum("ing,jng->ijg", part_3ng, part_3ng)
        poisson_g += (a_ng**2 * expected_ng).sum(0)
        model_g += (a_ng**2 * expected_ng * (1 + expected_ng * excess_ng)).sum(0)
        raw_g += (x_ng / library_n1).sum(0) / n
        n_counts_g += x_ng.sum(0)
        advance(len(x_ng))
    variance_33g = (product_33g - sum_3g[:, None] * sum_3g / n) * (n / (n - 1)) if n > 1 else None
    return SampleSums(n, sum_3g, variance_33g, poisson_g, model_g, raw_g, n_counts_g)


def group_mean(samples: Sequence[SampleSums], share_s: np.ndarray) -> GroupMean:
    """Estimate the mean expression of a group, and the error that comes from the sampling of cells.

    Parameters
    ----------
    samples, share_s
        Sums of the group's cells in each batch, and weights of the batches, which sum to 1. Each batch must have at
        least two cells of the group.
    """
    pairs = list(zip(samples, share_s, strict=True))
    r_g, counted_g, predicted_g = sum(share * sample.sum_3g for sample, share in pairs)
    poisson_g = sum(share**2 * sample.poisson_g for sample, share in pairs)
    model_g = sum(share**2 * sample.model_g for sample, share in pairs)
    factor_g, counts_weight_g = correction(counted_g / predicted_g, predicted_g**2 / poisson_g)
    # Gradient of log(R · C) with respect to the sums R, X and M (delta method).
    gradient_3g = np.stack([1 / r_g, counts_weight_g / (factor_g * predicted_g), -counts_weight_g / predicted_g])
    # The variances are taken around the means of each batch, because each batch is a separate sample.
    variance_33g = sum(share**2 * sample.variance_33g for sample, share in pairs if sample.variance_33g is not None)
    spread_g = np.einsum("ig,ijg,jg->g", gradient_3g, variance_33g, gradient_3g)
    return GroupMean(
        log_mean_g=np.log(r_g * factor_g),
        variance_g=np.maximum(spread_g, least_variance(predicted_g / model_g * counted_g)),
        raw_g=sum(share * sample.raw_g for sample, share in pairs),
        n_counts_g=np.sum([sample.n_counts_g for sample, _ in pairs], axis=0),
    )


def correction(ratio_g: np.ndarray, expected_counts_g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the correction C, and the weight of the ratio X/M in C. `expected_counts_g` is E in the formulas."""
    weight_g = expected_counts_g / (PRIOR_COUNTS + expected_counts_g)
    return 1 + weight_g * (ratio_g - 1), weight_g


def least_variance(effective_counts_g: np.ndarray) -> np.ndarray:
    """Compute the variance of the log of a mean count, caused by the sampling of molecules alone, shape (g,).

    The variance is computed for a Gamma distribution, whose shape is κ plus the effective number of counts.
    """
    least_g: np.ndarray = polygamma(1, PRIOR_COUNTS + effective_counts_g)
    return least_g
