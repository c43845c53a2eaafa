"""The steps of `map`, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from scvae_cli.model.bundle import Model, check_new_model, load
from scvae_cli.question import Question
from scvae_cli.session import Session
from scvae_cli.shell_line import shell_line
from scvae_cli.tools.map.counterparts import FOREIGN_DIFFERENCE, counterpart_p
from scvae_cli.tools.map.options import MapOptions
from scvae_cli.tools.map.result import Mapped
from scvae_cli.training.mapping import map_batches
from scvae_cli.verb import Request

# Column of obs for the batches, if neither the model nor the user names a column.
USUAL_KEY = "batch"
# Number of cells of a new batch below which batch effects are known only for the most abundant genes.
FEW_CELLS = 50
# Share of cells without a counterpart above which the cells are probably of another tissue.
FOREIGN_SHARE = 0.5
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of the cells.

    Parameters
    ----------
    key, name_n
        Column of obs in which the new model looks for batches, and the batch of each cell, shape (n,).
    is_written
        Whether the batches are written to this column, because obs has no such column or another one is used.
    """

    key: str
    name_n: np.ndarray
    is_written: bool


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
        self.batches = _batches(self.session, self.options)
        if self.batches.key in (self.names.counterpart_p, self.names.no_counterpart):
            raise DataError(
                f"{self.session.store.title}: map writes its result to the column {self.batches.key!r}, from which the "
                "new model would read the batches",
                "rename the column of the batches, or use --key-added NAME to write the result under another name",
            )
        _check_new(self.session, self.batches.name_n, self.options.reference_batch)

    def planned(self) -> list[str]:
        added = [f"obs/{self.batches.key}"] if self.batches.is_written else []
        return [f"obs/{self.names.counterpart_p}", f"obs/{self.names.no_counterpart}", *added]

    def answer(self) -> Mapped:
        return mapped(self.session, self.batches, self.options)

    def slots(self, result: Mapped) -> list[Slot]:
        slots = result.slots(self.names, self.options.false_alarms)
        if self.batches.is_written:
            slots.append(Slot(group="obs", key=result.batch_key, value=pd.Categorical(result.batch_n)))
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
            f"training cells; up to about {100 * facts['false_alarms']:g}% are expected even if all types are known"
        )
        return "\n".join(lines)

    def places(self, slots: list[str]) -> Sequence[str]:
        return (str(self.options.output), *super().places(slots))

    def next_step(self, result: Mapped) -> str:
        command = "embed" if result.model.labels is None else "annotate"
        return shell_line(command, self.options.cells or self.request.data, m=self.options.output)


def mapped(session: Session, batches: Batches, options: MapOptions) -> Mapped:
    """Map the batches that the model lacks, and compare the cells with those of the training."""
    model, reference, batch_n = session.model, options.reference_batch, batches.name_n
    new = _new(model, batch_n, reference)
    counts = replace(session.counts, batch=batch_n)
    some = counts.cells(positions_in(new, batch_n) >= 0)
    missing, progress = session.missing_genes, session.progress
    found = map_batches(
        model, some, new, reference=reference, seed=options.seed, missing=missing, progress=progress
    )  # fmt: skip
    difference = dict(zip(new, found.difference_b, strict=True))
    run = {
        "reference": model.hash,
        "batches": dict(zip(new, found.n_cells_b, strict=True)),
        "differences": difference,
        "seconds": round(found.seconds, 2),
    }
    config = replace(model.config, data=replace(model.config.data, batch_key=(batches.key,)))
    facts = model.facts | {"mapped": [*model.facts.get("mapped", []), run]}
    model = replace(model, vae=found.vae, config=config, facts=facts, hash="")
    return Mapped(
        model=model,
        batch_key=batches.key,
        batch_n=batch_n,
        new=new,
        n_cells_b=found.n_cells_b,
        difference_b=found.difference_b,
        counterpart_p=counterpart_p(model, counts, difference, seed=options.seed, progress=progress),
        seconds=found.seconds,
    )


def _new(model: Model, batch_n: np.ndarray, reference: str) -> tuple[str, ...]:
    """List the batches of the cells that the model lacks."""
    return tuple(sorted(set(batch_n) - set(model.batches or (reference,))))


def _check_new(session: Session, batch_n: np.ndarray, reference: str) -> None:
    """Refuse cells without a new batch."""
    if not _new(session.model, batch_n, reference):
        raise DataError(
            f"{session.store.title}: the model already has all batches of the cells ({_shown(sorted(set(batch_n)))})",
            "use these cells without map, for example with embed; if they come from other batches of the "
            "same names, rename the batches",
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


def _batches(session: Session, options: MapOptions) -> Batches:
    """Return the batches of the cells, and the column in which the new model looks for them."""
    store, model, column = session.store, session.model, options.batch_key
    of_model = next(iter(model.config.data.batch_keys), None) if model.batches else None
    if options.batch is not None:
        key, name_n = of_model or USUAL_KEY, np.full(session.counts.n_cells, options.batch, dtype=object)
        spelled, hint = "--batch was given", f"use --batch-key {key} to read the batches from this column"
    else:
        column = column or of_model
        if column is None:
            raise ConfigError(
                "the batches of the cells are not named",
                "name their column with --batch-key, or one batch with --batch",
            )
        key, name_n = of_model or column, _read(session, column)
        spelled = f"the batches are in obs[{column!r}]"
        hint = f"the model reads batches from obs[{key!r}]: rename that column, or give --force to overwrite it"
    is_written = key != column
    if is_written and key in store.obs_keys and not options.force:
        raise DataError(f"{store.title}: {spelled}, but obs already has a column {key!r}", hint)
    return Batches(key=key, name_n=name_n, is_written=is_written)


def _read(session: Session, column: str) -> np.ndarray:
    """Return the batch of each cell, and refuse cells without one."""
    batch_n = session.labels(column, purpose="--batch-key")
    missing = is_missing(batch_n)
    if missing.any():
        cell = session.counts.cell_names[int(np.flatnonzero(missing)[0])]
        raise DataError(
            f"{session.store.title}: obs[{column!r}] has no value for {amount(int(missing.sum()), 'cell')}; the first "
            f"is {cell!r}",
            f'drop these cells: adata[adata.obs["{column}"].notna()], or fill in the missing values',
        )
    return batch_n


def _warnings(result: Mapped, options: MapOptions) -> list[str]:
    known = sorted(set(result.batch_n) - set(result.new))
    warnings = []
    if known:
        n_known = int((positions_in(known, result.batch_n) >= 0).sum())
        warnings.append(
            f"{amount(n_known, 'cell is', 'cells are')} of batches that the model has already ({_shown(known)}): "
            "these batches were not trained again. If the cells come from other batches of the same names, rename the "
            "batches"
        )
    few = [name for name, n in zip(result.new, result.n_cells_b, strict=True) if n < FEW_CELLS]
    if few:
        warnings.append(
            f"{amount(len(few), 'new batch has', 'new batches have')} fewer than {FEW_CELLS} "
            f"cells ({_shown(few)}): the effects of such batches are uncertain, and shrunk strongly "
            "toward those of the other batches"
        )
    lacking = float(result.lacking(options.false_alarms).mean())
    largest = max(result.difference_b)
    if lacking > FOREIGN_SHARE or largest > FOREIGN_DIFFERENCE:
        warnings.append(
            "the cells may be of another tissue or species, or many of them of types that the training lacks: "
            f"{lacking:.0%} of the cells have no counterpart among the training cells, and gene proportions typically "
            f"differ from those of the training by a factor of up to {np.exp(largest):.1f}"
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
