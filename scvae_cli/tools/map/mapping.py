"""`map` for the command line and for Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scvae_cli.data.counts import is_missing
from scvae_cli.data.labels import positions_in
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import ConfigError, DataError, ModelError
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.bundle import Model, check_new_model, load
from scvae_cli.question import Outcome, Report, Shell
from scvae_cli.session import Session
from scvae_cli.shell_line import shell_line
from scvae_cli.tools.map.counterparts import UNEXPLAINED, counterpart_p, unexplained_share
from scvae_cli.tools.map.options import MapOptions
from scvae_cli.tools.map.result import Mapped
from scvae_cli.training.mapping import map_batches
from scvae_cli.verb import Request

# Name of the column of the batches, if neither the model nor the user names one.
USUAL_KEY = "batch"
# With fewer cells than this, hardly more than the most abundant genes can be told apart from the reference.
FEW_CELLS = 50
# With a larger share of cells without a counterpart or of unexplained cells, they are probably of another tissue.
FOREIGN_SHARE = 0.5
_SHOWN = 3


def map_query(request: Request, shell: Shell) -> Outcome:
    """Map new batches onto a model; on the command line, save the new model.

    Raises
    ------
    ConfigError
        If the model or the batches are not named, or if the new model would replace the model it comes from.
    DataError, ModelError, DeviceError
        If the data or the model cannot be used, or the results cannot be written.
    """
    options: MapOptions = request.options
    if request.reported:
        _check_folders(request)
    session = Session.open(
        request.data,
        request.model,
        layer=options.layer,
        gene_symbols=options.gene_symbols,
        device=options.device,
        allow_missing_genes=options.allow_missing_genes,
        drop_empty=options.drop_empty,
        maps_batches=True,
        progress=shell.progress,
    )
    if not session.model.of_counts:
        raise ModelError("the model describes real numbers", "new batches can be mapped onto models of counts only")
    key, batch_n = _batches(session, options)
    names = SlotNames(key_added=options.key_added)
    added = [] if options.batch is None else [Slot(group="obs", key=key, value=pd.Categorical(batch_n))]
    planned = [f"obs/{name}" for name in (names.counterpart_p, names.no_counterpart)] + [slot.path for slot in added]
    if request.inplace:
        session.check_destination(planned, names=names, output=options.cells, force=options.force)
    result = mapped(session, key, batch_n, options)
    if request.reported:
        assert options.output is not None, "checked above"
        result.model.save(options.output, force=options.force)
        result = replace(result, model=load(options.output))
    if request.inplace:
        replace(session, model=result.model).write(
            [*result.slots(names, options.false_alarms), *added],
            names=names,
            run="map",
            options=options.record(),
            output=options.cells,
            force=options.force,
        )
    return Outcome(
        value=result.model,
        report=lambda: _report(result, request, planned),
        warnings=_warnings(result, session.model, options),
    )


def mapped(session: Session, key: str, batch_n: np.ndarray, options: MapOptions) -> Mapped:
    """Map the batches that the model lacks, and compare the cells with those of the training.

    `key` and `batch_n` are the column of the batches and the batch of each cell.
    """
    model, reference = session.model, options.reference_batch
    known = model.batches or (reference,)
    new = tuple(sorted(set(batch_n) - set(known)))
    counts, n_cells_b, difference_b, seconds = replace(session.counts, batch=batch_n), (), (), 0.0
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
        config = replace(model.config, data=replace(model.config.data, batch_key=key))
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
        raise ConfigError("there is no model to map onto", "name its folder with -m REFERENCE.scvae")
    if output is None:
        raise ConfigError("the new model needs a folder", "name it with -o NEW.scvae")
    if output.resolve() == Path(request.model).resolve():
        raise ConfigError(f"-o is {output}, the model to map onto", "choose another folder for the new model")
    check_new_model(output, force=request.options.force)


def _batches(session: Session, options: MapOptions) -> tuple[str, np.ndarray]:
    """Return the column of the batches, and the batch of each cell."""
    store, model = session.store, session.model
    of_model = model.config.data.batch_key if model.batches else None
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
                f"use --batch-key {key} to read the batches from it",
            )
        return key, np.full(session.counts.n_cells, options.batch, dtype=object)
    key_given = options.batch_key or of_model
    if key_given is None:
        raise ConfigError(
            "the batches of the cells are not named", "name their column with --batch-key, or one batch with --batch"
        )
    batch_n = session.labels(key_given, purpose="--batch-key")
    missing = is_missing(batch_n)
    if missing.any():
        cell = session.counts.cell_names[int(np.flatnonzero(missing)[0])]
        raise DataError(
            f"{store.title}: obs[{key_given!r}] has no value for {int(missing.sum())} cell(s); the first is {cell!r}",
            f'drop these cells: adata[adata.obs["{key_given}"].notna()], or fill in the missing values',
        )
    return key_given, batch_n


def _warnings(result: Mapped, reference: Model, options: MapOptions) -> list[str]:
    known = sorted(set(result.batch_n) - set(result.new))
    warnings = []
    if known:
        n_known = int((positions_in(known, result.batch_n) >= 0).sum())
        fate = "they were not trained again" if result.new else "nothing is new, so the model stays as it is"
        warnings.append(
            f"{n_known} cell(s) are of batches that the model has already ({_shown(known)}): {fate}. If these are "
            "other batches of the same names, rename them"
        )
    few = [name for name, n in zip(result.new, result.n_cells_b, strict=True) if n < FEW_CELLS]
    if few:
        warnings.append(
            f"{len(few)} new batch(es) have fewer than {FEW_CELLS} cells ({_shown(few)}): their effects are uncertain, "
            "and closer to those of the other batches than they may be in truth"
        )
    lacking = float(result.lacking(options.false_alarms).mean())
    if max(lacking, result.unexplained) > FOREIGN_SHARE:
        warnings.append(
            f"{lacking:.0%} of the cells have no counterpart among the cells of the training, and the model does not "
            f"explain the counts of {result.unexplained:.0%}: the cells may be of another tissue or species, and this "
            "model does not describe them"
        )
    n_heldout = len(reference.density.heldout_nll)
    if 1 / (1 + n_heldout) > options.false_alarms:
        warnings.append(
            f"the model has too few held-out cells ({n_heldout}) for a rate of false alarms of "
            f"{options.false_alarms:g}, so no cell can be reported"
        )
    return warnings


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _report(result: Mapped, request: Request, slots: list[str]) -> Report:
    options: MapOptions = request.options
    lacking = result.lacking(options.false_alarms)
    facts: dict[str, Any] = {
        "model": str(options.output),
        "reference": str(request.model),
        "batch_key": result.batch_key,
        "new_batches": dict(zip(result.new, result.n_cells_b, strict=True)),
        "differences": dict(zip(result.new, result.difference_b, strict=True)),
        "n_cells": len(lacking),
        "no_counterpart": int(lacking.sum()),
        "false_alarms": options.false_alarms,
        "unexplained": result.unexplained,
        "seconds": round(result.seconds, 2),
        "output": str(options.cells or request.data),
        "slots": slots,
    }
    lines = [f"mapped {len(result.new)} new batch(es) in {result.seconds:.1f} s"]
    for name, n, difference in zip(result.new, result.n_cells_b, result.difference_b, strict=True):
        size = f"genes differ by a factor of {np.exp(difference):.2f}, typically"
        lines.append(f"  {name}: {n:,} cells; {size if difference else 'genes differ by no more than chance'}")
    lines.append(
        f"{facts['no_counterpart']:,} of {len(lacking):,} cells ({lacking.mean():.1%}) have no counterpart among the "
        f"cells of the training; {options.false_alarms:.1%} would be reported by chance"
    )
    lines.append(
        f"{result.unexplained:.1%} of the cells fit the model worse than {1 - UNEXPLAINED:.0%} of the cells that it "
        "simulates"
    )
    lines += [f"→ {options.output}", f"→ {', '.join(slots)} of {facts['output']}"]
    return Report(
        facts=facts,
        text="\n".join(lines),
        next_step=shell_line("embed", options.cells or request.data, m=options.output),
    )
