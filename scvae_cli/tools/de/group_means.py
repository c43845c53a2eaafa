"""Mean expression of a group of cells: the decoder's mean, corrected by the group's own counts.

Decoded means alone are biased: a decoder smooths, and spreads the change of some genes over genes that do not change.
This bias is the same in all cells, so averaging over more cells does not reduce it. Correcting each cell by its own
counts does not help: where a gene's dispersion is low, a single count hardly moves the decoder's estimate. So the
decoded mean R is multiplied by a correction C, which is computed from the counts of the whole group together. For one
gene, x_n is the observed count of cell n, m_n is the expected count of this cell, zero inflation included, and ℓ_n is
the library size of this cell:

    mean of the group  =  R · C,    R = Σ v_n m_n / ℓ_n,    C = (κ + E·X/M) / (κ + E),

    X = Σ a_n x_n,    M = Σ a_n m_n,    a_n = v_n · m_n / Var(x_n),    E = M² / Σ a_n² m_n.

C is the posterior mean of the correction in a Gamma–Poisson model. It is a weighted average of X/M, which the counts
suggest, and 1, which means no correction. The weight of X/M is the number E of counts that are expected in the group.
The weight of 1 is κ = 1 count. The weights a_n of the cells are the statistically efficient ones, so cells with large
libraries have larger weights. The shares v_n of all cells of a group sum to 1. The shares of the cells of one batch sum
to the same number in both groups. The effect of a batch on a gene is therefore the same in both groups, even if the
decoder does not model this effect.

The standard error of the log of R · C describes the random sampling of cells within each batch. This error is estimated
from the spread of the cells within each batch, but is never smaller than the error that the model's count distribution
alone implies.

Shapes: n cells, g genes, S batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import polygamma

from scvae_cli.data.minibatches import CellTable, Minibatch
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import CountOutput
from scvae_cli.progress import Advance

# Number of cells in a block. It limits the memory of the float64 arrays of a block: 20 MB each for 20,000 genes.
_BLOCK_CELLS = 128
# κ is one count: a gene without counts in a group still has a mean, and hardly any gene follows the decoder alone.
_DECODER_COUNTS = 1.0
_LEAST_EXPECTED = 1e-10


class GroupMean(NamedTuple):
    """Mean expression of one group. All arrays have shape (g,).

    Parameters
    ----------
    log_mean_g, variance_g
        Natural log of the gene's mean share of a cell's counts, and the squared standard error of this log. The mean
        share is R · C in the formulas of this module.
    raw_g
        The gene's count divided by the library size, averaged over the cells without the model. The batches have the
        same shares as in `log_mean_g`.
    n_counts_g
        Total counts of the group's cells.
    """

    log_mean_g: np.ndarray
    variance_g: np.ndarray
    raw_g: np.ndarray
    n_counts_g: np.ndarray


@torch.inference_mode()
def group_mean(
    model: Model,
    table: CellTable,
    strata: Sequence[np.ndarray],
    share_s: np.ndarray,
    *,
    n_samples: int,
    seed: int,
    advance: Advance,
) -> GroupMean:
    """Estimate the mean expression of a group.

    Parameters
    ----------
    model, table
        A model of counts, and cells. If the model has batches, the batch of every cell must be given.
    strata, share_s
        Indices of the group's cells in each of the S batches, and weights of the batches. Each batch has at least two
        cells of the group. The weights sum to 1.
    n_samples, seed
        Number of posterior samples over which a cell's expected counts are averaged, and the random seed of these
        samples.
    advance
        Called after each block of cells with the number of cells in the block.
    """
    noise = torch.Generator().manual_seed(seed)
    total_3g = np.zeros((3, table.n_genes))
    poisson_g, model_g, raw_g, n_counts_g = np.zeros((4, table.n_genes))
    moments = []
    for rows, share in zip(strata, share_s, strict=True):
        v = share / len(rows)
        sum_3g, product_33g = np.zeros((3, table.n_genes)), np.zeros((3, 3, table.n_genes))
        for start in range(0, len(rows), _BLOCK_CELLS):
            cells = table.take(rows[start : start + _BLOCK_CELLS])
            expected_ng, excess_ng = _expected(model, cells, n_samples, noise)
            x_ng = cells.x_ng.cpu().double().numpy()
            library_n1 = cells.library_n.cpu().double().numpy()[:, None]
            a_ng = v / (1 + expected_ng * excess_ng)
            part_3ng = np.stack([v * expected_ng / library_n1, a_ng * x_ng, a_ng * expected_ng])
            sum_3g += part_3ng.sum(1)
            product_33g += np.einsum("ing,jng->ijg", part_3ng, part_3ng)
            poisson_g += (a_ng**2 * expected_ng).sum(0)
            model_g += (a_ng**2 * expected_ng * (1 + expected_ng * excess_ng)).sum(0)
            raw_g += v * (x_ng / library_n1).sum(0)
            n_counts_g += x_ng.sum(0)
            advance(cells.n_cells)
        total_3g += sum_3g
        # The moments are taken around the means of each batch, because each batch is a separate sample.
        n = len(rows)
        moments.append((product_33g - sum_3g[:, None] * sum_3g / n) * (n / (n - 1)))
    r_g, counted_g, predicted_g = total_3g
    expected_counts_g = predicted_g**2 / poisson_g
    factor_g = (_DECODER_COUNTS + expected_counts_g * counted_g / predicted_g) / (_DECODER_COUNTS + expected_counts_g)
    counts_weight_g = expected_counts_g / (_DECODER_COUNTS + expected_counts_g)
    # Gradient of log(R · C) with respect to the three sums (delta method).
    gradient_3g = np.stack([1 / r_g, counts_weight_g / (factor_g * predicted_g), -counts_weight_g / predicted_g])
    spread_g = np.einsum("ig,ijg,jg->g", gradient_3g, sum(moments), gradient_3g)
    # Variance of the log of a Gamma variable with the effective number of counts of the negative binomial.
    least_g = polygamma(1, _DECODER_COUNTS + predicted_g / model_g * counted_g)
    return GroupMean(
        log_mean_g=np.log(r_g * factor_g), variance_g=np.maximum(spread_g, least_g), raw_g=raw_g, n_counts_g=n_counts_g
    )


def _expected(model: Model, cells: Minibatch, n_samples: int, noise: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Compute the expected counts m and the overdispersion (Var(x) − m) / m² of the counts x.

    Both are float64, of shape (n, g). Zero inflation is included in the expected counts and in the variance.
    """
    posterior = model.vae.encode(cells)
    expected_ng = torch.zeros(cells.n_cells, cells.n_genes, device=model.device)
    inflation_ng = torch.zeros_like(expected_ng)
    dispersion_g = torch.zeros(cells.n_genes, device=model.device)
    for _ in range(n_samples):
        z_nk = posterior.sample(torch.randn(posterior.mean_nk.shape, generator=noise).to(model.device))
        output = model.vae.decode(z_nk, cells.batch_n)
        assert isinstance(output, CountOutput), "models of real numbers are refused before"
        expected_ng += output.mean_ng(cells.library_n, with_zero_inflation=True) / n_samples
        if output.zero_logit_ng is not None:
            inflation_ng += torch.sigmoid(output.zero_logit_ng) / n_samples
        if output.log_theta_g is not None:
            dispersion_g = (-output.log_theta_g).exp()
    excess_ng = (dispersion_g + inflation_ng) / (1 - inflation_ng).clamp(min=1e-6)
    # An expected count that float32 rounds to zero is in fact above zero.
    return expected_ng.clamp(min=_LEAST_EXPECTED).cpu().double().numpy(), excess_ng.cpu().double().numpy()
