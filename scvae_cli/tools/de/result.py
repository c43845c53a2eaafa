"""Two groups of cells, and how the expression of every gene differs between them.

Shapes: g genes, t of them tested, f genes of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import DataError
from scvae_cli.tools.de.options import MIN_CELLS, DeOptions

# Name of the reference that consists of all other cells, as in scanpy.
REST = "rest"


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A group and a reference in a column of obs, and the indices of the cells of each.

    The group and the reference have at least three cells each. The reference "rest" consists of all other cells.

    Raises
    ------
    DataError
        If the group or the reference has too few cells.
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
                    f"a group needs at least {MIN_CELLS} cells; merge groups, or choose others",
                )


@dataclass(frozen=True, kw_only=True)
class DifferentialExpression:
    """Change of g genes from a reference to a group, NaN for genes that are not tested.

    Parameters
    ----------
    genes, tested
        Names of the genes, and mask of the genes that have counts in at least one of the two groups. Shape (g,).
    estimate_g, error_g
        log2 ratio of the groups' means before shrinkage, and standard error of this ratio.
    common_change, near_common_share
        log2 ratio that most genes have in common, and the expected share of genes whose change differs from this ratio
        by at most 0.25.
    centre
        "bulk" if changes are relative to the common change, otherwise "none".
    unchanged_share
        Estimated share of genes whose change is exactly zero. If `centre` is "bulk", these are the genes with the
        common change.
    change_g, sd_g, low_g, high_g
        Posterior of the change, log2: mean, standard deviation, 5% and 95% quantiles.
    probability_g
        Posterior probability that the absolute change is larger than `options.threshold`.
    log_null_g
        Natural log of the posterior probability that the absolute change is at most `options.threshold`. With this
        number, genes can be ordered even if `probability_g` is rounded to 1.
    false_sign_g
        Local false sign rate: the probability that the change is zero or has the less probable of the two signs.
    expected_fdr_g
        Expected share of false calls if this gene and all more certain genes are called, that is, reported as changed.
    mean_g, reference_mean_g
        Mean expression of both groups, in counts at the model's median library size.
    raw_g
        log2 ratio of the groups' mean normalized counts, computed without a model; infinite if one of the two means
        is 0.
    n_group, n_reference, n_left_out
        Numbers of cells compared in the group and in the reference, and number of cells left out. Cells are left out if
        they belong to a batch with fewer than two cells of the group or of the reference.
    """

    __repr__ = brief

    contrast: Contrast
    options: DeOptions
    genes: tuple[str, ...]
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
    mean_g: np.ndarray
    reference_mean_g: np.ndarray
    raw_g: np.ndarray
    n_group: int
    n_reference: int
    n_left_out: int

    @property
    def called(self) -> np.ndarray:
        """Mask of the genes that are called (reported as changed) at the chosen false discovery rate, shape (g,)."""
        called_g: np.ndarray = self.tested & (np.nan_to_num(self.expected_fdr_g, nan=1.0) <= self.options.fdr)
        return called_g

    @property
    def order(self) -> np.ndarray:
        """Indices of the tested genes, the most certain change first, shape (t,)."""
        tested = np.flatnonzero(self.tested)
        ordered: np.ndarray = tested[np.argsort(self.log_null_g[tested], kind="stable")]
        return ordered

    @property
    def score_g(self) -> np.ndarray:
        """−log10 P(|change| ≤ threshold), with the sign of the change, shape (g,)."""
        score_g: np.ndarray = -self.log_null_g / math.log(10) * np.sign(self.change_g)
        return score_g

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns of the gene table, with genes in the order of the model. Each column has shape (g,)."""
        first = ("change", "low", "high", "probability", "expected_fdr", "false_sign")
        last = ("estimate", "error", "raw", "mean", "reference_mean")
        columns = {"gene": np.asarray(self.genes, dtype=object)}
        columns |= {name: getattr(self, f"{name}_g") for name in first} | {"called": self.called}
        return columns | {name: getattr(self, f"{name}_g") for name in last}

    def slots(self, names: SlotNames, file_genes: np.ndarray) -> list[Slot]:
        """Return a slot in the format of scanpy's `rank_genes_groups`, with all genes of the data by descending score.

        Genes that are not tested are included, because some of scanpy's plots need every gene. These genes have a score
        of 0 and NaN in all other numbers, so they stand between the genes with positive and with negative scores. The
        p-values that scanpy's functions require are NaN, because a posterior has no p-values.
        """
        position = {gene: g for g, gene in enumerate(self.genes) if self.tested[g]}
        column_f = np.asarray([position.get(gene, -1) for gene in file_genes])
        numbers = {"scores": self.score_g, "logfoldchanges": self.change_g}
        numbers |= dict.fromkeys(("pvals", "pvals_adj"), np.full(len(self.genes), np.nan))
        same = ("probability", "expected_fdr", "false_sign", "estimate", "error")
        numbers |= {"change_sd": self.sd_g} | {name: getattr(self, f"{name}_g") for name in same}
        fields = {name: np.where(column_f >= 0, values_g[column_f], np.nan) for name, values_g in numbers.items()}
        fields["scores"] = np.nan_to_num(fields["scores"])
        order = np.argsort(-fields["scores"], kind="stable")
        kinds = {"names": "O"} | dict.fromkeys(fields, "f8")
        value: dict[str, Any] = {
            name: np.rec.fromarrays([column[order]], dtype=[(self.contrast.group, kinds[name])])
            for name, column in ({"names": np.asarray(file_genes, dtype=object)} | fields).items()
        }
        params: dict[str, Any] = {"groupby": self.contrast.groupby, "reference": self.contrast.reference}
        params |= {"method": "scvae", "use_raw": False, "threshold": self.options.threshold}
        value["params"] = params | {"centre": self.centre, "common_change": self.common_change}
        return [Slot(group="uns", key=names.rank_genes_groups, value=value)]
