"""Implementation of `train` for the command line and for Python."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scvae_cli.amounts import amount
from scvae_cli.data.formats import ForeignFile, open_store
from scvae_cli.data.gene_names import gene_names
from scvae_cli.errors import DataError, Interrupted
from scvae_cli.model.bundle import Model, check_new_model
from scvae_cli.path_names import FOR_A_MODEL, refuse_long_name
from scvae_cli.question import Outcome, Report, Shell
from scvae_cli.shell_line import shell_line
from scvae_cli.tools.train.labels import with_labels
from scvae_cli.tools.train.options import TrainOptions
from scvae_cli.training.checkpoint import Checkpoint, only_training
from scvae_cli.training.fit import Finished, FitEvent, Stopped, fit
from scvae_cli.training_counts import counts_for_training, session_of_training
from scvae_cli.training_progress import follow
from scvae_cli.verb import Request


def train(request: Request, shell: Shell) -> Outcome:
    """Train a model; on the command line, also save the model.

    Raises
    ------
    DataError, ModelError, DeviceError
        If the data cannot be used, the model cannot be written or resumed, or the device cannot be used.
    Interrupted
        If the user stopped the training; the state of the training is saved next to the model folder.
    """
    options: TrainOptions = request.options
    run, folder = options.training, request.model_folder if request.inplace else None
    store = open_store(request.data, genome=run.data.genome, modality=run.data.modality)
    foreign = isinstance(store, ForeignFile)
    with contextlib.ExitStack() as alone:
        if folder is not None:
            refuse_long_name(folder, reserve=FOR_A_MODEL)
            check_new_model(folder, force=options.force)
            alone.enter_context(only_training(folder))
        counts = counts_for_training(store, run, shell)
        with shell.stoppable() as stop_requested:
            events = fit(
                counts,
                run,
                names=gene_names(store, run.data.gene_symbols),
                model_folder=folder,
                resume=options.resume,
                stop_requested=stop_requested,
            )
            # Only the training keeps a reference to the counts now, so the training can free the counts of genes that
            # are not modeled.
            del store, counts
            last = follow(events if options.on_event is None else _heard(events, options.on_event), shell)
        if isinstance(last, Stopped):
            raise Interrupted(f"interrupted after epoch {last.epoch}", "run the same command with --resume to continue")
        assert isinstance(last, Finished), "a training either finishes or is stopped"
        model = last.model
        if run.data.labels_key is not None:
            try:
                model = with_labels(session_of_training(model, request.data, shell))
            except DataError as error:
                # For example, few labeled cells may be left. The trained model is saved without classifiers.
                shell.warn(f"the model has no classifiers of labels: {error.message}")
        if folder is not None:
            model.save(folder, force=options.force)
            Checkpoint(folder, "").discard()
    return Outcome(value=model, report=lambda: _report(model, request, foreign=foreign), warnings=_warnings(model))


def _heard(events: Iterator[FitEvent], on_event: Callable[[FitEvent], None]) -> Iterator[FitEvent]:
    for event in events:
        on_event(event)
        yield event


def _report(model: Model, request: Request, *, foreign: bool) -> Report:
    keys = ("epochs", "seconds", "heldout_elbo", "active_units", "n_cells", "n_genes")
    facts: dict[str, Any] = {"model": str(request.model_folder)} | {key: model.facts[key] for key in keys}
    active = f"{facts['active_units']} of {model.vae.n_latent} latent dimensions active"
    length = f"{amount(facts['epochs'], 'epoch')} in {facts['seconds']:.1f} s"
    data = request.data
    chosen = request.options.training.data
    return Report(
        facts=facts,
        text=f"held-out ELBO {facts['heldout_elbo']:.2f} nats per cell after {length}; {active}\n→ {facts['model']}",
        next_step=shell_line(
            "embed",
            data,
            m=request.model,
            o=_new_file(data, chosen.modality) if foreign else None,
            drop_empty=chosen.drop_empty,
        ),
    )


def _new_file(data: Path, modality: str | None) -> str:
    """Name a new .h5ad file for the results, because the format of the data cannot store results."""
    name = f"{data.stem}.h5ad" if modality is None else f"{data.stem}_{modality}.h5ad"
    return name if name != data.name else f"{data.stem}_scvae.h5ad"


def _warnings(model: Model) -> list[str]:
    """Return a warning if the posterior has collapsed; the list is empty if any latent dimension is active."""
    if model.facts["active_units"]:
        return []
    return [
        "posterior collapse: the latent space contains no information about the cells. Lower --beta, train longer "
        "(--max-epochs), or check that the cells differ from each other"
    ]
