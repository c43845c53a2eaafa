"""Showing a training while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from scvae_cli.cli.console import Console

if TYPE_CHECKING:
    from scvae_cli.training.fit import FitEvent, Prepared


def follow(
    events: Iterator[FitEvent], console: Console, *, title: str = "Training", brief: bool = False
) -> FitEvent | None:
    """Show a training while it runs.

    Parameters
    ----------
    events
        Of the training; walked through.
    title
        Stands before the progress bar.
    brief
        Leave out what the trainings of a series have in common.

    Returns
    -------
    Its last event.
    """
    from scvae_cli.training.fit import Prepared
    from scvae_cli.training.loop import Converged, EpochReport, Rollback, StepReport

    event: FitEvent | None = None
    steps_done = 0
    note = ""
    with console.progress(title, total=None) as advance:
        for event in events:
            if isinstance(event, Prepared):
                if not brief:
                    console.info(_prepared_text(event))
                steps_done = event.resumed_epoch * event.steps_per_epoch
                advance(steps_done, total=event.max_epochs * event.steps_per_epoch)
            elif isinstance(event, StepReport):
                advance(event.step - steps_done, note=f"{note}loss {event.loss:.1f}")
                steps_done = event.step
            elif isinstance(event, EpochReport):
                note = f"epoch {event.epoch}, held-out ELBO {event.heldout_elbo:.1f}, "
            elif isinstance(event, Converged) and not brief:
                console.info(f"plateau: the held-out loss has stopped falling after epoch {event.epoch}")
            elif isinstance(event, Rollback):
                console.warn(_rollback_text(event))
    return event


def _prepared_text(prepared: Prepared) -> str:
    lines = [
        f"genes: {prepared.n_genes:,} ({prepared.genes_chosen})",
        f"cells: {prepared.n_training:,} to train on, {prepared.n_heldout:,} held out"
        + (f", {prepared.n_dropped:,} empty ones left out" if prepared.n_dropped else "")
        + (f", {len(prepared.batches)} batches" if prepared.batches else ""),
        f"device: {prepared.compute}",
        f"length: until the held-out loss stops falling, at most {prepared.max_epochs} epochs",
    ]
    if prepared.resumed_epoch:
        lines.append(f"resumed after epoch {prepared.resumed_epoch}")
    return "\n".join(lines)


def _rollback_text(event: Any) -> str:
    named = f"; cells: {', '.join(event.cell_names[:5])}" if event.cell_names else ""
    return (
        f"loss not finite in epoch {event.epoch}: back to the last good weights, rate {event.learning_rate:.2g}{named}"
    )
