"""Mean expression of a group of cells: what the decoder says of its cells, corrected by what was counted.

Decoded means alone will not do. A decoder smooths: it spreads what changes over genes that don't, alike for all cells,
so that no number of cells tells. Nor will it do to weigh in the counts cell by cell: where a gene's dispersion is low,
single counts hardly move what the decoder says. So the counts are weighed in as those of the whole group. With m_n the
count expected of cell n (zero inflation included) and ℓ_n its depth,

    mean of the group  =  R · C,    R = Σ v_n m_n / ℓ_n,    C = (κ + E·X/M) / (κ + E),

    X = Σ a_n x_n,    M = Σ a_n m_n,    a_n = v_n · m_n / Var(x_n),    E = M² / Σ a_n² m_n.

C is a Gamma–Poisson factor as that of a single cell, of a group that E counts were expected of; the decoder itself is
trusted like κ counts. Efficient weights a_n give deep cells their due. v_n are shares of the cells, summing to 1. They
are such that every batch has the same share of both groups: what a batch does to a gene, decoded or not, meets both
alike.

Its error is that of sampling the cells (each batch by itself), told by their spread around R · C, but never less than
that of so many negative binomial counts.

Shapes: n cells, g genes. S batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import polygamma

from scvae_cli.data.minibatches import CellTable, Minibatch
from scvae_cli.model.bundle import Model
from scvae_cli.model.network import CountOutput

# Memory of the moments' float64 blocks, 128 cells × 20,000 genes: 20 MB each.
_BLOCK_CELLS = 128
# κ: one count, so that a gene not seen in a group still has a mean, and hardly any gene follows the decoder alone.
_TRUST = 1.0
_LEAST = 1e-10


@dataclass(frozen=True, kw_only=True)
class GroupMean:
    """Mean expression of one group.

    Parameters
    ----------
    log_mean_g
        log of R · C: the mean share of a cell's counts, natural; shape (g,).
    variance_g
        Its variance; shape (g,).
    raw_g
        Mean of the counts over the depth, with the same shares of the batches and no model; shape (g,).
    n_counts_g
        Counts of the group's cells; shape (g,).
    """

    log_mean_g: np.ndarray
    variance_g: np.ndarray
    raw_g: np.ndarray
    n_counts_g: np.ndarray


@torch.inference_mode()
def group_mean(
    model: Model, table: CellTable, strata: Sequence[np.ndarray], share_s: np.ndarray, *, n_samples: int, seed: int
) -> GroupMean:
    """Estimate the mean expression of a group.

    Parameters
    ----------
    model
        Of counts.
    table
        Cells and, for a model with batches, theirs.
    strata
        The group's cells in each of S batches, at least two each.
    share_s
        What each batch counts, summing to 1; shape (S,).
    n_samples
        Posterior samples that a cell's expected counts are averaged over.
    seed
        Of the samples.
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
        total_3g += sum_3g
        # Around the batch's own means, as its cells were sampled by themselves.
        n = len(rows)
        moments.append((product_33g - sum_3g[:, None] * sum_3g / n) * (n / (n - 1)))
    r_g, counted_g, told_g = total_3g
    expected_counts_g = told_g**2 / poisson_g
    factor_g = (_TRUST + expected_counts_g * counted_g / told_g) / (_TRUST + expected_counts_g)
    kept_g = expected_counts_g / (_TRUST + expected_counts_g)
    # How log(R · C) moves with each of the three sums.
    slope_3g = np.stack([1 / r_g, kept_g / (factor_g * told_g), -kept_g / told_g])
    spread_g = np.einsum("ig,ijg,jg->g", slope_3g, sum(moments), slope_3g)
    # log of a Gamma variable of as many counts as the negative binomial's variance is worth.
    least_g = polygamma(1, _TRUST + told_g / model_g * counted_g)
    return GroupMean(
        log_mean_g=np.log(r_g * factor_g),
        variance_g=np.maximum(spread_g, least_g),
        raw_g=raw_g,
        n_counts_g=n_counts_g,
    )


def _expected(model: Model, cells: Minibatch, n_samples: int, noise: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Expected counts m of some cells, zero inflation included, and (Var(x) − m) / m²; float64, each (n, g)."""
    posterior = model.vae.encode(cells)
    expected_ng = torch.zeros(cells.n_cells, cells.n_genes, device=model.device)
    inflation_ng = torch.zeros_like(expected_ng)
    dispersion_g = torch.zeros(cells.n_genes, device=model.device)
    for _ in range(n_samples):
        z_nk = posterior.sample(torch.randn(posterior.mean_nk.shape, generator=noise).to(model.device))
        output = model.vae.decode(z_nk, cells.batch_n)
        assert isinstance(output, CountOutput), "refused before"
        expected_ng += output.mean_ng(cells.library_n, with_zero_inflation=True) / n_samples
        if output.zero_logit_ng is not None:
            inflation_ng += torch.sigmoid(output.zero_logit_ng) / n_samples
        if output.log_theta_g is not None:
            dispersion_g = (-output.log_theta_g).exp()
    excess_ng = (dispersion_g + inflation_ng) / (1 - inflation_ng).clamp(min=1e-6)
    # What float32 rounds to zero is expected all the same.
    return expected_ng.clamp(min=_LEAST).cpu().double().numpy(), excess_ng.cpu().double().numpy()
