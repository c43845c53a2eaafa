"""`scvae sweep`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli import train_options as t
from scvae_cli.cli.console import Console
from scvae_cli.cli.shell_line import shell_line
from scvae_cli.cli.training_progress import follow
from scvae_cli.importing import importing

if TYPE_CHECKING:
    from scvae_cli.tools.sweep.result import Sweep
    from scvae_cli.tools.sweep.sweep import Training
    from scvae_cli.training.fit import FitEvent

SWEEP = "What is varied: one of"


def sweep(
    data: o.Data,
    beta: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Weights of the KL term, as 0.1,0.3,1,3,10.", rich_help_panel=SWEEP),
    ] = None,
    n_latent: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Numbers of latent dimensions, as 2,5,10,20,40.", rich_help_panel=SWEEP),
    ] = None,
    layer: o.Layer = None,
    batch_key: t.BatchKey = None,
    n_top_genes: t.NTopGenes = None,
    genes: t.Genes = None,
    drop_empty: o.DropEmpty = False,
    likelihood: t.Likelihood = None,
    variance: t.Variance = None,
    decoder: t.DecoderKind = None,
    n_hidden: t.NHidden = None,
    n_layers: t.NLayers = None,
    max_epochs: t.MaxEpochs = None,
    batch_size: t.BatchSize = None,
    learning_rate: t.LearningRate = None,
    validation_fraction: t.ValidationFraction = None,
    patience: t.Patience = None,
    seed: t.Seed = None,
    config: t.Config = None,
    models: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep every run's model, as FOLDER/beta_0.3.scvae; they know nine tenths of the molecules.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    output: o.Output = None,
    plot: o.Plot = None,
    key_added: o.KeyAdded = "scvae",
    force: o.Force = False,
    device: t.Device = None,
    precision: t.Precision = None,
    threads: t.Threads = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Train once for every β, or number of latent dimensions, and say which to take.

    A tenth of every cell's molecules is set aside. Each run learns from the rest and predicts them; the suggestion is
    the largest β (the fewest dimensions) that predicts as well as the best, but for noise. Rate and distortion of
    held-out cells trace the rate–distortion curve of the data. All go to uns["scvae"]["sweep"]. Real numbers
    (--likelihood normal) cannot be set aside in part: the bound of held-out cells judges them.
    """
    flags = {
        "layer": layer, "batch_key": batch_key, "n_top_genes": n_top_genes, "genes": genes,
        "drop_empty": drop_empty or None, "likelihood": likelihood, "variance": variance, "decoder": decoder,
        "n_hidden": n_hidden, "n_layers": n_layers,
        "max_epochs": max_epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        "validation_fraction": validation_fraction, "patience": patience, "seed": seed,
    }  # fmt: skip
    from scvae_cli.config import RunConfig
    from scvae_cli.data.slots import SlotNames

    run = RunConfig.resolve(config, flags | {"device": device, "precision": precision, "threads": threads})
    names = SlotNames(key_added=key_added)
    console = Console(json=json, quiet=quiet)

    with importing():
        from scvae_cli.api_sweep import SweepRequest
        from scvae_cli.data.formats import open_store
        from scvae_cli.tools.sweep.result import SweepOptions

    options = SweepOptions(beta=_numbers("--beta", beta), n_latent=_numbers("--n-latent", n_latent))
    if plot is not None:
        from scvae_cli.report.figure_file import check_figure_file, save_figure
        from scvae_cli.tools.sweep.figure import sweep_figure

        check_figure_file(plot, force=force)
    store = open_store(data)
    request = SweepRequest(
        store=store, config=run, options=options, names=names, models=models, output=output, force=force
    )
    request.check()
    request.check_models()
    counts = request.counts()
    console.info(f"counts: {counts.source} of {store.title}, {counts.n_cells:,} cells × {counts.n_genes:,} genes")

    def followed(training: Training, events: Iterator[FitEvent]) -> FitEvent | None:
        from scvae_cli.training.fit import Finished

        which = f"{_NAMES[options.varied]} = {training.value:g} ({training.number} of {training.of})"
        last = follow(events, console, title=which, brief=training.number > 1)
        if isinstance(last, Finished):
            facts = last.model.facts
            console.info(f"{which}: held-out ELBO {facts['heldout_elbo']:.1f} after {facts['epochs']} epochs")
        return last

    result = request.answer(counts, follow=followed)
    slots = request.write(result)
    if plot is not None:
        save_figure(sweep_figure(result), plot)
    values = {
        "output": str(output or data),
        "varied": result.varied,
        "judge": result.judge,
        "suggested": result.suggested,
        "best": result.best,
        "runs": result.rows(),
        "kept": result.kept,
        "n_cells": result.n_cells,
        "n_genes": result.n_genes,
        "n_heldout": result.n_heldout,
        "breaks": [[broken.lower, broken.upper, broken.what, broken.by] for broken in result.breaks],
        "models": None if models is None else str(models),
        "plot": None if plot is None else str(plot),
        "slots": slots,
    }
    console.result(values, _text(result))
    for warning in result.warnings():
        console.warn(warning)
    # What a training of the same kind needs too.
    chosen = {result.varied: f"{result.suggested:g}"} | flags | {"config": config}
    console.next_step(shell_line("train", data, **chosen))


