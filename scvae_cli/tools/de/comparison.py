"""Genes whose expression differs between two groups of cells, with the size and the certainty of each change.

The mean expression of both groups at the same library size is estimated in `group_means`. The change of a gene is the
log2 ratio of the two means. The ratios of all genes are shrunk together in `shrinkage`, which gives the posterior of
each change. A gene is tested for an absolute change above a threshold that the user chooses. The posterior
probabilities are calibrated: among genes called at an expected false discovery rate of 5%, about 5% are false calls.

Boyeau et al. (2019, doi:10.1101/794289) compare the decoded expression of pairs of cells. This is not done here, for
two reasons. First, the spread between cells is not the uncertainty of the groups' means. Second, the decoder makes an
error because it smooths expression over similar cells, and the posterior of the latent position does not include this
error.

Shapes: g genes, t of them tested, s batches.
"""

from __future__ import annotations

import math

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.errors import DataError
from scvae_cli.latent.posteriors import cell_table, known_batches
from scvae_cli.model.bundle import Model
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.de.group_means import group_mean
from scvae_cli.tools.de.options import DeOptions
from scvae_cli.tools.de.result import Contrast, DifferentialExpression
from scvae_cli.tools.de.shrinkage import common_shift, expected_fdr, shrink

# Fitting the prior over the genes' changes takes at least this many genes.
_MIN_GENES = 10
# `auto` subtracts the common change if at least the share `_MOST` of the genes lies within `_NEAR_COMMON` (log2) of the
# common change.
_NEAR_COMMON, _MOST = 0.25, 0.5
# Quantiles that bound the 90% interval of each change.
_LOW, _HIGH = 0.05, 0.95


def differential_expression(
    model: Model, counts: Counts, contrast: Contrast, options: DeOptions, *, progress: Progress = silent
) -> DifferentialExpression:
    """Compare two groups of cells, gene by gene.

    With a model that has batches, groups are compared within batches: each batch has the same weight in both groups.
    The weight of a batch with n cells of one group and m cells of the other is proportional to n·m / (n + m), because
    the precision of the difference between a mean of n cells and a mean of m cells is proportional to this number.

    Parameters
    ----------
    model, counts
        A model of counts, and cells with the genes of the model. If the model has batches, the batch of every cell must
        be known.

    Raises
    ------
    DataError
        If a batch is unknown, if no batch has at least two cells of each group, or if too few genes have counts.
    """
    batch_n = known_batches(model, counts)
    table = cell_table(model, counts, batch_n=batch_n)
    drawn = _subsample(contrast.group_cells, options), _subsample(contrast.reference_cells, options)
    strata, share_s = _strata(*drawn, batch_n, contrast, model)
    with progress("Comparing", sum(len(cells) for side in strata for cells in side)) as advance:
        group, reference = (
            group_mean(model, table, side, share_s, n_samples=options.n_samples, seed=options.seed, advance=advance)
            for side in strata
        )
    tested = group.n_counts_g + reference.n_counts_g > 0
    if tested.sum() < _MIN_GENES:
        raise DataError(
            f"only {int(tested.sum())} gene(s) have counts in these cells",
            f"the changes of all genes are estimated together, which needs at least {_MIN_GENES} genes",
        )
    estimate_t = (group.log_mean_g - reference.log_mean_g)[tested] / math.log(2)
    error_t = np.sqrt(group.variance_g + reference.variance_g)[tested] / math.log(2)
    common_change = common_shift(estimate_t, error_t)
    posterior = shrink(estimate_t - common_change, error_t)
    near_common_share = 1 - float(posterior.probability_beyond(_NEAR_COMMON).mean())
    centre: str = options.centre
    if centre == "auto":
        centre = "bulk" if near_common_share >= _MOST else "none"
    if centre == "none":
        posterior = shrink(estimate_t, error_t)
    with np.errstate(divide="ignore", invalid="ignore"):
        raw_g = np.log2(group.raw_g / reference.raw_g)
    library = float(model.vae.reference_library)
    log_null_t = np.minimum(posterior.log_probability_within(options.threshold), 0.0)
    numbers = {
        "estimate_g": estimate_t,
        "error_g": error_t,
        "change_g": posterior.mean_g,
        "sd_g": posterior.sd_g,
        "low_g": posterior.quantile(_LOW),
        "high_g": posterior.quantile(_HIGH),
        "probability_g": -np.expm1(log_null_t),
        "log_null_g": log_null_t,
        "false_sign_g": posterior.false_sign_rate(),
        "expected_fdr_g": expected_fdr(log_null_t),
        "mean_g": library * np.exp(group.log_mean_g[tested]),
        "reference_mean_g": library * np.exp(reference.log_mean_g[tested]),
        "raw_g": raw_g[tested],
    }
    return DifferentialExpression(
        contrast=contrast,
        options=options,
        genes=tuple(model.genes),
        tested=tested,
        **{name: _of_all_genes(values, tested) for name, values in numbers.items()},
        common_change=common_change,
        near_common_share=near_common_share,
        centre=centre,
        unchanged_share=posterior.null_share,
        n_group=sum(map(len, strata[0])),
        n_reference=sum(map(len, strata[1])),
        n_left_out=sum(map(len, drawn)) - sum(len(cells) for side in strata for cells in side),
    )


def _of_all_genes(values_t: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Return an array over all genes, with the given values for the tested genes and NaN for the others, shape (g,)."""
    values_g = np.full(len(tested), np.nan)
    values_g[tested] = values_t
    return values_g


def _subsample(cells: np.ndarray, options: DeOptions) -> np.ndarray:
    if len(cells) <= options.max_cells:
        return cells
    return np.sort(np.random.default_rng(options.seed).choice(cells, options.max_cells, replace=False))


def _strata(
    group: np.ndarray, reference: np.ndarray, batch_n: np.ndarray | None, contrast: Contrast, model: Model
) -> tuple[tuple[list[np.ndarray], list[np.ndarray]], np.ndarray]:
    """Split the cells of both groups by batch, and compute the weight of each batch.

    Batches with fewer than two cells of one of the groups are left out.
    """
    if batch_n is None:
        return ([group], [reference]), np.ones(1)
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
            f"(obs[{model.config.data.batch_key!r}]): use a model trained without --batch-key, or with another "
            "--batch-key",
        )
    return sides, np.asarray(weight_s) / sum(weight_s)
