"""Options of `scvae perturb` and `scvae_cli.perturb`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scvae_cli.errors import ConfigError
from scvae_cli.options import option
from scvae_cli.shared_options import Drawing, Reading, WritingNewCells
from scvae_cli.verb import Verb

# Descriptions of the allowed values, for the hints of error messages.
_COLUMN, _LABEL = "a column of obs", "a label of the --perturbation-key column"

Method = Literal["auto", "centroid", "ot"]


@dataclass(frozen=True, kw_only=True)
class PerturbOptions(Reading, Drawing, WritingNewCells):
    """Options that say which perturbation of which cells is predicted, and how."""

    perturbation_key: str = option(help="Column of obs with the perturbation of each cell.", takes=_COLUMN)
    control: str = option(help="Label of the control cells in the --perturbation-key column.", takes=_LABEL, label=True)
    treated: str = option(
        help="Label of the perturbation to predict. A+B names the combination of A and B.", takes=_LABEL, label=True
    )
    groupby: str = option(help="Column of obs that names the groups, such as cell types.", takes=_COLUMN)
    group: str = option(help="Group whose response is predicted.", takes="a group of the --groupby column", label=True)
    method: Method = option(
        "auto",
        help="How the control cells are shifted in latent space. centroid: by the average shift of the other groups' "
        "means. ot: by the shifts of nearby control cells of the other groups, which are paired with treated cells by "
        "optimal transport. auto: by the method that predicts the other groups better; if the mean change of the other "
        "groups predicts them better than both, this mean is the prediction.",
    )
    retrain: bool = option(
        False,
        help="Measure the accuracy with new models, and correct the size of the changes. Each model is trained without "
        "the treated cells of one group, and then predicts these cells.",
    )
    counts: bool = option(False, help="Write counts drawn at random instead of expected counts.")
    seed: int = option(0, help="Random seed of the drawn counts.", least=0)

    def check(self) -> None:
        """Require two different columns, and two different labels."""
        if self.perturbation_key == self.groupby:
            raise ConfigError(
                f"--perturbation-key and --groupby are both {self.groupby!r}",
                "one column holds the perturbation of each cell, the other its group",
            )
        if self.treated == self.control:
            raise ConfigError(
                f"--treated and --control are both {self.control!r}", "a perturbation compares two labels"
            )


PERTURB = Verb(
    name="perturb",
    panel="Comparisons",
    options=PerturbOptions,
    home="scvae_cli.tools.perturb.question:Perturb",
    about="""Predict how the cells of a group would respond to a perturbation that other groups have undergone.

    The control cells of the group are shifted in latent space in the same way as the perturbation shifted the other
    groups. The decoder then gives the change of every gene. The change of a gene is the difference between the means of
    log(1 + 10⁴·count/library size) in treated and in control cells.

    First, permuted labels show whether the perturbation changes anything in the other groups. If no change is detected,
    no change is predicted.

    As a check, every group with treated cells is predicted, too. The correlation of the predicted with the observed
    change is printed, and so is the error of the size of the predicted change. The same numbers are printed for two
    simple predictions: the mean change of the other groups and, for combinations, the sum of the changes under the
    single perturbations.""",
    example="scvae perturb data.h5ad --perturbation-key condition --control ctrl --treated stim --groupby cell_type "
    '--group "B cells" -o stimulated.h5ad',
    inplace=False,
    returns="The predicted cells as an AnnData; None if they were written to an output. var holds the changes of the "
    'genes, and uns["scvae"]["perturbations"] the accuracy in groups with treated cells.',
)
