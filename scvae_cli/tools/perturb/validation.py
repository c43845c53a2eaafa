"""How well a perturbation is predicted where the answer is known: in groups that have been under it, left out in turn.

A group's treated cells are hidden from what the change is learned from. That is a test of the whole only if the model
has not seen them either (`leave_one_group_out.py`): one that has decodes the very place that they lie in, and the
prediction looks better than it will be for a group of which there are no treated cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.errors import ConfigError
from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.latent_shift import METHODS
from scvae_cli.tools.perturb.observed_change import fit
from scvae_cli.tools.perturb.prediction import Predictor
from scvae_cli.tools.perturb.result import Check, Fit, Recipe

AUTO = "auto"
# A model carries a change over to a group when what it says there agrees with the plain change at least so much, as a
# share of how much it does in the groups that are checked.
CARRIED = 0.75
# Shares of the plain change to choose from. A model that has seen what it predicts looks better than it is: then some
# of the plain change is always mixed in, half of it at least.
SHARES, LEAST_IF_SEEN = (0.5, 0.25, 0.75, 0.0, 1.0), 0.5


def candidates(method: str, *, unseen: bool, own: bool = False) -> tuple[Recipe, ...]:
    """The recipes to choose from.

    Parameters
    ----------
    method
        One of the methods, or "auto" for all.
    unseen
        Whether the models that are judged have not seen what they predict.
    own
        Whether all that the change is made of is the group's own: there is nothing for a model to carry over to it, and
        no group by which to judge what it makes of a sum of moves, so the plain change is the prediction.

    Raises
    ------
    ConfigError
        For a method of another name.
    """
    if method != AUTO and method not in METHODS:
        raise ConfigError(f"--method is {method!r}", f"it takes one of: {', '.join((AUTO, *METHODS))}")
    methods = METHODS if method == AUTO else (method,)
    least = 1 if own else 0 if unseen else LEAST_IF_SEEN
    shares = [share for share in SHARES if share >= least]
    return tuple(Recipe(method=name, plain=share) for share in shares for name in methods)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One group's answer by every recipe, beside what else could be said.

    Parameters
    ----------
    checks
        One for each recipe.
    """

    checks: dict[Recipe, Check]

    @property
    def group(self) -> str:
        """The group that was left out."""
        return next(iter(self.checks.values())).group


def attempt(predictor: Predictor, design: Design, recipes: Sequence[Recipe], *, unseen: bool) -> Trial:
    """Predict a group whose answer is known, by every recipe.

    Parameters
    ----------
    predictor
        Model and cells.
    design
        Of a group that has treated cells.
    unseen
        Whether the model was trained without them.
    """
    observed = predictor.observed
    true_g, top = observed.change(design), observed.surest(design)

    def judged(change_g: np.ndarray | None) -> Fit | None:
        return None if change_g is None else fit(change_g, true_g, top)

    mean_change, additive = judged(observed.mean_change(design)), judged(observed.additive(design))
    checks: dict[Recipe, Check] = {}
    for method in dict.fromkeys(recipe.method for recipe in recipes):
        mine = [recipe for recipe in recipes if recipe.method == method]
        for recipe, change_g in zip(
            mine, predictor.changes(design, method, [recipe.plain for recipe in mine]), strict=True
        ):
            checks[recipe] = Check(
                group=design.group,
                treated=design.treated,
                n_control=len(design.rows(design.group, design.control)),
                n_treated=len(design.rows(design.group, design.treated)),
                predicted=fit(change_g, true_g, top),
                mean_change=mean_change,
                additive=additive,
                unseen=unseen,
            )
    return Trial(checks=checks)


def choose(trials: Sequence[Trial], recipes: Sequence[Recipe]) -> Recipe:
    """The recipe that does best on average over the groups; the first where nothing is known."""
    if not trials:
        return recipes[0]
    marks = [float(np.mean([trial.checks[recipe].predicted.mark for trial in trials])) for recipe in recipes]
    return recipes[int(np.argmax(np.round(marks, 6)))]


def carried_over(predictor: Predictor, design: Design, checks: Sequence[Design], method: str) -> float:
    """How far the model knows the change in a group whose treated cells it has never seen: 1 as in those it has.

    A model may lay each group's treated cells where it likes, and moved cells of another group then decode to nothing
    in particular, which no test on cells it has seen can tell. So what it says of the target is compared with the plain
    change, by correlation, and that with the same of the checked groups. Without any it is the correlation itself, and
    0 where it does not agree in them on average: then there is nothing to be as good as.
    """
    known = [predictor.agreement(check, method) for check in checks]
    usual = float(np.mean(known)) if known else 1.0
    return predictor.agreement(design, method) / usual if usual > 0 else 0.0
