"""Which genes differ between two groups of cells, by how much, and how surely.

The quantity is the log2 ratio of the groups' mean expression at one depth, from `group_means`; its posterior comes of
shrinking all genes' ratios together (`shrinkage`), so that the probabilities it tells can be counted with: among genes
called at an expected false discovery rate of 5%, about 5% do not change beyond the threshold.

Comparing decoded expression of cells pair by pair (Boyeau et al. 2019, doi:10.1101/794289) was not taken up: how much
cells differ is not how surely their means do, and what the decoder smooths is beyond its own doubt.

Shapes: g genes, t of them tested.
"""

from __future__ import annotations

import math

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.latent.posteriors import cell_table, known_batches
from scvae_cli.model.bundle import Model
from scvae_cli.tools.de.group_means import group_mean
from scvae_cli.tools.de.result import AUTO, BULK, NONE, ComparisonOptions, Contrast, DifferentialExpression
from scvae_cli.tools.de.shrinkage import Shrunk, bulk_shift, expected_fdr, shrink

# The prior is fitted to the genes.
_MIN_GENES = 10
# Genes are of the bulk within so much (log2) of what they have in common; where half of them are, most genes are.
_BULK_REACH, _MOST = 0.25, 0.5
# Ends of the interval told of each change: 90% lie within.
_LOW, _HIGH = 0.05, 0.95


def differential_expression(
    model: Model, counts: Counts, contrast: Contrast, options: ComparisonOptions
) -> DifferentialExpression:
    """Compare two groups of cells, gene by gene.

    With a model of batches, batches are compared within themselves: each has the same share of both groups, the more
    the better it can tell, n·m / (n + m) for its n and m cells.

    Parameters
    ----------
    model
        Of counts.
    counts
        Cells in the model's genes, with the batches of a model that has them.

    Raises
    ------
    ConfigError
        For a model of real numbers.
    DataError
        For unknown batches, groups without a batch in common, or too few genes with counts.
    """
    refuse_real(model)
    batch_n = known_batches(model, counts)
    table = cell_table(model, counts, batch_n=batch_n)
    drawn = _drawn(contrast.group_cells, options), _drawn(contrast.reference_cells, options)
    strata, share_s = _strata(*drawn, batch_n, contrast, model)
    group, reference = (
        group_mean(model, table, cells, share_s, n_samples=options.n_samples, seed=options.seed) for cells in strata
    )
    tested = group.n_counts_g + reference.n_counts_g > 0
    if tested.sum() < _MIN_GENES:
        raise DataError(
            f"{int(tested.sum())} gene(s) have counts in these cells",
            f"the genes are judged together, which takes {_MIN_GENES} or more",
        )
    estimate_t = (group.log_mean_g - reference.log_mean_g)[tested] / math.log(2)
    error_t = np.sqrt(group.variance_g + reference.variance_g)[tested] / math.log(2)
    shift = bulk_shift(estimate_t, error_t)
    posterior = shrink(estimate_t - shift, error_t)
    agreeing = 1 - float(posterior.beyond(_BULK_REACH).mean())
    centre = options.centre
    if centre == AUTO:
        centre = BULK if agreeing >= _MOST else NONE
    if centre == NONE:
        posterior = shrink(estimate_t, error_t)
    with np.errstate(divide="ignore", invalid="ignore"):
        raw_g = np.log2(group.raw_g / reference.raw_g)
    depth = float(model.vae.reference_library)
    numbers = {"estimate_g": estimate_t, "error_g": error_t, **_told(posterior, options.threshold)}
    numbers |= {"mean_g": depth * np.exp(group.log_mean_g[tested]), "raw_g": raw_g[tested]}
    numbers |= {"reference_mean_g": depth * np.exp(reference.log_mean_g[tested])}
    return DifferentialExpression(
        contrast=contrast,
        options=options,
        genes=tuple(model.genes),
        tested=tested,
        **{name: _spread(values, tested) for name, values in numbers.items()},
        shift=shift,
        agreeing=agreeing,
        centre=centre,
        null_share=posterior.null_share,
        n_group=sum(map(len, strata[0])),
        n_reference=sum(map(len, strata[1])),
        n_left_out=sum(map(len, drawn)) - sum(len(cells) for side in strata for cells in side),
    )


def refuse_real(model: Model) -> None:
    """Refuse a model of real numbers.

    Raises
    ------
    ConfigError
        As ratios of means, and how surely counts tell them, are not those of real numbers.
    """
    if not model.of_counts:
        raise ConfigError("a model of real numbers has no expression to compare", "train a model of the raw counts")


def _told(posterior: Shrunk, threshold: float) -> dict[str, np.ndarray]:
    log_null_t = np.minimum(posterior.log_within(threshold), 0.0)
    return {
        "change_g": posterior.mean_g,
        "sd_g": posterior.sd_g,
        "low_g": posterior.quantile(_LOW),
        "high_g": posterior.quantile(_HIGH),
        "probability_g": -np.expm1(log_null_t),
        "log_null_g": log_null_t,
        "false_sign_g": posterior.false_sign(),
        "expected_fdr_g": expected_fdr(log_null_t),
    }


def _spread(values_t: np.ndarray, tested: np.ndarray) -> np.ndarray:
    values_g = np.full(len(tested), np.nan)
    values_g[tested] = values_t
    return values_g


def _drawn(cells: np.ndarray, options: ComparisonOptions) -> np.ndarray:
    if len(cells) <= options.max_cells:
        return cells
    return np.sort(np.random.default_rng(options.seed).choice(cells, options.max_cells, replace=False))


def _strata(
    group: np.ndarray, reference: np.ndarray, batch_n: np.ndarray | None, contrast: Contrast, model: Model
) -> tuple[tuple[list[np.ndarray], list[np.ndarray]], np.ndarray]:
    """Cells of both groups by batch, of the batches that have two of each, and the batches' shares."""
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
            f"no batch has cells of both {contrast.group!r} and {contrast.reference!r}",
            f"their difference cannot be told from that of the batches (obs[{model.config.data.batch_key!r}]): "
            "use a model trained without --batch-key, or with another one",
        )
    return sides, np.asarray(weight_s) / sum(weight_s)
