"""Prediction of one group's response, by the recipe that is most accurate in other groups with treated cells.

A recipe consists of a method to shift cells in latent space, and the share of the mean shift in the prediction. The
mean shift is the average observed change of expression from control to treated cells in the other groups. Besides the
mean shift, the prediction contains the change that the model decodes for the cells shifted in latent space.

If no change is detected in the groups from which the response would be learned, the predicted change is zero. If the
mean change of the other groups predicts left-out groups better than the recipe, the prediction is this mean change.

Letters in array shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.model.bundle import Model
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent, tracked
from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.label_permutation import permutation_test
from scvae_cli.tools.perturb.observed_change import Observed
from scvae_cli.tools.perturb.options import PerturbOptions
from scvae_cli.tools.perturb.prediction import Predictor, predict
from scvae_cli.tools.perturb.result import MEAN, NONE, Perturbation, Recipe, mean_accuracy
from scvae_cli.tools.perturb.tested_change import Tested, any_changed
from scvae_cli.tools.perturb.validation import (
    LEAST_AGREEMENT,
    Trial,
    candidates,
    checked,
    choose,
    mean_is_better,
    relative_agreement,
    retrained_trials,
)
from scvae_cli.training.fit import FitEvent, last_event


def perturb(
    model: Model,
    counts: Counts,
    design: Design,
    options: PerturbOptions,
    *,
    cells: Posterior | None = None,
    follow: Callable[[str, Iterator[FitEvent]], FitEvent | None] = last_event,
    progress: Progress = silent,
) -> Perturbation:
    """Predict the response of a group to a perturbation.

    Parameters
    ----------
    model, counts
        The model, and the counts of n cells for the genes of the model. The counts hold the cells' batches if the batch
        of every cell is known.
    design
        Cells from which the response is learned.
    options
        Method, whether the prediction is checked with retrained models, and whether counts are drawn.
    cells
        Posteriors q(z|x) of the n cells. If `cells` is None, the posteriors are computed.
    follow
        Function that is given a title and the events of a training, runs the training, and returns the last event.

    Raises
    ------
    ScvaeError
        The errors of `retrained_trials`, if `options.retrain` is True.
    """
    predictor = Predictor.of(model, counts, cells=cells, progress=progress)
    tests, group_test = _tested(predictor.observed, design, counts.batch, options.seed)
    given: dict[str, Any] = {"tests": tests, "group_test": group_test, "drawn": options.counts, "seed": options.seed}
    if not any_changed(tests):
        recipe = Recipe(method=NONE, mean_shift_share=0.0, scale=0.0)
        unchecked: dict[str, Any] = {"checks": (), "group_check": None, "model_accuracy": None, "model_agreement": None}
        return predict(predictor, design, recipe, **given, **unchecked)
    recipes = candidates(options.method, held_out=options.retrain, only_own_parts=design.only_own_parts)
    # The group's own treated cells, if there are any, are used to judge the prediction, but not to choose the recipe.
    designs = [*design.checks, *([design] if design.observed else [])]
    if options.retrain:
        trials = retrained_trials(model, counts, designs, follow=follow)
    else:
        trials = [Trial(predictor=predictor, design=one, held_out=False) for one in designs]
    others = trials[: len(design.checks)]
    for trial in tracked(others, progress, "Testing", len(others)):
        trial.changes(recipes)
    checks, recipe, model_accuracy = checked(others, recipes), choose(others, recipes), None
    agreement = None
    if not options.retrain and not design.only_own_parts:
        agreement = relative_agreement(predictor, design, design.checks, recipe.method)
        if agreement < LEAST_AGREEMENT:
            recipe = replace(recipe, mean_shift_share=1.0)
            checks = [trial.check(recipe) for trial in others]
    if options.method == "auto" and design.sources and mean_is_better(checks):
        recipe, model_accuracy = Recipe(method=MEAN, mean_shift_share=1.0), mean_accuracy(checks)
        checks = [trial.check(recipe) for trial in others]
    return predict(
        predictor,
        design,
        recipe,
        checks=tuple(checks),
        group_check=trials[-1].check(recipe) if design.observed else None,
        model_accuracy=model_accuracy,
        model_agreement=agreement,
        **given,
    )


def _tested(
    observed: Observed, design: Design, batch_n: np.ndarray | None, seed: int
) -> tuple[tuple[Tested, ...], Tested | None]:
    """Test for a change in the groups from which the change is learned, and in the target group itself."""
    tests = tuple(
        permutation_test(observed, design, label, groups, batch_n=batch_n, seed=seed)
        for label, groups in design.learned_from.items()
    )
    if not design.observed:
        return tests, None
    return tests, permutation_test(observed, design, design.treated, (design.group,), batch_n=batch_n, seed=seed)
