"""The posterior of each gene's change, and the expected false discovery rates.

The genes of the model are the most variable genes, so they change more often than the genes that the model lacks. The
genes of the model and all other genes therefore have separate priors. The false discovery rate is computed over all
genes together (Cai and Sun 2009, doi:10.1198/jasa.2009.tm08415).

Letters in array shapes: g genes, t tested genes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.errors import DataError
from scvae_cli.tools.de.options import DeOptions
from scvae_cli.tools.de.shrinkage import ShrunkEffects, common_shift, expected_fdr, shrink

# Smallest number of genes to which a prior of the changes is fitted. Smallest number of genes of each kind, in the
# model or not, for two separate priors. A prior that is fitted to few genes is uncertain.
_MIN_GENES, _MIN_GENES_OF_KIND = 10, 100
# With --centre auto, the common change is subtracted if at least the share `_MOST` of the genes changes by the common
# change, plus or minus `_NEAR_COMMON` (log2).
_NEAR_COMMON, _MOST = 0.25, 0.5
# Quantiles that bound the 90% interval of each change.
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True, kw_only=True)
class PosteriorChanges:
    """Posterior of the change of g genes, NaN for genes that are not tested.

    Parameters
    ----------
    tested
        Mask of the genes that have counts in at least one of the two groups, shape (g,).
    estimate_g, error_g
        log2 ratio of the groups' means before shrinkage, and standard error of this ratio.
    common_change, near_common_share
        log2 ratio that most genes have in common, and the expected share of genes whose change differs from this ratio
        by at most 0.25.
    centre
        "bulk" if changes are relative to the common change, otherwise "none".
    unchanged_share
        Estimated share of genes whose change is exactly zero. If `centre` is "bulk", a change of zero means the common
        change.
    change_g, sd_g, low_g, high_g
        Posterior of the change, log2: mean, standard deviation, 5% and 95% quantiles.
    probability_g
        Posterior probability that the absolute change is larger than the threshold.
    log_null_g
        Natural log of the posterior probability that the absolute change is at most the threshold. `log_null_g`
        distinguishes genes even if `probability_g` is rounded to 1.
    false_sign_g
        Local false sign rate: the probability that the change is zero or has the less probable of the two signs.
    expected_fdr_g
        For each gene, the expected share of false calls if this gene and all more certain genes are called, that is,
        reported as changed.
    """

    tested: np.ndarray
    estimate_g: np.ndarray
    error_g: np.ndarray
    common_change: float
    near_common_share: float
    centre: str
    unchanged_share: float
    change_g: np.ndarray
    sd_g: np.ndarray
    low_g: np.ndarray
    high_g: np.ndarray
    probability_g: np.ndarray
    log_null_g: np.ndarray
    false_sign_g: np.ndarray
    expected_fdr_g: np.ndarray


def posterior_of(
    estimate_g: np.ndarray, error_g: np.ndarray, *, tested: np.ndarray, modeled_g: np.ndarray, options: DeOptions
) -> PosteriorChanges:
    """Shrink the log2 ratios of the tested genes, and compute their posterior.

    Parameters
    ----------
    estimate_g, error_g
        log2 ratios, and their standard errors, shape (g,).
    tested, modeled_g
        Masks of the genes that are tested, and of the genes of the model, shape (g,).

    Raises
    ------
    DataError
        If fewer than ten genes are tested.
    """
    if tested.sum() < _MIN_GENES:
        raise DataError(
            f"only {amount(int(tested.sum()), 'gene has', 'genes have')} counts in the compared cells",
            f"the changes of all genes are estimated together, which needs at least {_MIN_GENES} genes",
        )
    estimate_t, error_t = estimate_g[tested], error_g[tested]
    kinds = _kinds(modeled_g[tested])
    common_change = common_shift(estimate_t, error_t)
    parts = [shrink(estimate_t[kind] - common_change, error_t[kind]) for kind in kinds]
    near_common_share = 1 - float(_by_kind(parts, kinds, lambda part: part.probability_beyond(_NEAR_COMMON)).mean())
    centre: str = options.centre
    if centre == "auto":
        centre = "bulk" if near_common_share >= _MOST else "none"
    if centre == "none":
        parts = [shrink(estimate_t[kind], error_t[kind]) for kind in kinds]

    def values(of: Callable[[ShrunkEffects], np.ndarray]) -> np.ndarray:
        return _of_all_genes(_by_kind(parts, kinds, of), tested)

    log_null_t = np.minimum(_by_kind(parts, kinds, lambda part: part.log_probability_within(options.threshold)), 0.0)
    return PosteriorChanges(
        tested=tested,
        estimate_g=_of_all_genes(estimate_t, tested),
        error_g=_of_all_genes(error_t, tested),
        common_change=common_change,
        near_common_share=near_common_share,
        centre=centre,
        unchanged_share=sum(part.null_share * len(kind) for part, kind in zip(parts, kinds, strict=True))
        / len(estimate_t),
        change_g=values(lambda part: part.mean_g),
        sd_g=values(lambda part: part.sd_g),
        low_g=values(lambda part: part.quantile(_LOW)),
        high_g=values(lambda part: part.quantile(_HIGH)),
        probability_g=_of_all_genes(-np.expm1(log_null_t), tested),
        log_null_g=_of_all_genes(log_null_t, tested),
        false_sign_g=values(lambda part: part.false_sign_rate()),
        expected_fdr_g=_of_all_genes(expected_fdr(log_null_t), tested),
    )


def _kinds(modeled_t: np.ndarray) -> list[np.ndarray]:
    """Split the genes into sets with separate priors; if one set would be too small, all genes share one prior."""
    kinds = [np.flatnonzero(modeled_t), np.flatnonzero(~modeled_t)]
    if min(map(len, kinds)) < _MIN_GENES_OF_KIND:
        return [np.arange(len(modeled_t))]
    return kinds


def _by_kind(
    parts: Sequence[ShrunkEffects], kinds: Sequence[np.ndarray], of: Callable[[ShrunkEffects], np.ndarray]
) -> np.ndarray:
    """Compute a number for each tested gene, shape (t,), from the posteriors of the separate sets of genes."""
    values_t = np.empty(sum(map(len, kinds)))
    for part, kind in zip(parts, kinds, strict=True):
        values_t[kind] = of(part)
    return values_t


def _of_all_genes(values_t: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Return an array over all genes, with the given values for tested genes and NaN for other genes, shape (g,)."""
    values_g = np.full(len(tested), np.nan)
    values_g[tested] = values_t
    return values_g
