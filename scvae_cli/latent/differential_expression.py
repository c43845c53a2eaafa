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
from dataclasses import dataclass
from typing import Any

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.latent.embedding import cell_table
from scvae_cli.latent.group_means import group_mean
from scvae_cli.latent.scoring import known_batches
from scvae_cli.latent.shrinkage import Shrunk, bulk_shift, expected_fdr, shrink
from scvae_cli.model.bundle import Model

BULK, NONE = CENTRES = ("bulk", "none")
REST = "rest"
MIN_CELLS = 3
# The prior is fitted to the genes.
_MIN_GENES = 10
# Ends of the interval told of each change: 90% lie within.
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """What is asked for.

    Parameters
    ----------
    threshold
        δ: a gene has changed when its log2 ratio is farther from zero; 0 asks for any change at all.
    fdr
        Expected false discovery rate at which genes are called.
    centre
        "bulk" tells changes relative to what most genes do, which a few genes that take up or give up much of the
        counts don't move; "none" tells changes of each gene's share of all counts.
    max_cells
        Of each group, at most so many are looked at, drawn at random.
    n_samples
        Posterior samples a cell.
    seed
        Of both.

    Raises
    ------
    ConfigError
        For a value out of its range.
    """

    threshold: float = 0.25
    fdr: float = 0.05
    centre: str = BULK
    max_cells: int = 5000
    n_samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ConfigError(f"--threshold is {self.threshold}", "it takes a log2 fold change of 0 or more")
        if not 0 < self.fdr < 1:
            raise ConfigError(f"--fdr is {self.fdr}", "it takes a share between 0 and 1, such as 0.05")
        if self.centre not in CENTRES:
            raise ConfigError(f"--centre is {self.centre!r}", f"it takes one of: {', '.join(CENTRES)}")
        for name, value, least in (("cells", self.max_cells, MIN_CELLS), ("samples", self.n_samples, 1)):
            if value < least:
                raise ConfigError(f"--{name} is {value}", f"it takes a whole number of at least {least}")
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}", "it takes a whole number of 0 or more")


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two groups of cells.

    Parameters
    ----------
    groupby
        The column that names them.
    group, reference
        Their names; "rest" stands for all other cells of the column.
    group_cells, reference_cells
        Their indices, of at least three cells each, none in both.

    Raises
    ------
    DataError
        For too few cells.
    """

    groupby: str
    group: str
    reference: str
    group_cells: np.ndarray
    reference_cells: np.ndarray

    def __post_init__(self) -> None:
        for name, cells in ((self.group, self.group_cells), (self.reference, self.reference_cells)):
            if len(cells) < MIN_CELLS:
                raise DataError(
                    f"{name!r} of obs[{self.groupby!r}] has {len(cells)} cell(s) to compare",
                    f"a mean needs at least {MIN_CELLS}; merge groups, or choose others",
                )


@dataclass(frozen=True, kw_only=True)
class DifferentialExpression:
    """What g genes do from a reference to a group, NaN for genes that are not tested.

    Parameters
    ----------
    contrast, options
        What was compared, and how.
    genes
        Names; shape (g,).
    tested
        Mask of the genes that have counts in either group; shape (g,).
    estimate_g, error_g
        log2 ratio of the groups' means before shrinkage, and its standard error.
    shift
        What most genes' ratios have in common, log2: changes are told relative to it. With `centre` "none" it is told
        and not taken off.
    null_share
        Estimated share of genes that do not change at all.
    change_g, sd_g, low_g, high_g
        Posterior of the change, log2: mean, standard deviation, 5% and 95% quantiles.
    probability_g
        That the change is beyond the threshold, in either direction.
    log_null_g
        Natural log of the probability that it is not, which tells sure genes apart; never above 0.
    false_sign_g
        Local false sign rate: the probability that the change has not the sign of its mean.
    expected_fdr_g
        Share of false calls expected when this gene and all surer ones are called.
    mean_g, reference_mean_g
        Mean expression of both groups, in counts at the model's median depth.
    raw_g
        log2 ratio of mean normalised counts without any model, infinite where one of them is 0.
    n_group, n_reference
        Cells looked at.
    n_left_out
        Cells of batches that only one of the groups has two cells of.
    """

    contrast: Contrast
    options: ComparisonOptions
    genes: tuple[str, ...]
    tested: np.ndarray
    estimate_g: np.ndarray
    error_g: np.ndarray
    shift: float
    null_share: float
    change_g: np.ndarray
    sd_g: np.ndarray
    low_g: np.ndarray
    high_g: np.ndarray
    probability_g: np.ndarray
    log_null_g: np.ndarray
    false_sign_g: np.ndarray
    expected_fdr_g: np.ndarray
    mean_g: np.ndarray
    reference_mean_g: np.ndarray
    raw_g: np.ndarray
    n_group: int
    n_reference: int
    n_left_out: int

    @property
    def called(self) -> np.ndarray:
        """Mask of the genes called at the false discovery rate asked for, shape (g,)."""
        called_g: np.ndarray = self.tested & (np.nan_to_num(self.expected_fdr_g, nan=1.0) <= self.options.fdr)
        return called_g

    @property
    def order(self) -> np.ndarray:
        """Tested genes, surest change first, shape (t,)."""
        tested = np.flatnonzero(self.tested)
        surest: np.ndarray = tested[np.argsort(self.log_null_g[tested], kind="stable")]
        return surest

    @property
    def score_g(self) -> np.ndarray:
        """−log10 of the probability of no change beyond the threshold, with the sign of the change, shape (g,)."""
        score_g: np.ndarray = -self.log_null_g / math.log(10) * np.sign(self.change_g)
        return score_g

    def columns(self) -> dict[str, np.ndarray]:
        """The table, a column an array of shape (g,), genes in the model's order."""
        return {
            "gene": np.asarray(self.genes, dtype=object),
            "change": self.change_g,
            "low": self.low_g,
            "high": self.high_g,
            "probability": self.probability_g,
            "expected_fdr": self.expected_fdr_g,
            "false_sign": self.false_sign_g,
            "called": self.called,
            "estimate": self.estimate_g,
            "error": self.error_g,
            "raw": self.raw_g,
            "mean": self.mean_g,
            "reference_mean": self.reference_mean_g,
        }

    def slots(self, names: SlotNames, file_genes: np.ndarray) -> list[Slot]:
        """Where the result goes: as scanpy's `rank_genes_groups` keeps it, genes that rise first and that fall last.

        Genes of the data that are not tested stand between them with a score of 0, and NaN in all other fields: some of
        scanpy's plots need every gene. Fields that its readers ask for and a posterior has not, p-values, are NaN.

        Parameters
        ----------
        file_genes
            Genes of the data.
        """
        position = {gene: g for g, gene in enumerate(self.genes) if self.tested[g]}
        column_f = np.asarray([position.get(gene, -1) for gene in file_genes])

        def of_file(values_g: np.ndarray) -> np.ndarray:
            return np.where(column_f >= 0, values_g[column_f], np.nan)

        missing = np.full(len(self.genes), np.nan)
        numbers = {
            "scores": self.score_g,
            "logfoldchanges": self.change_g,
            "pvals": missing,
            "pvals_adj": missing,
            "change_sd": self.sd_g,
            "probability": self.probability_g,
            "expected_fdr": self.expected_fdr_g,
            "false_sign": self.false_sign_g,
            "estimate": self.estimate_g,
            "error": self.error_g,
        }
        fields = {name: of_file(values_g) for name, values_g in numbers.items()}
        fields["scores"] = np.nan_to_num(fields["scores"])
        order = np.argsort(-fields["scores"], kind="stable")
        kinds = {"names": "O"} | dict.fromkeys(fields, "f8")
        value: dict[str, Any] = {
            name: np.rec.fromarrays([column[order]], dtype=[(self.contrast.group, kinds[name])])
            for name, column in ({"names": np.asarray(file_genes, dtype=object)} | fields).items()
        }
        value["params"] = {
            "groupby": self.contrast.groupby,
            "reference": self.contrast.reference,
            "method": "scvae",
            "use_raw": False,
            "threshold": self.options.threshold,
            "centre": self.options.centre,
            "shift": self.shift,
        }
        return [Slot(group="uns", key=names.rank_genes_groups, value=value)]


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
    posterior = shrink(estimate_t - (shift if options.centre == BULK else 0.0), error_t)
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
