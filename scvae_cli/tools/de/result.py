"""The result of `de`: how the expression of every gene differs between two groups of cells.

Letters in array shapes: g genes, t tested genes, f genes of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.tools.de.contrast import Contrast
from scvae_cli.tools.de.options import DeOptions
from scvae_cli.tools.de.posterior_changes import PosteriorChanges

# The kinds of genes: those of the model, and those that are tested by their counts alone.
MODELED, COUNTED = "modeled", "counts"


@dataclass(frozen=True, kw_only=True)
class Replicates:
    """The replicates, such as donors, of the compared groups.

    Parameters
    ----------
    key
        Column of obs with the replicates.
    n_group, n_reference
        Numbers of compared replicates in the group and in the reference. If `paired` is True, both groups have the same
        replicates.
    paired
        Whether each replicate is in both groups, so that the groups were compared within each replicate.
    left_out
        Labels of the replicates that were left out of a paired comparison, because they are in only one group.
    spread
        Typical standard deviation of a gene between replicates, log2, without the sampling error of the cells. If
        `paired` is True, `spread` is the standard deviation of the changes within replicates.
    batches
        Whether differences between batches were separated from differences between groups.
    """

    key: str
    n_group: int
    n_reference: int
    paired: bool
    left_out: tuple[str, ...]
    spread: float
    batches: bool


@dataclass(frozen=True, kw_only=True)
class DifferentialExpression(PosteriorChanges):
    """Change of g genes from a reference to a group, NaN for genes that are not tested.

    The class has the parameters of `PosteriorChanges` and the following parameters.

    Parameters
    ----------
    genes, n_modeled
        Names of the genes, first the `n_modeled` genes of the model and then the other genes of the data.
    mean_g, reference_mean_g
        Mean expression of both groups, in counts at the median library size.
    raw_g
        log2 ratio of the groups' mean normalized counts, computed without a model; infinite if one of the two means
        is 0.
    n_group, n_reference, n_left_out
        Numbers of cells compared in the group and in the reference, and number of cells left out. Cells are left out if
        their batch has fewer than two cells of the group or of the reference. A paired comparison also leaves out cells
        of replicates that are in only one group.
    replicates
        The replicates between which the groups were compared; None if cells were compared.
    """

    __repr__ = brief

    contrast: Contrast
    options: DeOptions
    genes: tuple[str, ...]
    n_modeled: int
    mean_g: np.ndarray
    reference_mean_g: np.ndarray
    raw_g: np.ndarray
    n_group: int
    n_reference: int
    n_left_out: int
    replicates: Replicates | None = None

    @property
    def called(self) -> np.ndarray:
        """Mask of the genes that are called (reported as changed) at the chosen false discovery rate, shape (g,)."""
        called_g: np.ndarray = self.tested & (np.nan_to_num(self.expected_fdr_g, nan=1.0) <= self.options.fdr)
        return called_g

    @property
    def order(self) -> np.ndarray:
        """Indices of the tested genes, sorted by the certainty of their change, the most certain first; shape (t,)."""
        tested = np.flatnonzero(self.tested)
        ordered: np.ndarray = tested[np.argsort(self.log_null_g[tested], kind="stable")]
        return ordered

    @property
    def ranked(self) -> np.ndarray:
        """Indices of the tested genes, shape (t,).

        The called genes come first, sorted by `options.sort`. All other genes follow, also sorted by `options.sort`.
        """
        order = self.order
        # The sort is stable, so genes of equal score, such as genes whose interval includes 0, stay in the order of
        # certainty.
        ranked: np.ndarray = order[np.lexsort((-np.abs(self.score_g[order]), ~self.called[order]))]
        return ranked

    @property
    def source_g(self) -> np.ndarray:
        """How each gene is tested: "modeled" (by decoder and counts) or "counts" (by counts alone), shape (g,)."""
        source_g: np.ndarray = np.where(np.arange(len(self.genes)) < self.n_modeled, MODELED, COUNTED).astype(object)
        return source_g

    @property
    def certainty_g(self) -> np.ndarray:
        """Certainty of each change: −log10 of the probability that |change| ≤ threshold, shape (g,)."""
        certainty_g: np.ndarray = -self.log_null_g / math.log(10)
        return certainty_g

    @property
    def bound_g(self) -> np.ndarray:
        """Smallest absolute change in the 90% interval, log2, shape (g,); 0 if the interval includes 0."""
        bound_g: np.ndarray = np.maximum(np.maximum(self.low_g, -self.high_g), 0)
        return bound_g

    @property
    def score_g(self) -> np.ndarray:
        """The number by which `options.sort` sorts the genes, with the sign of the change, shape (g,)."""
        by = {"bound": self.bound_g, "probability": self.certainty_g, "change": np.abs(self.change_g)}
        score_g: np.ndarray = by[self.options.sort] * np.sign(self.change_g)
        return score_g

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns of the gene table, with the genes in the order of `genes`. Each column has shape (g,)."""
        first = ("source", "change", "low", "high", "bound", "probability", "expected_fdr", "false_sign")
        last = ("estimate", "error", "raw", "mean", "reference_mean")
        columns = {"gene": np.asarray(self.genes, dtype=object)}
        columns |= {name: getattr(self, f"{name}_g") for name in first} | {"called": self.called}
        return columns | {name: getattr(self, f"{name}_g") for name in last}

    def slots(self, names: SlotNames, file_genes: np.ndarray, name: str | None = None) -> list[Slot]:
        """Return a slot in the format of scanpy's `rank_genes_groups`, with all genes of the data by descending score.

        Genes that are not tested are included, because some of scanpy's plots need every gene. Untested genes have a
        score of 0 and NaN in all other numbers, so they are listed between the genes with positive scores and the genes
        with negative scores. The field `pvals` is NaN, because a posterior has no p-values. The field `pvals_adj` holds
        the expected false discovery rates, so that scanpy's `pval_cutoff` selects the genes that are called at a given
        rate.
        """
        position = {gene: g for g, gene in enumerate(self.genes)}
        column_f = np.asarray([position.get(gene, -1) for gene in file_genes])
        numbers = {"scores": self.score_g, "logfoldchanges": self.change_g}
        numbers |= {"pvals": np.full(len(self.genes), np.nan), "pvals_adj": self.expected_fdr_g}
        same = ("bound", "probability", "expected_fdr", "false_sign", "estimate", "error")
        numbers |= {"change_sd": self.sd_g} | {field: getattr(self, f"{field}_g") for field in same}
        fields = {field: np.where(column_f >= 0, values_g[column_f], np.nan) for field, values_g in numbers.items()}
        fields["scores"] = np.nan_to_num(fields["scores"])
        # Among genes of equal score, the more certain genes are farther from the middle of the list.
        signed_f = np.nan_to_num((self.certainty_g * np.sign(self.change_g))[column_f]) * (column_f >= 0)
        order = np.lexsort((-signed_f, -fields["scores"]))
        columns = {"names": np.asarray(file_genes, dtype=object)} | fields
        columns["source"] = np.where(column_f >= 0, self.source_g[column_f], "").astype(object)
        group = self.contrast.group
        value: dict[str, Any] = {
            field: np.rec.fromarrays([column[order]], dtype=[(group, "O" if column.dtype == object else "f8")])
            for field, column in columns.items()
        }
        params: dict[str, Any] = {"groupby": self.contrast.groupby, "reference": self.contrast.reference}
        params |= {"method": "scvae", "use_raw": False, "threshold": self.options.threshold}
        params |= {"centre": self.centre, "common_change": self.common_change, "sort": self.options.sort}
        if self.replicates is not None:
            params["replicate_key"] = self.replicates.key
        value["params"] = params
        return [Slot(group="uns", key=names.comparison(name), value=value)]
