"""`scvae train`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console

if TYPE_CHECKING:
    from scvae_cli.model.bundle import Model
    from scvae_cli.training.fit import FitEvent, Prepared

MODEL, FITTING = "Model", "Fitting"
INTERRUPTED = 130


def train(
    data: o.Data,
    model: o.ModelFolder = None,
    layer: o.Layer = None,
    batch_key: Annotated[
        str | None, typer.Option(help="Column of obs the decoder is conditioned on.", rich_help_panel=o.INPUT)
    ] = None,
    n_top_genes: Annotated[
        int | None,
        typer.Option(
            help="Most variable genes to model (seurat_v3).",
            show_default="all up to 5,000 expressed genes, else 4,000",
            rich_help_panel=o.INPUT,
        ),
    ] = None,
    genes: Annotated[
        str | None, typer.Option(help='Genes to model: "all", or @FILE with one a line.', rich_help_panel=o.INPUT)
    ] = None,
    drop_empty: o.DropEmpty = False,
    likelihood: Annotated[
        str | None,
        typer.Option(
            help="Of counts: zinb, nb or poisson; of any real numbers: normal.",
            show_default="zinb",
            rich_help_panel=MODEL,
        ),
    ] = None,
    variance: Annotated[
        float | None,
        typer.Option(
            help="Of --likelihood normal, for all features.", show_default="learned for each", rich_help_panel=MODEL
        ),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            help="mlp, or linear: no hidden layer, so that a gene's weights are its loadings on the latent axes.",
            show_default="mlp",
            rich_help_panel=MODEL,
        ),
    ] = None,
    n_latent: Annotated[
        int | None, typer.Option(help="Latent dimensions.", show_default="20", rich_help_panel=MODEL)
    ] = None,
    n_hidden: Annotated[
        int | None, typer.Option(help="Units in a hidden layer.", show_default="256", rich_help_panel=MODEL)
    ] = None,
    n_layers: Annotated[
        int | None,
        typer.Option(help="Hidden layers in encoder and decoder.", show_default="1", rich_help_panel=MODEL),
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(help="Weight of the KL term: the price of information.", show_default="1", rich_help_panel=MODEL),
    ] = None,
    flat: Annotated[
        float | None,
        typer.Option(
            help="Weight of the flatness penalty: latent distances then follow expression, as geodesics measure it. 1 "
            "is a good value; it costs up to 0.5% of the bound and half as much time again.",
            show_default="0, off",
            rich_help_panel=MODEL,
        ),
    ] = None,
    max_epochs: Annotated[
        int | None,
        typer.Option(
            help="Bound on passes over the cells.", show_default="by number of cells", rich_help_panel=FITTING
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Cells in a step.", show_default="by number of cells", rich_help_panel=FITTING),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak rate of AdamW.", show_default="by batch size", rich_help_panel=FITTING)
    ] = None,
    validation_fraction: Annotated[
        float | None,
        typer.Option(help="Share of the cells held out.", show_default="0.1", rich_help_panel=FITTING),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Epochs without a noticeable improvement before training ends.",
            show_default="by number of cells",
            rich_help_panel=FITTING,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of split, weights, order and noise.", show_default="0", rich_help_panel=FITTING),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML with sections data, model, train and compute; flags win.", rich_help_panel=FITTING),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up an interrupted training.", rich_help_panel=FITTING)
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing model.", rich_help_panel=o.OUTPUT)
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="auto", rich_help_panel=o.COMPUTE),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of matrix products: auto, fp32, tf32 or bf16.", show_default="auto", rich_help_panel=o.COMPUTE
        ),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Repeat to the bit on a GPU too.", rich_help_panel=o.COMPUTE),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads.", show_default="torch's choice", rich_help_panel=o.COMPUTE),
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train a model on raw counts and write the model folder; DATA itself is only read.

    With --likelihood normal the values may be any real numbers. Holds cells out, keeps the weights that are best on
    them, and stops when they no longer improve. Ctrl-C ends the training after the epoch in progress; --resume takes it
    up again.
    """
    flags = {
        "layer": layer, "batch_key": batch_key, "n_top_genes": n_top_genes, "genes": genes,
        "drop_empty": drop_empty or None, "likelihood": likelihood, "variance": variance, "decoder": decoder,
        "n_latent": n_latent, "n_hidden": n_hidden, "n_layers": n_layers, "beta": beta, "flat": flat,
        "max_epochs": max_epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        "validation_fraction": validation_fraction, "patience": patience, "seed": seed, "device": device,
        "precision": precision, "deterministic": deterministic, "threads": threads,
    }  # fmt: skip
    from scvae_cli.config import RunConfig

    run = RunConfig.resolve(config, flags)
    folder = o.model_folder(model, data)
    console = Console(json=json, quiet=quiet)

    from scvae_cli.data.counts import read_counts
    from scvae_cli.data.formats import open_store
    from scvae_cli.model.bundle import check_new_model
    from scvae_cli.training.fit import Finished, Stopped, fit

    store = open_store(data)
    check_new_model(folder, force=force)
    real = not run.model.of_counts
    counts = read_counts(store, layer=run.data.layer, batch_key=run.data.batch_key, real=real)
    size = f"{counts.n_cells:,} cells × {counts.n_genes:,} genes"
    console.info(f"{'values' if real else 'counts'}: {counts.source} of {store.title}, {size}")
    with _graceful_interrupt(console) as stop_requested:
        events = fit(counts, run, model_folder=folder, resume=resume, stop_requested=stop_requested)
        # The training alone holds the counts from here on, and can let go what it does not need.
        del store, counts
        last = _follow(events, console)
    if isinstance(last, Stopped):
        console.info(f"interrupted after epoch {last.epoch}; go on with the same command and --resume")
        raise typer.Exit(INTERRUPTED)
    assert isinstance(last, Finished), "a training ends finished or stopped"
    last.model.save(folder, force=force)
    _discard_checkpoint(folder)
    values = {"model": str(folder)} | {
        key: last.model.facts[key]
        for key in ("epochs", "seconds", "heldout_elbo", "active_units", "n_cells", "n_genes")
    }  # fmt: skip
    console.result(values, _text(values, last.model))
    for advice in _advice(last.model):
        console.warn(advice)
    named = "" if model is None else f" -m {folder}"
    elsewhere = "" if data.suffix == ".h5ad" else f" -o {data.stem}.h5ad"
    console.next_step(f"scvae embed {data}{named}{elsewhere}")


