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
    """Options that say where labels are known, and how sure the new labels must be."""

    labels_key: str | None = option(
        None,
        help="Column of obs with the known labels. Cells with a missing value or an empty text have no label. Without "
        "this option, the labels with which the model was trained are predicted.",
        takes="a column of obs",
    )
    unlabeled: str | None = option(
        None,
        help="Value of the --labels-key column that also means that a cell has no label.",
        metavar="VALUE",
        label=True,
    )
    coarse_key: str | None = option(
        None,
        help="Column of obs with the coarse label of each labeled cell. Every value of --labels-key must lie in one "
        "value of this column. Cells whose label is uncertain get the coarse label in "
        'obs["scvae_label_backed_off"].',
        takes="a column of obs",
    )
    fine_probability: float = option(
        0.9,
        help="Smallest probability at which a cell keeps its own label. Other cells back off to the coarse label "
        "(--coarse-key).",
        above=0,
        most=1,
    )
    reference: Path | None = option(
        None,
        help="File with the labeled cells, if they are not in DATA. It is read with the same model.",
        metavar="FILE",
        panel=INPUT,
    )
    coverage: float = option(
        0.9,
        help="Probability that the prediction set of a cell of a known type contains the true label.",
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
    seed: int = option(0, help="Random seed of the parts in which labeled cells are held out.", least=0, most=2**32 - 1)

    def check(self) -> None:
        """Raise a ConfigError if an option about labeled cells was given without --labels-key."""
        super().check()
        if self.labels_key is not None:
            return
        for flag, value in (
            ("--unlabeled", self.unlabeled), ("--coarse-key", self.coarse_key), ("--reference", self.reference),
        ):  # fmt: skip
            if value is not None:
                raise ConfigError(f"{flag} was given without --labels-key", "name the labels with --labels-key COLUMN")


ANNOTATE = Verb(
    name="annotate",
    panel="Results",
    options=AnnotateOptions,
    home="scvae_cli.tools.annotate.question:Annotate",
    about="""Predict the label of every cell from labeled cells, with calibrated probabilities.

    The labeled cells are those of DATA that have a value in the column --labels-key, or those of another file,
    --reference. The model need not have been trained with labels or with the reference. If the model was trained with
    labels (scvae train --labels-key), no labeled cells are needed: without --labels-key, its labels are predicted.

    Writes the most probable label to obs["scvae_label"], or "unknown" if the cell is unlike the labeled cells of all
    types; its probability to obs["scvae_label_probability"]; the prediction set, which contains the true label with
    probability --coverage, to obs["scvae_label_set"]; the p-value of "unknown" to obs["scvae_label_p"]; and the
    probabilities of all labels to obsm["scvae_label_probabilities"], with the labels in
    uns["scvae"]["label_names"]. Labeled cells get the prediction of a classifier that did not see their label.

    With --coarse-key, obs["scvae_label_backed_off"] has the label of the cells whose label is probable
    (--fine-probability), and the most probable coarse label of the others. obs["scvae_label_coarse"] has the coarse
    label of all cells, and obs["scvae_label_coarse_probability"] its probability.

    All probabilities, sets and p-values are calibrated on labeled cells that were held out from the classifier. The
    report says how well these cells were predicted, and how well a logistic regression on genes predicts them.
    --plot draws the confusion table and the reliability of the probabilities.""",
    example="scvae annotate query.h5ad -m atlas.scvae --reference atlas.h5ad --labels-key cell_type",
)
