"""`scvae train`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli import train_options as t
from scvae_cli.cli.console import Console
from scvae_cli.cli.shell_line import shell_line
from scvae_cli.cli.training_progress import follow
from scvae_cli.importing import importing

if TYPE_CHECKING:
    from scvae_cli.model.bundle import Model

INTERRUPTED = 130


def train(
    data: o.Data,
    model: o.ModelFolder = None,
    layer: o.Layer = None,
    batch_key: t.BatchKey = None,
    n_top_genes: t.NTopGenes = None,
    genes: t.Genes = None,
    drop_empty: o.DropEmpty = False,
    likelihood: t.Likelihood = None,
    variance: t.Variance = None,
    decoder: t.DecoderKind = None,
    n_latent: Annotated[
        int | None, typer.Option(help="Latent dimensions.", show_default="20", rich_help_panel=t.MODEL)
    ] = None,
    n_hidden: t.NHidden = None,
    n_layers: t.NLayers = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="Weight of the KL term: the price of information.", show_default="1", rich_help_panel=t.MODEL
        ),
    ] = None,
    flat: Annotated[
        float | None,
        typer.Option(
            help="Weight of the flatness penalty: latent distances then follow expression, as geodesics measure it. 1 "
            "is a good value; it costs about 0.35% of the bound and two to three times the time.",
            show_default="0, off",
            rich_help_panel=t.MODEL,
        ),
    ] = None,
    max_epochs: t.MaxEpochs = None,
    batch_size: t.BatchSize = None,
    learning_rate: t.LearningRate = None,
    validation_fraction: t.ValidationFraction = None,
    patience: t.Patience = None,
    seed: t.Seed = None,
    config: t.Config = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up an interrupted training.", rich_help_panel=t.FITTING)
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing model.", rich_help_panel=o.OUTPUT)
    ] = False,
    device: t.Device = None,
    precision: t.Precision = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Repeat to the bit on a GPU too.", rich_help_panel=o.COMPUTE),
    ] = None,
    compile: t.Compile = None,
    threads: t.Threads = None,
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
        "precision": precision, "deterministic": deterministic, "compile": compile, "threads": threads,
    }  # fmt: skip
    from scvae_cli.config import RunConfig

    run = RunConfig.resolve(config, flags)
    folder = o.model_folder(model, data)
    console = Console(json=json, quiet=quiet)

    with importing():
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
        last = follow(events, console)
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
    elsewhere = None if data.suffix == ".h5ad" else f"{data.stem}.h5ad"
    console.next_step(shell_line("embed", data, m=model, o=elsewhere, drop_empty=run.data.drop_empty))


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
