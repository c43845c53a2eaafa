"""Coarse labels, which replace fine labels that are uncertain.

Every fine label, such as "CD4 T cell", belongs to one coarse label, such as "T cell". The probability of a coarse label
is the sum of the probabilities of its fine labels. A cell keeps its most probable fine label if the probability of this
label is high enough. A cell without a probable fine label "backs off": this cell gets its most probable coarse label.

Letters in array shapes: n cells, m held-out labeled cells, c fine labels, d coarse labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.labels import UNKNOWN
from scvae_cli.tools.annotate.label_categories import categorical, texts
from scvae_cli.tools.annotate.quality import Prediction, prediction_quality


@dataclass(frozen=True, kw_only=True)
class CoarseLabels:
    """The coarse labels, and the coarse label of each fine label.

    Parameters
    ----------
    names
        Names of the coarse labels, in the order in which they are shown.
    parent_c
        For each fine label, the index of its coarse label; shape (c,).
    values
        Values of the coarse labels, shape (d,), if their column of obs holds numbers or booleans; otherwise None.
    """

    names: tuple[str, ...]
    parent_c: np.ndarray
    values: np.ndarray | None = None

    def sums(self, p_nc: np.ndarray) -> np.ndarray:
        """Add up the probabilities of the fine labels of each coarse label, shape (n, d)."""
        inside_cd = np.eye(len(self.names), dtype=p_nc.dtype)[self.parent_c]
        p_nd: np.ndarray = p_nc @ inside_cd
        return p_nd


@dataclass(frozen=True)
class BackOffQuality:
    """Quality of the coarse labels that were predicted for held-out labeled cells.

    Parameters
    ----------
    labels
        Quality of the most probable coarse label of every held-out cell.
    kept
        Share of the held-out cells that keep their fine label.
    kept_right, coarse_right
        Share of correct labels among the cells that keep their fine label, and among the cells that get a coarse label.
        A share among zero cells is NaN.
    """

    labels: Prediction
    kept: float
    kept_right: float
    coarse_right: float


@dataclass(frozen=True, kw_only=True)
class BackOff:
    """Coarse labels of cells, and which cells get a coarse label instead of a fine label.

    Parameters
    ----------
    coarse
        The coarse labels.
    probability_nd
        Probability of each coarse label, shape (n, d), float32. The probabilities of a cell sum to 1.
    kept_n
        Mask of the cells that keep their fine label, shape (n,).
    quality
        Quality of the coarse labels that were predicted for held-out cells.
    """

    coarse: CoarseLabels
    probability_nd: np.ndarray
    kept_n: np.ndarray
    quality: BackOffQuality

    def slots(self, names: SlotNames, fine_n: np.ndarray, labels: tuple[str, ...], unknown_n: np.ndarray) -> list[Slot]:
        """List the slots of the AnnData to which the coarse labels are written.

        `fine_n` holds, for each cell, the index of its most probable fine label in `labels`.
        """
        import pandas as pd  # pandas is slow to import, so it is imported only here

        coarse_n = self.probability_nd.argmax(1)
        code_n = np.where(unknown_n, len(self.coarse.names), coarse_n)
        given_n = np.where(self.kept_n, texts(labels)[fine_n], texts(self.coarse.names)[coarse_n])
        given_n[unknown_n] = UNKNOWN
        # A coarse label with a single fine label may have the name of this fine label.
        categories = list(dict.fromkeys([*labels, *self.coarse.names, UNKNOWN]))
        return [
            Slot(group="obs", key=names.label_coarse, value=categorical(code_n, self.coarse.names, self.coarse.values)),
            Slot(group="obs", key=names.label_coarse_probability, value=self.probability_nd.max(1)),
            Slot(group="obs", key=names.label_backed_off, value=pd.Categorical(given_n, categories=categories)),
        ]


def back_off(p_nc: np.ndarray, coarse: CoarseLabels, least: float, quality: BackOffQuality) -> BackOff:
    """Find the cells whose most probable fine label is less probable than `least`, and give them coarse labels."""
    return BackOff(coarse=coarse, probability_nd=coarse.sums(p_nc), kept_n=p_nc.max(1) >= least, quality=quality)


def back_off_quality(
    p_mc: np.ndarray, code_m: np.ndarray, weight_m: np.ndarray, coarse: CoarseLabels, least: float
) -> BackOffQuality:
    """Measure the quality of coarse labels of held-out cells, whose true fine labels are `code_m`."""
    p_md, true_m, kept_m = coarse.sums(p_mc), coarse.parent_c[code_m], p_mc.max(1) >= least

    def share(right_m: np.ndarray, among_m: np.ndarray) -> float:
        total = weight_m[among_m].sum()
        return float(weight_m[among_m & right_m].sum() / total) if total else float("nan")

    return BackOffQuality(
        labels=prediction_quality(p_md, true_m, weight_m),
        kept=share(kept_m, np.ones(len(kept_m), dtype=bool)),
        kept_right=share(p_mc.argmax(1) == code_m, kept_m),
        coarse_right=share(p_md.argmax(1) == true_m, ~kept_m),
    )
