"""Training of a model on raw counts, from splitting the cells and choosing genes to evaluating the trained networks.

Letters in array shapes: n cells, g genes, k latent dimensions.
"""

from __future__ import annotations

import csv
import io
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.gene_names import GeneNames
from scvae_cli.data.gene_selection import select_genes
from scvae_cli.data.minibatches import CellTable
from scvae_cli.device import choose_compute, decide_compiling
from scvae_cli.errors import ModelError, ScvaeWarning
from scvae_cli.model.axes import canonical_axes
from scvae_cli.model.bundle import Model
from scvae_cli.model.density import MAX_FITTED, fit_density
from scvae_cli.model.expression_space import FITTED_CELLS, fit_expression_space
from scvae_cli.model.folder_checks import N_LABELED
from scvae_cli.model.geometry import Geometry
from scvae_cli.model.posterior import ACTIVE_VARIANCE
from scvae_cli.model.probe import FARTHEST
from scvae_cli.training.checkpoint import Checkpoint, run_hash
from scvae_cli.training.loop import EVALUATION_CELLS, EpochReport, Event, Rollback, Trainer
from scvae_cli.training.prepare import (
    Conditions,
    as_modelled,
    labels_to_learn,
    refuse_empty,
    refuse_few,
    refuse_large_network,
    split,
    started,
)
from scvae_cli.training.recipe import settle
from scvae_cli.training.warm_start import refuse_unlike, take_over

