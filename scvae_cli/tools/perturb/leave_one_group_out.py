"""A perturbation predicted by models that have never seen the answer: one training for every group that is left out.

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
from scvae_cli.tools.perturb.validation import Trial, attempt
from scvae_cli.training.fit import Finished, FitEvent, fit, last_event


def left_out(
    model: Model,
    counts: Counts,
    designs: Sequence[Design],
    recipes: Sequence[Recipe],
    *,
    follow: Callable[[str, Iterator[FitEvent]], FitEvent | None] = last_event,
) -> list[Trial]:
    """Train without each group's treated cells, and predict them.

    Parameters
    ----------
    model
        Its genes and settings are those of the trainings.
    counts
        n cells in its genes; with batches if the model knows any.
    designs
        Of groups that have treated cells.
    recipes
        To try on each.
    follow
        Walks through the events of the training without a group, and returns the last.

    Raises
    ------
    DataError
        When the model knows batches and the data doesn't, or as `fit`.
    """
    if model.batches and counts.batch is None:
        key = model.config.data.batch_key
        raise DataError(f"the model was trained with --batch-key {key}", f"training needs that column: obs[{key!r}]")
    trials = []
    for design in designs:
        kept = np.ones(counts.n_cells, dtype=bool)
        kept[design.rows(design.group, design.treated)] = False
        last = follow(f"without {design.treated} {design.group}", fit(counts.cells(kept), _config(model)))
        assert isinstance(last, Finished), "nobody asked the training to stop"
        last.model.vae.to(model.device)
        trials.append(attempt(Predictor.of(last.model, counts), design, recipes, unseen=True))
    return trials


def _config(model: Model) -> RunConfig:
    config = model.config.of_all_genes()
    data = replace(config.data, drop_empty=True)
    return replace(config, data=data, compute=replace(model.config.compute, device=str(model.device)))