# Share of the gain that is worth the name "nearly all".
_NEARLY = 0.98
# Nats by which another run must be likelier to be named beside the suggested one.
_MUCH = 1.0
_NAMES = {"beta": "β", "n_latent": "latent dimensions"}


def _numbers(flag: str, text: str | None) -> list[float] | None:
    """The numbers of a list.

    >>> _numbers("--beta", "0.1, 1,10")
    [0.1, 1.0, 10.0]
    """
    from scvae_cli.errors import ConfigError

    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        example = "0.1,0.3,1,3,10" if flag == "--beta" else "2,5,10,20,40"
        raise ConfigError(f"{flag} is {text!r}", f"it takes numbers with commas between, such as {example}") from None
    return numbers


def _text(result: Sweep) -> str:
    judged = "thinning loss" if result.judge == "thinning" else "−bound"
    heads = (
        _NAMES[result.varied],
        "rate",
        "distortion",
        "ELBO",
        "bound",
        "active",
        judged,
        "gain",
        "epochs",
        "seconds",
    )
    rows = []
    for value, run in zip(result.values, result.runs, strict=True):
        excess = f"+{run.excess:.2f} ± {run.excess_se:.2f}" if value != result.best else "least"
        gain = f"{run.gain:.1%}" if run.gain == run.gain else "-"
        marked = f"{value:g}" + (" *" if value == result.suggested else "  ")
        figures = (f"{run.rate:.2f}", f"{run.distortion:.2f}", f"{run.elbo:.2f}", f"{run.bound:.2f}")
        rows.append((marked, *figures, str(run.active_units), excess, gain, str(run.epochs), f"{run.seconds:.1f}"))
    heads = (heads[0] + "  ", *heads[1:])
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)]
    if result.judge == "thinning":
        lines += [
            f"trained on {result.kept:.0%} of the molecules of {result.n_cells:,} cells; rate, distortion, ELBO and "
            f"bound of {result.n_heldout:,} held-out cells",
            "thinning loss: of predicting the other molecules, the cell's own counts weighed in, above the best ± its "
            "standard error; all in nats a cell",
            "gain: share of the best run's advantage over a mean model, which gives every cell the same proportions",
        ]
    else:
        lines.append(f"nats a cell, {result.n_heldout:,} held-out cells, which judge")
    return "\n".join([*lines, *_suggestion(result)])


def _suggestion(result: Sweep) -> list[str]:
    judged = "predicting molecules set aside" if result.judge == "thinning" else "explaining held-out cells"
    told = f"{_called(result, result.suggested)}, best at {judged}"
    if result.suggested != result.best:
        which = "the largest" if result.varied == "beta" else "the fewest"
        told = f"{_called(result, result.suggested)}, {which} as good as the best ({result.best:g}), but for noise"
    lines = [f"* suggested: {told}"]
    thrifty = [run for run in result.runs if run.gain >= _NEARLY and run.beta > result.suggested]
    if result.varied == "beta" and thrifty:
        beta, gain = thrifty[-1].beta, thrifty[-1].gain
        lines.append(f"  β = {beta:g} keeps {gain:.1%} of its gain, in a simpler latent space")
    likeliest = max(result.runs, key=lambda run: run.bound)
    more = likeliest.bound - result.suggested_run.bound
    if result.judge == "thinning" and more >= _MUCH:
        value = getattr(likeliest, result.varied)
        lines.append(
            f"  to score cells or sample new ones: {_called(result, value)}, whose bound is {more:.1f} nats higher"
        )
    edge = result.at_the_edge()
    if edge is not None:
        lines.append(f"  the best is the {'least' if edge == 'lower' else 'greatest'} tried: {edge} may be better yet")
    return lines


def _called(result: Sweep, value: float) -> str:
    return f"β = {value:g}" if result.varied == "beta" else f"{value:g} latent dimension{'s' if value > 1 else ''}"
