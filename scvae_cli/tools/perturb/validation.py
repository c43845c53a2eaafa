"""Accuracy of a prediction in groups whose response was observed, each left out in turn.

The treated cells of the group that is left out are not used to learn the change. This tests the whole prediction only
if the model was not trained on them either (`leave_one_group_out.py`): a model that was decodes the region where they
lie, and the prediction looks more accurate than it will be for a group without treated cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.latent_shift import METHODS
from scvae_cli.tools.perturb.observed_change import accuracy
from scvae_cli.tools.perturb.prediction import Predictor
from scvae_cli.tools.perturb.result import Accuracy, Check, Recipe

# Below this agreement of model and mean shift in a group, as a share of their agreement in the checked groups, the
# prediction is the mean shift alone.
LEAST_AGREEMENT = 0.75
# Shares of the mean shift to choose from. A model looks too accurate on cells that it was trained on; then the share is
# at least one half.
SHARES, LEAST_SHARE_IF_SEEN = (0.5, 0.25, 0.75, 0.0, 1.0), 0.5


def candidates(method: str, *, held_out: bool, only_own_parts: bool = False) -> tuple[Recipe, ...]:
    """The recipes to choose from.

    Parameters
    ----------
    method
        One of the methods, or "auto" for all.
    held_out
        Whether the models were trained without the cells that judge them.
    only_own_parts
        Whether the change consists only of parts that the group itself has undergone. Then there is no change for a
        model to transfer from other groups, and no group that shows how well it adds shifts, so the prediction is the
        mean shift.
    """
    methods = METHODS if method == "auto" else (method,)
    least = 1 if only_own_parts else 0 if held_out else LEAST_SHARE_IF_SEEN
    shares = [share for share in SHARES if share >= least]
    return tuple(Recipe(method=name, mean_shift_share=share) for share in shares for name in methods)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Predictions of one group by every recipe.

    Parameters
    ----------
    checks
        One for each recipe.
    """

    checks: dict[Recipe, Check]


def assess(predictor: Predictor, design: Design, recipes: Sequence[Recipe], *, held_out: bool) -> Trial:
    """Predict a group whose response was observed, by every recipe.

    Parameters
    ----------
    predictor
        Model and cells.
    design
        Design of a group that has treated cells.
    recipes
        Ways to predict.
    held_out
        Whether the model was trained without these treated cells.
    """
    observed = predictor.observed
    true_g, top = observed.change(design), observed.most_significant(design)

    def judged(change_g: np.ndarray | None) -> Accuracy | None:
        return None if change_g is None else accuracy(change_g, true_g, top)

    mean_change, additive = judged(observed.mean_change(design)), judged(observed.additive(design))
    checks: dict[Recipe, Check] = {}
    for method in dict.fromkeys(recipe.method for recipe in recipes):
        same = [recipe for recipe in recipes if recipe.method == method]
        changes = predictor.changes(design, method, [recipe.mean_shift_share for recipe in same])
        for recipe, change_g in zip(same, changes, strict=True):
            checks[recipe] = Check(
                group=design.group,
                treated=design.treated,
                n_control=len(design.rows(design.group, design.control)),
                n_treated=len(design.rows(design.group, design.treated)),
                predicted=accuracy(change_g, true_g, top),
                mean_change=mean_change,
                additive=additive,
                held_out=held_out,
            )
    return Trial(checks=checks)


def choose(trials: Sequence[Trial], recipes: Sequence[Recipe]) -> Recipe:
    """The recipe with the best mean score over the groups; the first where no group was observed."""
    if not trials:
        return recipes[0]
    scores = [float(np.mean([trial.checks[recipe].predicted.score for trial in trials])) for recipe in recipes]
    return recipes[int(np.argmax(np.round(scores, 6)))]


def relative_agreement(predictor: Predictor, design: Design, checks: Sequence[Design], method: str) -> float:
    """Agreement of model and mean shift in a group, as a share of their agreement in groups with treated cells.

    A model may place the treated cells of each group anywhere, and shifted cells of another group may then decode to
    arbitrary expression, which no test on cells of its training shows. So the change that the model predicts for the
    group is correlated with the mean shift, and the correlation divided by its mean over the checked groups. Without
    such groups the result is the correlation itself; where their mean correlation is not positive it is 0, because then
    there is no agreement to compare with.
    """
    known = [predictor.agreement(check, method) for check in checks]
    usual = float(np.mean(known)) if known else 1.0
    return predictor.agreement(design, method) / usual if usual > 0 else 0.0
