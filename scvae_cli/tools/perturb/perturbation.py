"""Prediction of one group's response, by the recipe that is most accurate in other groups with treated cells.

A recipe consists of a method to shift cells in latent space, and the share of the mean shift in the prediction. The
mean shift is the average observed change of expression from control to treated cells in the other groups. The rest of
the prediction is the change that the model decodes for the cells shifted in latent space.

Shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from scvae_cli.data.counts import Counts
from scvae_cli.model.bundle import Model
from scvae_cli.model.posterior import Posterior
from scvae_cli.progress import Progress, silent, tracked
from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.options import PerturbOptions
from scvae_cli.tools.perturb.prediction import Predictor, predict
from scvae_cli.tools.perturb.result import Perturbation
from scvae_cli.tools.perturb.validation import (
    LEAST_AGREEMENT,
    assess,
    candidates,
    choose,
    relative_agreement,
    retrained_checks,
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
    """Predict the response of a group.

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
        Posteriors q(z|x) of the n cells; computed if None.
    follow
        Function that is given a title and the events of a training, runs the training, and returns the last event.

    Raises
    ------
    ScvaeError
        The errors of `retrained_checks`, if `options.retrain` is True.
    """
    predictor = Predictor.of(model, counts, cells=cells, progress=progress)
    recipes = candidates(options.method, held_out=options.retrain, only_own_parts=design.only_own_parts)
    others = design.checks
    # The group's own treated cells, if there are any, judge the prediction but have no part in choosing it.
    designs = [*others, *([design] if design.observed else [])]
    if options.retrain:
        checks = retrained_checks(model, counts, designs, recipes, follow=follow)
    else:
        known = tracked(designs, progress, "Testing", len(designs))
        checks = [assess(predictor, one, recipes, held_out=False) for one in known]
    recipe = choose(checks[: len(others)], recipes)
    agreement = None
    if not options.retrain and not design.only_own_parts:
        agreement = relative_agreement(predictor, design, others, recipe.method)
        recipe = recipe if agreement >= LEAST_AGREEMENT else replace(recipe, mean_shift_share=1.0)
    chosen = [check[recipe] for check in checks]
    return predict(
        predictor,
        design,
        recipe,
        checks=tuple(chosen[: len(others)]),
        group_check=chosen[-1] if design.observed else None,
        model_agreement=agreement,
        drawn=options.counts,
        seed=options.seed,
    )