CHECKPOINT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Event: the training is about to start. The fields of `Prepared` describe the data and settings of the training.

    Parameters
    ----------
    n_training, n_heldout, n_genes, n_dropped
        Numbers of training cells, held-out cells, modeled genes, and empty cells that were dropped.
    batch_size, resumed_epoch
        Number of cells per step; number of epochs that were complete when a resumed training was interrupted, 0 for a
        new training.
    genes_chosen, compute
        Text on how the genes were chosen; text on the device and the precision, and on why they were chosen.
    """

    n_training: int
    n_heldout: int
    n_genes: int
    n_dropped: int
    genes_chosen: str
    batches: tuple[str, ...]
    batch_size: int
    max_epochs: int
    steps_per_epoch: int
    resumed_epoch: int
    compute: str


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Event: the training stopped on request.

    If a model folder was given, the state of the training has been saved, so that `--resume` can continue the training.
    """

    epoch: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Event: the training is complete."""

    model: Model


FitEvent = Event | Prepared | Stopped | Finished


def fit(
    counts: Counts,
    config: RunConfig,
    *,
    names: GeneNames | None = None,
    model_folder: Path | None = None,
    resume: bool = False,
    start_from: Model | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Iterator[FitEvent]:
    """Train a model on raw counts or real numbers and yield events; the last event is `Finished` or `Stopped`.

    Parameters
    ----------
    counts
        Counts of all cells and all genes of the data. If the caller keeps a reference to `counts`, the counts of all
        genes remain in memory in addition to those of the chosen genes.
    config
        Options of the user. `fit` chooses values for options that are None, and records these values in the model.
    names
        Gene names (ids and symbols) that a gene list of the user may contain. If `names` is None, a gene list contains
        the ids of genes (var_names).
    model_folder, resume
        Folder in which the caller will save the finished model; whether to resume from a saved state. During a
        training, its state is saved next to the model folder. If `model_folder` is None, the state of the training is
        not saved.
    start_from
        A trained model of the same data, whose weights are the starting point, so that training takes less time. If the
        model has the same β as the new training, training continues from the weights of the model. With another β, each
        weight matrix is first moved most of the way back to random initial values.
    stop_requested
        Function that is called after every epoch; training stops if it returns True.

    Raises
    ------
    DataError
        If cells have no counts and are not dropped, if there are too few cells or genes, if the data are real numbers
        and the likelihood describes counts, or if a column of `continuous_key` has the same value in all training
        cells.
    ModelError
        If `resume` is True but there is no saved state, if `start_from` has other genes, batches, networks or held-out
        cells, or if training diverges repeatedly or ends with unusable latent positions.
    """
    compute = choose_compute(config.compute)
    counts = as_modelled(counts, config)
    n_given, drop = counts.n_cells, config.data.drop_empty
    counts = refuse_few(refuse_empty(counts, drop=drop))
    training, heldout = split(counts, config)
    columns, genes_chosen = select_genes(counts, training, config.data, names)
    checkpoint = None if model_folder is None else Checkpoint(model_folder, run_hash(counts, config, start_from))
    # From now on, `fit` has no reference to genes that are not modeled, so their memory is freed unless the caller has
    # a reference.
    counts = refuse_empty(counts.genes(columns), drop=drop)
    if counts.n_cells < len(training) + len(heldout):
        # Cells with counts only in genes that are not modeled were dropped, so the remaining cells are split again.
        training, heldout = split(refuse_few(counts), config)

    if config.model.of_counts and config.train.flat == 0:
        compute = decide_compiling(compute, config.compute, len(training))
    elif config.compute.compile:
        warnings.warn(ScvaeWarning("--compile has no effect for real numbers or together with --flat"), stacklevel=2)
    conditions = Conditions.of(counts, training)
    n_labeled = 0 if counts.labels is None else counts.labels.n_labeled
    config = settle(config, len(training), n_genes=len(columns), n_labeled=n_labeled)
    batch_size = config.train.batch_size
    assert batch_size is not None
    if compute.device.type == "cpu":
        refuse_large_network(config, len(training), len(columns))
    vae, kl_warmup_share = started(config, counts, training, conditions), 1.0
    if start_from is not None:
        refuse_unlike(start_from, config, counts, heldout, conditions)
        kl_warmup_share = take_over(vae, start_from, config.train.beta)
    vae = vae.to(compute.device)

    cells = CellTable(
        counts.matrix, conditions.batch_n, compute.device, cells=training, real=counts.real,
        label_n=labels_to_learn(counts, heldout, config.train),
    )  # fmt: skip
    trainer = Trainer(
        vae, cells, cells.of_cells(heldout), config.train, batch_size, compute, kl_warmup_share=kl_warmup_share
    )
    history: list[dict[str, float]] = []
    if checkpoint is not None and resume:
        history = checkpoint.restore(trainer)
    schedule = trainer.schedule
    yield Prepared(
        n_training=len(training),
        n_heldout=len(heldout),
        n_genes=len(columns),
        n_dropped=n_given - counts.n_cells,
        genes_chosen=genes_chosen,
        batches=conditions.batches,
        batch_size=batch_size,
        max_epochs=schedule.max_epochs,
        steps_per_epoch=schedule.steps_per_epoch,
        resumed_epoch=schedule.epoch,
        compute=compute.reason,
    )

    saved_at = time.monotonic()
    for event in trainer.events():
        if isinstance(event, EpochReport):
            history.append(asdict(event) | {"heldout_elbo": event.heldout_elbo})
            stop = stop_requested()
            if checkpoint is not None and (stop or time.monotonic() - saved_at > CHECKPOINT_SECONDS):
                checkpoint.save(trainer, history)
                saved_at = time.monotonic()
            yield event
            if stop:
                yield Stopped(epoch=event.epoch)
                return
        elif isinstance(event, Rollback):
            cell_names = tuple(str(name) for name in counts.cell_names[training][event.cells])
            yield replace(event, cell_names=cell_names)
        else:
            yield event

    vae.label_classifier = None  # only the training needs the classifier
    training_posterior, heldout_posterior = _posteriors(trainer)
    _refuse_absurd(training_posterior, heldout_posterior)
    try:
        density = fit_density(training_posterior, heldout_posterior, seed=config.train.seed)
        axes = canonical_axes(Geometry(vae), training_posterior[0])
        some = trainer.training.of_cells(training[:: -(-len(training) // FITTED_CELLS)])
        expression = fit_expression_space(vae, some)
    # For matrices with extreme values, torch may not find the eigenvalues and then raises a LinAlgError. torch
    # documents the class LinAlgError, but does not declare it as exported.
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # see above
        raise _unusable("decoded expression") from error
    nll, kl = trainer.evaluate()
    mean_nk = torch.cat([training_posterior[0], heldout_posterior[0]])
    facts = {
        "heldout_elbo": -(nll + kl),
        "heldout_nll": nll,
        "heldout_kl": kl,
        "n_heldout": len(heldout),
        "epochs": schedule.epoch,
        "best_epoch": schedule.best_epoch,
        "seconds": round(trainer.seconds, 2),
        "rollbacks": trainer.rollbacks,
        "active_units": int((mean_nk.var(0) > ACTIVE_VARIANCE).sum()),
        "counts_source": counts.source,
        "rounding": counts.rounding,
        "counts_notes": list(counts.notes),
        "genes_chosen": genes_chosen,
        "n_cells": counts.n_cells,
        "n_training": len(training),
        "n_genes": len(columns),
        "compute": compute.reason,
    }
    if counts.labels is not None:
        facts[N_LABELED] = n_labeled
    settled = replace(config.train, max_epochs=schedule.max_epochs, patience=schedule.patience)
    model = Model(
        vae=vae.to("cpu"),
        density=density,
        axes=axes,
        expression=expression,
        genes=tuple(str(gene) for gene in counts.gene_names),
        heldout_cells=tuple(str(cell) for cell in counts.cell_names[heldout]),
        config=replace(config, train=settled),
        facts=facts,
        history=_as_csv(history),
    )
    yield Finished(model=model)


def last_event(_title: object, events: Iterator[FitEvent]) -> FitEvent | None:
    """Return the last event of a training without displaying any event, for callers that show no progress."""
    last = None
    for event in events:
        last = event
    return last


def fit_to_end(
    counts: Counts,
    config: RunConfig,
    *,
    names: GeneNames | None = None,
    start_from: Model | None = None,
    on_event: Callable[[FitEvent], None] | None = None,
) -> Model:
    """Train a model with `fit` and return the model; each event is passed to `on_event`."""
    event: FitEvent | None = None
    for event in fit(counts, config, names=names, start_from=start_from):
        if on_event is not None:
            on_event(event)
    assert isinstance(event, Finished), "no stop was requested"
    return event.model


@torch.inference_mode()
def _posteriors(trainer: Trainer) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Compute posterior means and variances of all held-out cells and of a regular subset of the training cells."""

    def encode(table: CellTable, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        parts = [
            trainer.vae.encode(table.take(rows[start : start + EVALUATION_CELLS]))
            for start in range(0, len(rows), EVALUATION_CELLS)
        ]
        return torch.cat([part.mean_nk for part in parts]), torch.cat([part.var_nk for part in parts])

    training, heldout = trainer.training, trainer.heldout
    some = np.arange(0, training.n_cells, -(-training.n_cells // MAX_FITTED))
    return encode(training, some), encode(heldout, np.arange(heldout.n_cells))


def _refuse_absurd(*posteriors: tuple[Tensor, Tensor]) -> None:
    """Raise a ModelError if latent positions are out of range, which extreme initial weights can cause."""
    for mean_nk, var_nk in posteriors:
        if not ((mean_nk.abs() <= FARTHEST).all() and torch.isfinite(var_nk).all() and (var_nk > 0).all()):
            raise _unusable("latent positions")


def _unusable(what: str) -> ModelError:
    return ModelError(
        f"the training ended with {what} that cannot be used",
        "train again without --resume; look for extreme counts with scvae check",
    )


def _as_csv(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]) if history else ["epoch"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
