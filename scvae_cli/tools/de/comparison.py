"""Genes whose expression differs between two groups of cells, with the size and the certainty of each change.

The module `group_means` estimates the mean expression of both groups at the same library size. The means of the model's
genes are estimated from the decoder and the counts, and the means of all other genes from the counts alone. The change
of a gene is the log2 ratio of its means in the two groups. The error of the change is estimated from the spread of the
cells or, with replicates, from the spread between replicates (`replicates`). The module `posterior_changes` computes
the posterior of each change by shrinkage, with a prior that is fitted to many genes. A gene is tested for an absolute
change above a threshold that the user chooses. The posterior probabilities are calibrated: among genes called at an
expected false discovery rate of 5%, about 5% are false calls.

Boyeau et al. (2019, doi:10.1101/794289) compare the decoded expression of pairs of cells. scvae does not compare pairs
of cells, because the spread between cells is not the uncertainty of a group's mean. Moreover, the decoder makes errors
because it smooths expression over similar cells, and the posterior of the latent position does not include these
errors.

Letters in array shapes: g genes, t tested genes, s batches or replicates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import CellTable
from scvae_cli.errors import DataError
from scvae_cli.latent.posteriors import cell_table, known_batches, strata
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.de.cell_blocks import CountedGenes, DecodedGenes, ExpectedCounts
from scvae_cli.tools.de.contrast import Contrast
from scvae_cli.tools.de.group_means import SampleSums, group_mean, sample_sums
from scvae_cli.tools.de.options import DeOptions
from scvae_cli.tools.de.posterior_changes import posterior_of
from scvae_cli.tools.de.replicates import ReplicateDesign, between_replicates, design_of
from scvae_cli.tools.de.result import DifferentialExpression, Replicates


@dataclass(frozen=True, kw_only=True)
class OtherGenes:
    """Counts of the genes that the model lacks. `rows` holds the cell index of each row, in ascending order."""

    names: tuple[str, ...]
    matrix: sp.csr_matrix
    rows: np.ndarray


def differential_expression(
    model: Model,
    counts: Counts,
    contrast: Contrast,
    options: DeOptions,
    *,
    others: OtherGenes | None = None,
    progress: Progress = silent,
) -> DifferentialExpression:
    """Compare two groups of cells, gene by gene.

    If the model has batches, the groups are compared within batches: each batch has the same weight in both groups. If
    the model has several batch keys, each combination of their categories is a batch. The weight of a batch with n
    cells of one group and m cells of the other is proportional to n·m / (n + m), like the precision of the difference
    between the two means. The module `replicates` explains how replicates are compared.

    Parameters
    ----------
    model, counts
        A model of counts, and cells with the genes of the model. If the model has batches, the batch of every cell must
        be known.
    contrast
        The two groups of cells to compare.
    others
        Counts of the genes that the model lacks, in all cells of the contrast; None if the model has all genes of the
        data.

    Raises
    ------
    DataError
        If a batch is unknown, if no batch has at least two cells of each group, or if too few genes have counts.
    """
    batch_n, stratum_n = known_batches(model, counts), strata(model, counts)
    library_n = counts.library_n
    if others is not None:
        library_n[others.rows] += np.asarray(others.matrix.sum(1, dtype=np.float64)).ravel()
    samples = _samples(contrast, stratum_n, model)
    table = cell_table(model, counts, batch_n=batch_n)
    sums = _sums(model, table, others, samples, library_n, stratum_n, options, progress)
    means = _means_of_cells(sums, samples) if samples.design is None else _means_of_replicates(sums, samples.design)
    tested = np.sum([sample.n_counts_g for side in sums for sample in side], axis=0) > 0
    genes = (*model.genes, *(() if others is None else others.names))
    posterior = posterior_of(
        means.estimate_g / math.log(2),
        means.error_g / math.log(2),
        tested=tested,
        modeled_g=np.arange(len(genes)) < len(model.genes),
        options=options,
    )
    # The reference library size of the model counts only the model's genes, so it is scaled to all genes of the data.
    library = float(model.vae.reference_library)
    library *= float(library_n[contrast.cells].sum() / counts.library_n[contrast.cells].sum())
    return DifferentialExpression(
        contrast=contrast,
        options=options,
        genes=genes,
        n_modeled=len(model.genes),
        mean_g=np.where(tested, library * np.exp(means.log_mean_g), np.nan),
        reference_mean_g=np.where(tested, library * np.exp(means.reference_log_mean_g), np.nan),
        raw_g=np.where(tested, means.raw_g, np.nan),
        n_group=sum(map(len, samples.group)),
        n_reference=sum(map(len, samples.reference)),
        n_left_out=len(contrast.cells) - sum(map(len, samples.all)),
        replicates=None if samples.design is None else _replicates(contrast, samples.design, means.spread),
        **vars(posterior),
    )


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """The cells of both groups, split into samples; each sample contains the cells of one batch or of one replicate.

    Parameters
    ----------
    group, reference
        Indices of the cells of each sample.
    share_s
        Weight of each batch, the same in both groups; None with replicates.
    design
        Design of the comparison between replicates; None if cells are compared.
    """

    group: Sequence[np.ndarray]
    reference: Sequence[np.ndarray]
    share_s: np.ndarray | None = None
    design: ReplicateDesign | None = None

    @property
    def all(self) -> list[np.ndarray]:
        return [*self.group, *self.reference]


class _Means(NamedTuple):
    """Mean expression of both groups, and log ratios of the means before shrinkage.

    All arrays have shape (g,). All logs are natural, except the log2 ratio `raw_g`. `spread` is the standard deviation
    of log expression (natural log) between replicates, and 0 without replicates.
    """

    log_mean_g: np.ndarray
    reference_log_mean_g: np.ndarray
    estimate_g: np.ndarray
    error_g: np.ndarray
    raw_g: np.ndarray
    spread: float


def _sums(
    model: Model,
    table: CellTable,
    others: OtherGenes | None,
    samples: _Samples,
    library_n: np.ndarray,
    batch_n: np.ndarray | None,
    options: DeOptions,
    progress: Progress,
) -> tuple[list[SampleSums], list[SampleSums]]:
    """Compute the `SampleSums` of every sample, first for the genes of the model and then for all other genes."""
    sources: list[Callable[[], ExpectedCounts]] = [
        lambda: DecodedGenes(model, table, library_n, n_samples=options.n_samples, seed=options.seed)
    ]
    if others is not None:
        # With replicates, batches are not separated here, because replicates include the differences between batches.
        within_n = batch_n if samples.design is None else None
        counted = CountedGenes(others.matrix, others.rows, library_n, samples.all, within_n)
        sources.append(lambda: counted)
    sides: tuple[list[SampleSums], list[SampleSums]] = ([], [])
    with progress("Comparing", sum(map(len, samples.all)) * len(sources)) as advance:
        for side, cells in zip(sides, (samples.group, samples.reference), strict=True):
            # The expected counts of both groups are computed with the same random numbers.
            begun = [source() for source in sources]
            for rows in cells:
                first, *rest = (sample_sums(source, rows, advance) for source in begun)
                whole = first.with_genes_of(rest[0]) if rest else first
                # The covariances need much memory, and a comparison of replicates does not use the covariances.
                side.append(whole if samples.design is None else whole._replace(variance_33g=None))
    return sides


def _samples(contrast: Contrast, batch_n: np.ndarray | None, model: Model) -> _Samples:
    if contrast.replicate_n is None:
        return _by_batch(contrast, batch_n, model)
    design = design_of(contrast.group_cells, contrast.reference_cells, contrast.replicate_n, batch_n)
    return _Samples(group=design.cells, reference=design.reference_cells, design=design)


def _replicates(contrast: Contrast, design: ReplicateDesign, spread: float) -> Replicates:
    return Replicates(
        key=str(contrast.replicate_key),
        n_group=len(design.cells),
        n_reference=len(design.reference_cells),
        paired=design.paired,
        left_out=design.left_out,
        spread=spread / math.log(2),
        batches=design.batch_s is not None,
    )


def _means_of_cells(sums: Sequence[Sequence[SampleSums]], samples: _Samples) -> _Means:
    """Compare the mean expression of both groups; the standard errors come from the spread between cells."""
    assert samples.share_s is not None, "cells are compared within batches"
    group, reference = (group_mean(side, samples.share_s) for side in sums)
    return _Means(
        log_mean_g=group.log_mean_g,
        reference_log_mean_g=reference.log_mean_g,
        estimate_g=group.log_mean_g - reference.log_mean_g,
        error_g=np.sqrt(group.variance_g + reference.variance_g),
        raw_g=_log2_ratio(group.raw_g, reference.raw_g),
        spread=0.0,
    )


def _means_of_replicates(sums: Sequence[Sequence[SampleSums]], design: ReplicateDesign) -> _Means:
    """Compare the mean expression of both groups; the standard errors come from the spread between replicates."""
    found = between_replicates(sums[0], sums[1], design)
    raw_g = _log2_ratio(*(np.mean([sample.raw_g for sample in side], axis=0) for side in sums))
    return _Means(
        log_mean_g=found.log_mean_g,
        reference_log_mean_g=found.reference_log_mean_g,
        estimate_g=found.estimate_g,
        error_g=found.error_g,
        raw_g=raw_g,
        spread=found.spread,
    )


def _log2_ratio(group_g: np.ndarray, reference_g: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_g: np.ndarray = np.log2(group_g / reference_g)
    return ratio_g


def _by_batch(contrast: Contrast, batch_n: np.ndarray | None, model: Model) -> _Samples:
    """Split the cells of both groups by batch, and compute the weight of each batch.

    Batches with fewer than two cells of either group are left out.
    """
    group, reference = contrast.group_cells, contrast.reference_cells
    if batch_n is None:
        return _Samples(group=[group], reference=[reference], share_s=np.ones(1))
    sides: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    weight_s = []
    for batch in np.unique(batch_n[group]):
        pair = [cells[batch_n[cells] == batch] for cells in (group, reference)]
        n, m = map(len, pair)
        if min(n, m) >= 2:
            weight_s.append(n * m / (n + m))
            for side, cells in zip(sides, pair, strict=True):
                side.append(cells)
    if not weight_s:
        raise DataError(
            f"no batch has at least two cells each of {contrast.group!r} and {contrast.reference!r}",
            "the difference between the groups cannot be separated from the difference between batches "
            f"({', '.join(f'obs[{key!r}]' for key in model.config.data.batch_keys)}): use a model trained without "
            "--batch-key, or with another --batch-key",
        )
    return _Samples(group=sides[0], reference=sides[1], share_s=np.asarray(weight_s) / sum(weight_s))
