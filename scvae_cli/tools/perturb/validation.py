"""Accuracy of a prediction in groups whose response was observed, each left out in turn.

The treated cells of the group that is left out are not used to learn the change. The whole prediction is tested only if
the model was not trained on the left-out cells either (`retrained_trials`). A model trained on the left-out cells has
learned to decode these cells. The accuracy of a model on its own training cells is higher than in a group without
treated cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from scvae_cli.data.counts import Counts
from scvae_cli.errors import DataError
from scvae_cli.evaluation.retraining import with_learnable_labels
from scvae_cli.model.bundle import Model
from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.latent_shift import METHODS
from scvae_cli.tools.perturb.observed_change import accuracy
from scvae_cli.tools.perturb.prediction import Predictor
from scvae_cli.tools.perturb.result import Accuracy, Check, Recipe
from scvae_cli.training.fit import Finished, FitEvent, fit, last_event

# If the result of `relative_agreement` is below this limit, the prediction is the mean shift alone.
LEAST_AGREEMENT = 0.75
# Shares of the mean shift among which a recipe is chosen. A model looks too accurate on cells that it was trained on,
# so the share is at least one half unless the models are trained without the treated cells.
SHARES, LEAST_SHARE_IF_SEEN = (0.5, 0.25, 0.75, 0.0, 1.0), 0.5
# Smallest and largest scale of a prediction.
_SCALES = (0.5, 2.0)


def candidates(method: str, *, held_out: bool, only_own_parts: bool = False) -> tuple[Recipe, ...]:
    """Return the recipes to choose from: the recipes of one method, or of all methods if `method` is "auto".

    `held_out` says whether the models are trained without the treated cells that they predict. `only_own_parts` says
    whether the change consists only of the group's own changes under the parts of a combination. If `only_own_parts` is
    True, the prediction is the observed mean shift alone, because the model has no change to transfer from other
    groups.
    """
    methods = METHODS if method == "auto" else (method,)
    least = 1 if only_own_parts else 0 if held_out else LEAST_SHARE_IF_SEEN
    shares = [share for share in SHARES if share >= least]
    return tuple(Recipe(method=name, mean_shift_share=share) for share in shares for name in methods)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A group whose response was observed, and a predictor that does not learn from the group's treated cells.

    `held_out` says whether the model was also trained without the treated cells of the group.
    """

    predictor: Predictor
    design: Design
    held_out: bool
    _known: dict[Recipe, np.ndarray] = field(default_factory=dict)

    @cached_property
    def true_g(self) -> np.ndarray:
        """Observed change of the group."""
        return self.predictor.observed.change(self.design)

    @cached_property
    def top(self) -> np.ndarray:
        """Indices of the most significant genes."""
        return self.predictor.observed.most_significant(self.design)

    def changes(self, recipes: Sequence[Recipe]) -> list[np.ndarray]:
        """Predict the change by every recipe. Each change has shape (g,), and known changes are not computed again."""
        missing = [recipe for recipe in recipes if recipe not in self._known]
        for method, scale in dict.fromkeys((recipe.method, recipe.scale) for recipe in missing):
            same = [recipe for recipe in missing if (recipe.method, recipe.scale) == (method, scale)]
            shares = [recipe.mean_shift_share for recipe in same]
            changes = self.predictor.changes(self.design, method, shares, scale=scale)
            self._known.update(zip(same, changes, strict=True))
        return [self._known[recipe] for recipe in recipes]

    def accuracy(self, change_g: np.ndarray) -> Accuracy:
        """Compare a predicted change with the observed change."""
        return accuracy(change_g, self.true_g, self.top)

    def check(self, recipe: Recipe) -> Check:
        """Measure the accuracy of a recipe and of the baselines."""
        design, observed = self.design, self.predictor.observed
        mean_change_g, additive_g = observed.mean_change(design), observed.additive(design)
        return Check(
            group=design.group,
            treated=design.treated,
            n_control=len(design.rows(design.group, design.control)),
            n_treated=len(design.rows(design.group, design.treated)),
            predicted=self.accuracy(self.changes([recipe])[0]),
            mean_change=None if mean_change_g is None else self.accuracy(mean_change_g),
            additive=None if additive_g is None else self.accuracy(additive_g),
            held_out=self.held_out,
        )