def _follow(events: Iterator[FitEvent], console: Console) -> FitEvent | None:
    """Show a training while it runs; returns its last event."""
    from scvae_cli.training.fit import Prepared
    from scvae_cli.training.loop import Converged, EpochReport, Rollback, StepReport

    event: FitEvent | None = None
    steps_done = 0
    note = ""
    with console.progress("Training", total=None) as advance:
        for event in events:
            if isinstance(event, Prepared):
                console.info(_prepared_text(event))
                steps_done = event.resumed_epoch * event.steps_per_epoch
                advance(steps_done, total=event.max_epochs * event.steps_per_epoch)
            elif isinstance(event, StepReport):
                advance(event.step - steps_done, note=f"{note}loss {event.loss:.1f}")
                steps_done = event.step
            elif isinstance(event, EpochReport):
                note = f"epoch {event.epoch}, held-out ELBO {event.heldout_elbo:.1f}, "
            elif isinstance(event, Converged):
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


def _text(values: dict[str, Any], model: Model) -> str:
    active = f"{values['active_units']} of {model.config.model.n_latent} latent dimensions active"
    length = f"{values['epochs']} epochs in {values['seconds']:.1f} s"
    return f"held-out ELBO {values['heldout_elbo']:.2f} nats a cell after {length}; {active}\n→ {values['model']}"


def _advice(model: Model) -> list[str]:
    """What to change when the training did not come to much."""
    facts, advice = model.facts, []
    if facts["active_units"] == 0:
        advice.append(
            "the posterior collapsed: no latent dimension says anything about the cells. Lower --beta, train longer "
            "(--max-epochs), or check that the cells differ at all"
        )
    return advice


def _discard_checkpoint(folder: Path) -> None:
    from scvae_cli.training.checkpoint import Checkpoint

    Checkpoint(folder, "").discard()


@contextlib.contextmanager
def _graceful_interrupt(console: Console) -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; a second one stops at once."""
    asked = False

    def ask(_signal: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.info("stopping after this epoch (again: at once)")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
