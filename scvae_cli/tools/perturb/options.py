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
    """Options that select the cells, the perturbation to predict, and the method of the prediction."""

    perturbation_key: str = option(help="Column of obs with the perturbation of each cell.", takes=_COLUMN)
    control: str = option(help="Label of the control cells in the --perturbation-key column.", takes=_LABEL, label=True)
    treated: str = option(
        help="Label of the perturbation to predict. A+B names the combination of A and B.", takes=_LABEL, label=True
    )
    groupby: str = option(help="Column of obs that names the groups, such as cell types.", takes=_COLUMN)
    group: str = option(help="Group whose response is predicted.", takes="a group of the --groupby column", label=True)
    method: Method = option(
        "auto",
        help="Method that shifts the control cells in latent space. centroid uses the average shift from the mean of "
        "the control cells to the mean of the treated cells in the other groups. ot pairs control cells with treated "
        "cells of the other groups by optimal transport, and uses the shifts of the nearest control cells. auto uses "
        "the method that predicts the other groups better. If the mean change of the other groups predicts these "
        "groups better than both methods, auto predicts this mean change.",
    )
    retrain: bool = option(
        False,
        help="Measure the accuracy with newly trained models, and correct the size of the predicted changes. Each new "
        "model is trained without the treated cells of one group, and then predicts these cells.",
    )
    counts: bool = option(False, help="Write counts drawn at random instead of expected counts.")
    seed: int = option(0, help="Random seed of the drawn counts.", least=0)

    def check(self) -> None:
        """Require different columns for perturbation and groups, and different labels for treated and control cells."""
        if self.perturbation_key == self.groupby:
            raise ConfigError(
                f"--perturbation-key and --groupby are both {self.groupby!r}",
                "--perturbation-key takes the column of the perturbations, and --groupby the column of the groups",
            )
        if self.treated == self.control:
            raise ConfigError(
                f"--treated and --control are both {self.control!r}",
                "choose different labels for treated and control cells",
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

    First, a permutation test shows whether the perturbation changes the expression of any gene in the other groups. If
    the test detects no change, the prediction is no change.

    As a check, the response of every group with treated cells is predicted, too. The command prints how well predicted
    and observed changes correlate, and whether the size of the changes is underestimated. Two simple predictions are
    judged for comparison: the mean change of the other groups and, for combinations, the sum of the changes under the
    single perturbations.""",
    example="scvae perturb data.h5ad --perturbation-key condition --control ctrl --treated stim --groupby cell_type "
    '--group "B cells" -o stimulated.h5ad',
    inplace=False,
    returns="The predicted cells as an AnnData, or None if the cells were written to a file. In the AnnData, var holds "
    'the changes of the genes, and uns["scvae"]["perturbations"] the accuracy in groups with treated cells.',
)