def retrained_trials(
    model: Model,
    counts: Counts,
    designs: Sequence[Design],
    *,
    follow: Callable[[str, Iterator[FitEvent]], FitEvent | None] = last_event,
) -> list[Trial]:
    """Train, for each group, a new model without the group's treated cells.

    The new models have the same genes and settings as the given model. If the counts hold labels, the new models are
    trained with the labels of their training cells. The function `follow` receives a title and the
    events of a training. `follow` must run the training to its end and return the last event.

    Raises
    ------
    DataError
        If the model has batches and the data has no batches. The errors of `fit` are raised, too.
    """
    if model.conditioned and counts.batch is None and counts.covariates is None:
        data = model.config.data
        named = {"--batch-key": data.batch_keys, "--continuous-key": data.continuous_keys}
        flags = " ".join(f"{flag} {key}" for flag, keys in named.items() for key in keys)
        columns = ", ".join(f"obs[{key!r}]" for keys in named.values() for key in keys)
        raise DataError(
            f"--retrain needs the batches of the cells, because the model was trained with {flags}",
            f"add the batch of every cell to the data, in the column {columns}",
        )
    config = model.config.of_all_genes()
    data, compute = replace(config.data, drop_empty=True), replace(config.compute, device=str(model.device))
    config = replace(config, data=data, compute=compute)
    found = []
    for design in designs:
        kept = np.ones(counts.n_cells, dtype=bool)
        kept[design.rows(design.group, design.treated)] = False
        # The labels of the left-out cells are left out too, because the labels are stored with the counts.
        learned = with_learnable_labels(counts.cells(kept), config)
        last = follow(f"without {design.treated} {design.group}", fit(learned, config))
        assert isinstance(last, Finished), "this training cannot be stopped early"
        last.model.vae.to(model.device)
        found.append(Trial(predictor=Predictor.of(last.model, counts), design=design, held_out=True))
    return found


def choose(trials: Sequence[Trial], recipes: Sequence[Recipe]) -> Recipe:
    """Choose the recipe with the best mean score over some groups, or the first recipe if there are no groups.

    If the models were trained without the treated cells, the recipe gets the scale with the smallest squared error over
    the groups. If the models were trained on the treated cells, the scale is 1, because such models do not show how
    much the changes of new cells are underestimated.
    """
    if not trials:
        return recipes[0]
    predicted = [trial.changes(recipes) for trial in trials]
    scaled, scores = [], []
    for r, recipe in enumerate(recipes):
        changes = [change_rg[r] for change_rg in predicted]
        scale = _scale(changes, trials) if all(trial.held_out for trial in trials) else 1.0
        scaled.append(replace(recipe, scale=scale))
        found = (trial.accuracy(scale * change_g).score for trial, change_g in zip(trials, changes, strict=True))
        scores.append(float(np.mean(list(found))))
    return scaled[int(np.argmax(np.round(scores, 6)))]


def _scale(changes: Sequence[np.ndarray], trials: Sequence[Trial]) -> float:
    """Compute the scale with the least squared error; every group has the same weight, even if its changes are small.

    The scale is computed from the most significant genes alone. With all genes, errors of the prediction in unchanged
    genes would make the scale too small. A scale learned from few groups is uncertain, so the scale is shrunk to 1 as
    if one more group had the scale 1.
    """
    scales = []
    for change_g, trial in zip(changes, trials, strict=True):
        predicted_t, true_t = change_g[trial.top], trial.true_g[trial.top]
        squared = float(predicted_t @ predicted_t)
        scales.append(float(predicted_t @ true_t) / squared if squared > 0 else 1.0)
    return float(np.clip((sum(scales) + 1) / (len(scales) + 1), *_SCALES))


def checked(trials: Sequence[Trial], recipes: Sequence[Recipe]) -> list[Check]:
    """Measure, in each group, the accuracy of the recipe that is most accurate in the other groups.

    If there is only one group, the recipe is both chosen and evaluated in this group.
    """
    found = []
    for i, trial in enumerate(trials):
        others = [*trials[:i], *trials[i + 1 :]] or [trial]
        found.append(trial.check(choose(others, recipes)))
    return found


def mean_is_better(checks: Sequence[Check]) -> bool:
    """Whether the mean change of the other groups has a higher mean score in the checked groups than the prediction."""
    gains = [check.predicted.score - check.mean_change.score for check in checks if check.mean_change is not None]
    return bool(gains) and float(np.mean(gains)) < 0


def relative_agreement(predictor: Predictor, design: Design, checks: Sequence[Design], method: str) -> float:
    """Compute the agreement of model and mean shift in a group, relative to the agreement in the checked groups.

    The mean shift is the average observed change of expression from control to treated cells in the other groups.

    A model may place the treated cells of each group anywhere in latent space. The decoder may then give arbitrary
    expression for shifted cells of another group, and no test on the training cells can show this error. The agreement
    in a group is the correlation between the change that the model predicts and the mean shift. The result is the
    agreement in the group of `design`, divided by the mean agreement in the checked groups. Without checked groups, the
    result is the correlation itself. If the mean agreement in the checked groups is not positive, the result is 0.
    """
    known = [predictor.agreement(check, method) for check in checks]
    usual = float(np.mean(known)) if known else 1.0
    return predictor.agreement(design, method) / usual if usual > 0 else 0.0
