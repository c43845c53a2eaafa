"""Perturbations for the Python API and the command line: what is asked for, checked once, and put to a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scvae_cli.data.new_cells import NewCells, check_output
from scvae_cli.data.slots import DEFAULT_KEY, Slot, SlotNames
from scvae_cli.errors import ConfigError, ModelError
from scvae_cli.model.bundle import Model
from scvae_cli.session import Session
from scvae_cli.tools.perturb.design import Design, design, refuse_explained_away
from scvae_cli.tools.perturb.leave_one_group_out import left_out
from scvae_cli.tools.perturb.prediction import Predictor, predict
from scvae_cli.tools.perturb.result import Perturbation
from scvae_cli.tools.perturb.validation import AUTO, CARRIED, attempt, candidates, carried_over, choose
from scvae_cli.training.fit import FitEvent, last_event

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["PerturbRequest", "perturb"]


class Asked(NamedTuple):
    """A result, and what it was made with, for pictures."""

    result: Perturbation
    predictor: Predictor
    design: Design


@dataclass(frozen=True, kw_only=True)
class PerturbRequest:
    """What is asked for; refuses what cannot be meant together.

    Parameters
    ----------
    perturbation_key, control, treated
        Column of obs that says what was done to a cell, and its labels for nothing and for what is to be done. Labels
        with plus signs between name a combination.
    groupby, group
        Column of obs that names populations, and the one asked about.
    method
        "centroid", "ot", or "auto" for whichever does better where the answer is known.
    counts
        Draw the predicted cells' counts instead of telling what they average to.
    retrain
        Train a model without each checked group's treated cells.
    seed
        Of the counts drawn.

    Raises
    ------
    ConfigError
        For options that cannot be meant, alone or together.
    """

    perturbation_key: str
    control: str
    treated: str
    groupby: str
    group: str
    method: str = AUTO
    counts: bool = False
    retrain: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.perturbation_key == self.groupby:
            raise ConfigError(
                f"--perturbation-key and --groupby are both {self.groupby!r}",
                "one column says what was done to a cell, the other what kind of cell it is",
            )
        if self.seed < 0:
            raise ConfigError(f"--seed is {self.seed}", "it takes a whole number, 0 or above")
        candidates(self.method, unseen=self.retrain)

    def design(self, session: Session) -> Design:
        """Which cells it is learned from.

        Raises
        ------
        DataError, ConfigError
            As `scvae_cli.tools.perturb.design.design`.
        ModelError
            For a model that takes the perturbation for a batch effect.
        """
        key = session.model.config.data.batch_key
        if session.model.batches and key == self.perturbation_key:
            raise ModelError(
                f"the model was trained with --batch-key {key}, so to it the perturbation is a batch effect",
                "train a model without it: scvae train DATA -m OTHER.scvae",
            )
        session.places([self.group], groupby=self.groupby)
        result = design(
            self.group,
            self.control,
            self.treated,
            group_n=session.labels(self.groupby),
            label_n=session.labels(self.perturbation_key),
            perturbation_key=self.perturbation_key,
        )
        refuse_explained_away(result, session.counts_and_batches().batch, key)
        return result

    def answer(
        self,
        session: Session,
        *,
        follow: Callable[[str, Iterator[FitEvent]], FitEvent | None] = last_event,
    ) -> Asked:
        """Put it to a model and cells; counts are made when the result's blocks are walked through.

        Raises
        ------
        ScvaeError
            As `design`, or `left_out`.
        """
        asked = self.design(session)
        counts = session.counts_and_batches()
        predictor = Predictor.of(session.model, counts)
        recipes = candidates(self.method, unseen=self.retrain, own=asked.own)
        others = asked.checks()
        # The answer for the group itself is told where it is known, but has no part in the choice.
        designs = [*others, *([asked] if asked.observed else [])]
        if self.retrain:
            trials = left_out(session.model, counts, designs, recipes, follow=follow)
        else:
            trials = [attempt(predictor, known, recipes, unseen=False) for known in designs]
        recipe = choose(trials[: len(others)], recipes)
        carried = None
        if not self.retrain and not asked.own:
            carried = carried_over(predictor, asked, others, recipe.method)
            recipe = recipe if carried >= CARRIED else replace(recipe, plain=1.0)
        checks = [trial.checks[recipe] for trial in trials]
        result = predict(
            predictor,
            asked,
            recipe,
            checks=checks[: len(others)],
            own=checks[-1] if asked.observed else None,
            carried=carried,
            drawn=self.counts,
            seed=self.seed,
        )
        return Asked(result, predictor, asked)

    def new_cells(self, session: Session, result: Perturbation, names: SlotNames) -> NewCells:
        """The result as cells of an AnnData of their own: obs is the control cells', but for what was done to them."""
        slots = [*self._obs(session, result), *result.slots(names)]
        options = asdict(self) | asdict(result.recipe)
        dense = not (self.counts and session.model.of_counts)
        run = f"perturb_{result.name}"
        return NewCells(
            cell_names=np.asarray([f"{cell}_{result.treated}" for cell in session.counts.cell_names[result.cells]]),
            gene_names=result.genes,
            blocks=result.blocks,
            dense=dense,
            slots=[*slots, session.record(slots, names=names, run=run, options=options, new_file=True)],
        )

    def _obs(self, session: Session, result: Perturbation) -> Iterator[Slot]:
        for key in session.store.obs_keys:
            if key == self.perturbation_key:
                yield Slot(group="obs", key=key, value=pd.Categorical([result.treated] * len(result.cells)))
                continue
            values = session.store.obs_column(key)[session.kept][result.cells]
            if values.dtype.kind not in "biuf":
                missing = pd.isna(values)
                texts = [None if none else str(value) for value, none in zip(values, missing, strict=True)]
                values = pd.Categorical(texts)
            yield Slot(group="obs", key=key, value=values)


def perturb(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    perturbation_key: str,
    control: str,
    treated: str,
    groupby: str,
    group: str,
    method: str = AUTO,
    counts: bool = False,
    retrain: bool = False,
    seed: int = 0,
    key_added: str = DEFAULT_KEY,
    layer: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    output: Path | str | None = None,
    force: bool = False,
    device: str = "auto",
) -> AnnData | None:
    """Predict what a group's control cells would express if something were done to them.

    Parameters
    ----------
    data, model
        Cells × genes, and a model or its folder.
    perturbation_key, control, treated, groupby, group, method, counts, retrain, seed
        As for `PerturbRequest`.
    key_added, layer, allow_missing_genes, drop_empty, device
        As for `embed`.
    output, force
        Write the predicted cells to this .h5ad, in blocks, and return None; replace an existing file.

    Returns
    -------
    The predicted cells as an AnnData, without `output`: changes of the genes in var, how well the same prediction
    does in groups whose answer is known in `uns["scvae"]["perturbations"]`.

    Raises
    ------
    ScvaeError
        For options that cannot be meant, or when there is nothing to learn from.
    """
    request = PerturbRequest(
        perturbation_key=perturbation_key,
        control=control,
        treated=treated,
        groupby=groupby,
        group=group,
        method=method,
        counts=counts,
        retrain=retrain,
        seed=seed,
    )
    target = None
    if output is not None:
        target = check_output(Path(output), Path(data) if isinstance(data, str) else data, force=force)
    session = Session.open(
        data, model, layer=layer, device=device, allow_missing_genes=allow_missing_genes, drop_empty=drop_empty
    )
    cells = request.new_cells(session, request.answer(session).result, SlotNames(key_added=key_added))
    if target is None:
        return cells.in_memory()
    cells.write(target, force=force)
    return None
