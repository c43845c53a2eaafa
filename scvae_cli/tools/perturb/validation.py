"""Accuracy of a prediction in groups whose response was observed, each left out in turn.

The treated cells of the group that is left out are not used to learn the change. This tests the whole prediction only
if the model was not trained on these cells either (`retrained_checks`). A model trained on these cells has learned to
decode them, so the prediction looks more accurate than it is for a group without treated cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.errors import DataError
from scvae_cli.model.bundle import Model
from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.latent_shift import METHODS
from scvae_cli.tools.perturb.observed_change import accuracy
from scvae_cli.tools.perturb.prediction import Predictor
from scvae_cli.tools.perturb.result import Accuracy, Check, Recipe
from scvae_cli.training.fit import Finished, FitEvent, fit, last_event

# If the result of `relative_agreement` is below this limit, the prediction is the mean shift alone.
LEAST_AGREEMENT = 0.75
# Shares of the mean shift to choose from. A model looks too accurate on cells that it was trained on, so the share is
# at least one half unless the models are trained without the treated cells.
SHARES, LEAST_SHARE_IF_SEEN = (0.5, 0.25, 0.75, 0.0, 1.0), 0.5


def candidates(method: str, *, held_out: bool, only_own_parts: bool = False) -> tuple[Recipe, ...]:
    """Return the recipes to choose from: the recipes of one method, or of all methods if `method` is "auto".

    `held_out` says whether the models are trained without the treated cells that they predict. `only_own_parts` says
    whether the change consists only of the group's own changes under the parts of a combination. If `only_own_parts` is
    True, the model has no change to transfer from other groups, and no group shows how well the model adds shifts. The
    prediction is then the observed mean shift alone.
    """
    methods = METHODS if method == "auto" else (method,)
    least = 1 if only_own_parts else 0 if held_out else LEAST_SHARE_IF_SEEN
    shares = [share for share in SHARES if share >= least]
    return tuple(Recipe(method=name, mean_shift_share=share) for share in shares for name in methods)


def assess(predictor: Predictor, design: Design, recipes: Sequence[Recipe], *, held_out: bool) -> dict[Recipe, Check]:
    """Predict a group whose response was observed, by every recipe; `held_out` is passed on to each `Check`."""
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
    return checks


def retrained_checks(
    model: Model,
    counts: Counts,
    designs: Sequence[Design],
    recipes: Sequence[Recipe],
    *,
    follow: Callable[[str, Iterator[FitEvent]], FitEvent | None] = last_event,
) -> list[dict[Recipe, Check]]:
    """Train, for each group, a new model without the group's treated cells, and predict these cells.

    The new models have the same genes and settings as the given model. `follow` is given a title and the events of a
    training, runs the training, and returns the last event.

    Raises
    ------
    DataError
        If the model has batches and the data has none. Also raises the errors of `fit`.
    """
    if model.batches and counts.batch is None:
        key = model.config.data.batch_key
        raise DataError(
            f"--retrain needs the batches of the cells, because the model was trained with --batch-key {key}",
            f"add the batch of every cell to the data, in the column obs[{key!r}]",
        )
    config = model.config.of_all_genes()
    data, compute = replace(config.data, drop_empty=True), replace(config.compute, device=str(model.device))
    config = replace(config, data=data, compute=compute)
    found = []
    for design in designs:
        kept = np.ones(counts.n_cells, dtype=bool)
        kept[design.rows(design.group, design.treated)] = False
        last = follow(f"without {design.treated} {design.group}", fit(counts.cells(kept), config))
        assert isinstance(last, Finished), "a training that cannot be stopped ends finished"
        last.model.vae.to(model.device)
        found.append(assess(Predictor.of(last.model, counts), design, recipes, held_out=True))
    return found


def choose(checks: Sequence[dict[Recipe, Check]], recipes: Sequence[Recipe]) -> Recipe:
    """Choose the recipe with the best mean score over the checked groups; without checks, the first recipe."""
    if not checks:
        return recipes[0]
    scores = [float(np.mean([check[recipe].predicted.score for check in checks])) for recipe in recipes]
    return recipes[int(np.argmax(np.round(scores, 6)))]


def relative_agreement(predictor: Predictor, design: Design, checks: Sequence[Design], method: str) -> float:
    """Compute the agreement of model and mean shift in a group, relative to the agreement in the checked groups.

    The mean shift is the average observed change of expression from control to treated cells in the other groups.

    A model may place the treated cells of each group anywhere in latent space. Shifted cells of another group may then
    decode to arbitrary expression, and no test on the training cells shows this. So the result is the correlation
    between the change that the model predicts for the group and the mean shift, divided by the mean of the same
    correlation over the checked groups. Without checked groups, the result is the correlation itself. If the mean over
    the checked groups is not positive, the result is 0, because there is no agreement to compare with.
    """
    known = [predictor.agreement(check, method) for check in checks]
    usual = float(np.mean(known)) if known else 1.0
    return predictor.agreement(design, method) / usual if usual > 0 else 0.0
