"""Messages and the progress bar that show the user the progress of a training."""

from __future__ import annotations

from collections.abc import Iterator

from scvae_cli.amounts import amount
from scvae_cli.question import Shell
from scvae_cli.training.fit import FitEvent, Prepared
from scvae_cli.training.loop import Converged, EpochReport, Rollback, StepReport


def follow(
    events: Iterator[FitEvent], shell: Shell, *, title: str = "Training", brief: bool = False
) -> FitEvent | None:
    """Run a training to its end and show its progress.

    Parameters
    ----------
    events
        Events of the training; iterating over the events runs the training.
    title
        Title of the progress bar.
    brief
        Whether to leave out the messages about the data, the device and the plateau of the held-out loss.
        Commands that run a series of trainings set `brief` to True.

    Returns
    -------
    The last event of the training, or None if there was no event.
    """
    event: FitEvent | None = None
    steps_done = 0
    note = ""
    with shell.progress(title, None) as advance:
        for event in events:
            if isinstance(event, Prepared):
                if not brief:
                    shell.info(_prepared_text(event))
                steps_done = event.resumed_epoch * event.steps_per_epoch
                advance(steps_done, total=event.max_epochs * event.steps_per_epoch)
            elif isinstance(event, StepReport):
                advance(event.step - steps_done, note=f"{note}loss {event.loss:.1f}")
                steps_done = event.step
            elif isinstance(event, EpochReport):
                note = f"epoch {event.epoch}, held-out ELBO {event.heldout_elbo:.1f}, "
            elif isinstance(event, Converged) and not brief:
                shell.info(f"plateau: the held-out loss has stopped falling after epoch {event.epoch}")
            elif isinstance(event, Rollback):
                shell.warn(_rollback_text(event))
    return event


def _prepared_text(prepared: Prepared) -> str:
    dropped = f", {amount(prepared.n_dropped, 'cell')} without counts left out" if prepared.n_dropped else ""
    batches = f", {amount(len(prepared.batches), 'batch')}" if prepared.batches else ""
    lines = [
        f"genes: {prepared.n_genes:,} ({prepared.genes_chosen})",
        f"cells: {prepared.n_training:,} to train on, {prepared.n_heldout:,} held out{dropped}{batches}",
        f"device: {prepared.compute}",
        f"length: until the held-out loss stops falling, at most {amount(prepared.max_epochs, 'epoch')}",
    ]
    if prepared.resumed_epoch:
        lines.append(f"resumed after epoch {prepared.resumed_epoch}")
    return "\n".join(lines)


def _rollback_text(event: Rollback) -> str:
    cells = f"; cells whose loss was not finite: {', '.join(event.cell_names[:5])}" if event.cell_names else ""
    return (
        f"the loss was not finite in epoch {event.epoch}: training continues from the last good weights at a learning "
        f"rate of {event.learning_rate:.2g}{cells}"
    )
