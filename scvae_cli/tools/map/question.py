"""The steps of `map`, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scvae_cli.amounts import amount
from scvae_cli.data.atomic import resolved
from scvae_cli.data.labels import positions_in
from scvae_cli.data.obs_columns import is_missing
from scvae_cli.data.slots import Slot
from scvae_cli.errors import ConfigError, DataError, ModelError, one_line
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.bundle import Model, check_new_model, load
from scvae_cli.question import Question
from scvae_cli.session import Session
from scvae_cli.shell_line import shell_line
from scvae_cli.tools.map.counterparts import UNEXPLAINED, counterpart_p, unexplained_share
from scvae_cli.tools.map.options import MapOptions
from scvae_cli.tools.map.result import Mapped
from scvae_cli.training.mapping import map_batches
from scvae_cli.verb import Request

# Column of obs for the batches, if neither the model nor the user names a column.
USUAL_KEY = "batch"
# Number of cells of a new batch below which batch effects are known only for the most abundant genes.
FEW_CELLS = 50
# Share of cells without a counterpart, or not explained by the model, above which the cells are probably of another
# tissue.
FOREIGN_SHARE = 0.5
# Typical difference between the log proportions of genes in new cells and in training cells above which the new cells
# are probably of another tissue. Between technologies, conditions or donors, the largest typical difference observed is
# about 0.8.
FOREIGN_DIFFERENCE = 1.0
_SHOWN = 3


class Map(Question[MapOptions, Mapped]):
    """Map new batches onto a trained model, which gives a new model. The command also saves the new model."""

    @classmethod
    def check_files(cls, request: Request) -> None:
        if request.reported:
            _check_folders(request)

    def prepare(self) -> None:
        if not self.session.model.of_counts:
            raise ModelError("the model describes real numbers", "new batches can be mapped only onto models of counts")
        if self.session.model.vae.design is not None:
            raise ModelError(
                "the model has several covariates",
                "new batches can be mapped only onto models with at most one covariate, a batch key",
            )
        self.batch_key, self.batch_n = _batches(self.session, self.options)

    def planned(self) -> list[str]:
        added = [] if self.options.batch is None else [f"obs/{self.batch_key}"]
        return [f"obs/{self.names.counterpart_p}", f"obs/{self.names.no_counterpart}", *added]

    def answer(self) -> Mapped:
        return mapped(self.session, self.batch_key, self.batch_n, self.options)

    def slots(self, result: Mapped) -> list[Slot]:
        slots = result.slots(self.names, self.options.false_alarms)
        if self.options.batch is not None:
            slots.append(Slot(group="obs", key=self.batch_key, value=pd.Categorical(self.batch_n)))
        return slots

    def destination(self) -> Path | None:
        return self.options.cells

    def write(self, result: Mapped) -> list[str]:
        model, folder = result.model, self.options.output
        if folder is not None:
            model.save(folder, force=self.options.force)
            model = load(folder)  # a model has a hash only after it was loaded
        # The record of this run in the file names the new model, because later results in this file may come from the
        # new model.
        self.session = replace(self.session, model=model)
        return super().write(result)

    def value(self, result: Mapped) -> Model:
        return result.model

    def warnings(self, result: Mapped) -> Sequence[str]:
        return _warnings(result, self.options)

    def facts(self, result: Mapped) -> dict[str, Any]:
        lacking, options = result.lacking(self.options.false_alarms), self.options
        return {
            "model": str(options.output),
            "reference": str(self.request.model),
            "batch_key": result.batch_key,
            "new_batches": dict(zip(result.new, result.n_cells_b, strict=True)),
            "differences": dict(zip(result.new, result.difference_b, strict=True)),
            "n_cells": len(lacking),
            "no_counterpart": int(lacking.sum()),
            "false_alarms": options.false_alarms,
            "unexplained": result.unexplained,
            "seconds": round(result.seconds, 2),
        }

    def text(self, result: Mapped, facts: dict[str, Any]) -> str:
        batches = amount(len(result.new), "new batch")
        lines = [f"mapped {batches} in {result.seconds:.1f} s"]
        for name, n, difference in zip(result.new, result.n_cells_b, result.difference_b, strict=True):
            lines.append(f"  {one_line(name)}: {amount(n, 'cell')}; {_described(difference)}")
        share = facts["no_counterpart"] / facts["n_cells"]
        lines.append(
            f"{facts['no_counterpart']:,} of {facts['n_cells']:,} cells ({share:.1%}) have no counterpart among the "
            f"training cells; {facts['false_alarms']:.1%} would be reported by chance"
        )
        lines.append(
            f"{result.unexplained:.1%} of the cells fit the model worse than {1 - UNEXPLAINED:.0%} of the cells that "
            f"the model simulates; {UNEXPLAINED:.0%} are expected by chance"
        )
        return "\n".join(lines)

    def places(self, slots: list[str]) -> Sequence[str]:
        return (str(self.options.output), *super().places(slots))

    def next_step(self, result: Mapped) -> str:  # noqa: ARG002  # the next step is the same after every mapping
        return shell_line("embed", self.options.cells or self.request.data, m=self.options.output)


def mapped(session: Session, key: str, batch_n: np.ndarray, options: MapOptions) -> Mapped:
    """Map the batches that the model lacks, and compare the cells with those of the training.

    `key` is the column of the batches, and `batch_n` holds the batch of each cell.
    """
    model, reference = session.model, options.reference_batch
    known = model.batches or (reference,)
    new = tuple(sorted(set(batch_n) - set(known)))
    counts = replace(session.counts, batch=batch_n)
    n_cells_b: tuple[int, ...] = ()
    difference_b: tuple[float, ...] = ()
    seconds = 0.0
    if new:
        some = counts.cells(positions_in(new, batch_n) >= 0)
        found = map_batches(
            model,
            some,
            new,
            reference=reference,
            seed=options.seed,
            missing=session.missing_genes,
            progress=session.progress,
        )
        n_cells_b, difference_b, seconds = found.n_cells_b, found.difference_b, found.seconds
        run = {
            "reference": model.hash,
            "batches": dict(zip(new, n_cells_b, strict=True)),
            "differences": dict(zip(new, difference_b, strict=True)),
            "seconds": round(seconds, 2),
        }
        config = replace(model.config, data=replace(model.config.data, batch_key=(key,)))
        facts = model.facts | {"mapped": [*model.facts.get("mapped", []), run]}
        model = replace(model, vae=found.vae, config=config, facts=facts, hash="")
    mean_nk = posteriors(model, counts, progress=session.progress).mean_nk
    return Mapped(
        model=model,
        batch_key=key,
        batch_n=batch_n,
        new=new,
        n_cells_b=n_cells_b,
        difference_b=difference_b,
        counterpart_p=counterpart_p(model.density, mean_nk),
        unexplained=unexplained_share(model, counts, seed=options.seed),
        seconds=seconds,
    )


def _check_folders(request: Request) -> None:
    output = request.options.output
    if request.model is None:
        raise ConfigError("there is no model to map onto", "name the model folder with -m REFERENCE.scvae")
    if output is None:
        raise ConfigError("the new model needs a folder", "name the folder with -o NEW.scvae")
    if output.resolve() == Path(request.model).resolve():
        raise ConfigError(f"-o is {output}, the model to map onto", "choose another folder for the new model")
    cells = request.options.cells
    for folder in (output, Path(request.model)):
        if cells is not None and folder.resolve() in (resolved(cells), *resolved(cells).parents):
            raise ConfigError(
                f"--cells is {cells}, in the model folder {folder}", "choose a file outside of this folder"
            )
    check_new_model(output, force=request.options.force, spelled="-o")


def _described(difference: float) -> str:
    """Describe how much the gene proportions of a batch differ from those of the training."""
    if not difference:
        return "gene proportions differ from those of the training by no more than chance"
    return (
        f"gene proportions typically differ from those of the training by a factor of {np.exp(difference):.2f} "
        f"(a factor above {np.exp(FOREIGN_DIFFERENCE):.1f} suggests another tissue or species)"
    )


def _batches(session: Session, options: MapOptions) -> tuple[str, np.ndarray]:
    """Return the column of the batches, and the batch of each cell."""
    store, model = session.store, session.model
    of_model = next(iter(model.config.data.batch_keys), None) if model.batches else None
    if of_model is not None and options.batch_key not in (None, of_model):
        raise ConfigError(
            f"--batch-key is {options.batch_key!r}, but the model was trained with --batch-key {of_model}",
            f"put the batches into a column with the name {of_model!r}",
        )
    if options.batch is not None:
        key = of_model or USUAL_KEY
        if key in store.obs_keys and not options.force:
            raise DataError(
                f"{store.title}: --batch was given, but obs already has a column {key!r}",
                f"use --batch-key {key} to read the batches from this column",
            )
        return key, np.full(session.counts.n_cells, options.batch, dtype=object)
    key_given = options.batch_key or of_model
    if key_given is None:
        raise ConfigError(
            "the batches of the cells are not named",
            "name the column of the batches with --batch-key, or a single batch with --batch",
        )
    batch_n = session.labels(key_given, purpose="--batch-key")
    missing = is_missing(batch_n)
    if missing.any():
        cell = session.counts.cell_names[int(np.flatnonzero(missing)[0])]
        raise DataError(
            f"{store.title}: obs[{key_given!r}] has no value for {amount(int(missing.sum()), 'cell')}; the first "
            f"is {cell!r}",
            f'drop these cells: adata[adata.obs["{key_given}"].notna()], or fill in the missing values',
        )
    return key_given, batch_n


def _warnings(result: Mapped, options: MapOptions) -> list[str]:
    known = sorted(set(result.batch_n) - set(result.new))
    warnings = []
    if known:
        n_known = int((positions_in(known, result.batch_n) >= 0).sum())
        fate = (
            "these batches were not trained again"
            if result.new
            else "there are no new batches, so the model was not changed"
        )
        warnings.append(
            f"{amount(n_known, 'cell is', 'cells are')} of batches that the model has already ({_shown(known)}): "
            f"{fate}. If the cells come from other batches of the same names, rename the batches"
        )
    few = [name for name, n in zip(result.new, result.n_cells_b, strict=True) if n < FEW_CELLS]
    if few:
        warnings.append(
            f"{amount(len(few), 'new batch has', 'new batches have')} fewer than {FEW_CELLS} "
            f"cells ({_shown(few)}): the effects of such batches are uncertain, and shrunk strongly "
            "toward those of the other batches"
        )
    lacking = float(result.lacking(options.false_alarms).mean())
    largest = max(result.difference_b, default=0.0)
    if result.new and (max(lacking, result.unexplained) > FOREIGN_SHARE or largest > FOREIGN_DIFFERENCE):
        warnings.append(
            f"the cells may be of another tissue or species, which this model does not describe: {lacking:.0%} of them "
            f"have no counterpart among the training cells, the model does not explain the counts of "
            f"{result.unexplained:.0%}, and gene proportions typically differ from those of the training by a factor "
            f"of up to {np.exp(largest):.1f}"
        )
    n_heldout = len(result.model.density.heldout_nll)
    if 1 / (1 + n_heldout) > options.false_alarms:
        warnings.append(
            f"the model has too few held-out cells ({n_heldout}) for a rate of false alarms of "
            f"{options.false_alarms:g}, so no cell can be reported"
        )
    return warnings


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
