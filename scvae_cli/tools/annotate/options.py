"""Options of `scvae annotate` and `scvae_cli.annotate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scvae_cli.errors import ConfigError
from scvae_cli.options import INPUT, option
from scvae_cli.shared_options import Drawing, Reading, Subset, Writing
from scvae_cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class AnnotateOptions(Reading, Subset, Drawing, Writing):
    """Options that name the known labels, and say how certain a predicted label must be."""

    labels_key: str | None = option(
        None,
        help="Column of obs with the known labels. Cells with a missing value or an empty text have no label. Without "
        "this option, the labels with which the model was trained are predicted.",
        takes="a column of obs",
    )
    unlabeled: str | None = option(
        None,
        help="Value in the column --labels-key that means that a cell has no label.",
        metavar="VALUE",
        label=True,
    )
    coarse_key: str | None = option(
        None,
        help="Column of obs with the coarse label of each labeled cell. All cells with the same value of "
        "--labels-key must have the same coarse label. Cells whose predicted label is uncertain get their coarse label "
        'in obs["scvae_label_backed_off"].',
        takes="a column of obs",
    )
    fine_probability: float = option(
        0.9,
        help="Smallest probability at which a cell keeps its predicted label. Cells with a less probable label get a "
        "coarse label (--coarse-key) instead.",
        above=0,
        most=1,
    )
    reference: Path | None = option(
        None,
        help="File with the labeled cells, if they are not in DATA. The same model encodes the cells of both files.",
        metavar="FILE",
        panel=INPUT,
    )
    coverage: float = option(
        0.9,
        help="Probability that a cell's prediction set contains the true label, if the true label is one of the known "
        "labels.",
        above=0,
        below=1,
    )
    unknown_rate: float = option(
        0.01,
        help='Share of the cells of known types that may be called "unknown" by mistake. With 0, no cell is called '
        '"unknown".',
        least=0,
        below=1,
    )
    seed: int = option(
        0,
        help="Random seed of the cross-validation on labeled cells, and of the comparison of labeled cells with other "
        "cells. The saved classifiers of a model depend only on the seed of its training.",
        least=0,
        most=2**32 - 1,
    )

    def check(self) -> None:
        """Raise a ConfigError if an option about labeled cells was given without --labels-key."""
        super().check()
        if self.labels_key is not None:
            return
        for flag, value in (
            ("--unlabeled", self.unlabeled), ("--coarse-key", self.coarse_key), ("--reference", self.reference),
        ):  # fmt: skip
            if value is not None:
                raise ConfigError(
                    f"{flag} was given without --labels-key",
                    "name the column of obs with the labels: --labels-key COLUMN",
                )


ANNOTATE = Verb(
    name="annotate",
    panel="Results",
    options=AnnotateOptions,
    home="scvae_cli.tools.annotate.question:Annotate",
    about="""Predict the label of every cell from labeled cells, with calibrated probabilities.

    The labeled cells are the cells of DATA, or of the file --reference, that have a value in the column --labels-key.
    The model need not have been trained with labels or with the reference. If the model was trained with labels (scvae
    train --labels-key), no labeled cells are needed: without --labels-key, the labels of the model are predicted.

    The most probable label of each cell is written to obs["scvae_label"]; a cell that is unlike the labeled cells of
    all types has the label "unknown". The probability of the most probable label is in obs["scvae_label_probability"].
    obs["scvae_label_set"] contains the prediction set, which includes the true label with probability --coverage.
    obs["scvae_label_p"] contains the p-value of the hypothesis that a cell belongs to a known type. The
    probabilities of all labels are in obsm["scvae_label_probabilities"], and the names of these labels in
    uns["scvae"]["label_names"]. With --labels-key, labeled cells of DATA get the prediction of a classifier that has
    not seen their label.

    With --coarse-key, obs["scvae_label_backed_off"] contains the predicted label of each cell if its probability is at
    least --fine-probability, and otherwise the most probable coarse label. obs["scvae_label_coarse"] contains the most
    probable coarse label of every cell, and obs["scvae_label_coarse_probability"] the probability of this label.

    All probabilities, prediction sets and p-values are calibrated on labeled cells that were held out from the
    classifier. The report says how well the labels of held-out cells were predicted, and how well a logistic regression
    on genes predicts the same labels. --plot draws the confusion table and the reliability of the probabilities.""",
    example="scvae annotate query.h5ad -m atlas.scvae --reference atlas.h5ad --labels-key cell_type",
)
