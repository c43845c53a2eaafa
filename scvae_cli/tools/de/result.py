"""What is asked of a comparison of two groups of cells, and what it tells.

Shapes: g genes, t of them tested, f genes of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import ConfigError, DataError

AUTO, BULK, NONE = CENTRES = ("auto", "bulk", "none")
REST = "rest"
MIN_CELLS = 3


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
        "none" tells changes of each gene's share of all counts. These fall for all other genes when a few take up much
        of the counts; "bulk" tells changes relative to what the genes have in common. "auto" does so where most genes
        agree: half of them within 0.25 of it.
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
    centre: str = AUTO
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
        What the genes' ratios have in common, log2.
    agreeing
        Expected share of genes within 0.25 of it.
    centre
        "bulk" where changes are told relative to the shift, else "none".
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
    agreeing: float
    centre: str
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
            "centre": self.centre,
            "shift": self.shift,
        }
        return [Slot(group="uns", key=names.rank_genes_groups, value=value)]
