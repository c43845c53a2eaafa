"""A perturbation predicted by models that were trained without the answer: one training for every group left out.

Shapes: n cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.errors import DataError
from scvae_cli.model.bundle import Model
from scvae_cli.tools.perturb.design import Design
from scvae_cli.tools.perturb.prediction import Predictor
from scvae_cli.tools.perturb.result import Recipe
from scvae_cli.tools.perturb.validation import Trial, assess
from scvae_cli.training.fit import Finished, FitEvent, fit, last_event


def retrained_trials(
    model: Model,
    counts: Counts,
    designs: Sequence[Design],
    recipes: Sequence[Recipe],
    *,
    follow: Callable[[str, Iterator[FitEvent]], FitEvent | None] = last_event,
) -> list[Trial]:
    """Train without the treated cells of each group, and predict them.

    Parameters
    ----------
    model
        The trainings use its genes and settings.
    counts
        n cells in the model's genes; with batches if the model has any.
    designs
        Designs of groups that have treated cells.
    recipes
        Recipes to try on each group.
    follow
        Runs a training, given a title and its events, and returns the last event.

    Raises
    ------
    DataError
        When the model has batches and the data does not, or as `fit`.
    """
    if model.batches and counts.batch is None:
        key = model.config.data.batch_key
        raise DataError(f"the model was trained with --batch-key {key}", f"training needs that column: obs[{key!r}]")
    trials = []
    for design in designs:
        kept = np.ones(counts.n_cells, dtype=bool)
        kept[design.rows(design.group, design.treated)] = False
        last = follow(f"without {design.treated} {design.group}", fit(counts.cells(kept), _config(model)))
        assert isinstance(last, Finished), "a training that cannot be stopped ends finished"
        last.model.vae.to(model.device)
        trials.append(assess(Predictor.of(last.model, counts), design, recipes, held_out=True))
    return trials


def _config(model: Model) -> RunConfig:
    config = model.config.of_all_genes()
    data = replace(config.data, drop_empty=True)
    return replace(config, data=data, compute=replace(model.config.compute, device=str(model.device)))
