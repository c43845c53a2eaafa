"""How well a perturbation is predicted where the answer is known: in groups that have been under it, left out in turn.

A group's treated cells are hidden from what the change is learned from. That is a test of the whole only if the model
has not seen them either (`scvae_cli.studies.left_out`): one that has decodes the very place that they lie in, and the
prediction looks better than it will be for a group of which there are no treated cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scvae_cli.errors import ConfigError
from scvae_cli.latent.latent_shift import METHODS
from scvae_cli.latent.observed_change import fit
from scvae_cli.latent.perturbation import Predictor
from scvae_cli.latent.perturbation_design import Design
from scvae_cli.latent.perturbation_result import Check, Fit, Recipe

AUTO = "auto"
# Shares of the plain change to choose from where the models have not seen what they predict; and the one that is taken
# where they have, since the best would then always be the one that trusts the model most.
SHARES, USUAL_SHARE = (0.0, 0.25, 0.5, 0.75, 1.0), 0.25


def candidates(method: str, *, unseen: bool) -> tuple[Recipe, ...]:
    """The recipes to choose from.

    Raises
    ------
    ConfigError
        For a method of another name.
    """
    if method != AUTO and method not in METHODS:
        raise ConfigError(f"--method is {method!r}", f"it takes one of: {', '.join((AUTO, *METHODS))}")
    methods = METHODS if method == AUTO else (method,)
    # The usual share first: of equals the first is taken.
    shares = sorted(SHARES, key=lambda share: abs(share - USUAL_SHARE)) if unseen else [USUAL_SHARE]
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
