"""Implementation of `sweep` for the command line and for Python, and the text that the command line prints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from scvae_cli._version import __version__
from scvae_cli.amounts import amount
from scvae_cli.data.formats import open_store
from scvae_cli.data.gene_names import gene_names
from scvae_cli.data.provenance import provenance, refuse_foreign
from scvae_cli.data.slots import SlotNames
from scvae_cli.data.store import CellStore
from scvae_cli.model.bundle import Model, check_new_model
from scvae_cli.path_names import refuse_long_name
from scvae_cli.question import Outcome, Report, Shell
from scvae_cli.shell_line import shell_line
from scvae_cli.text_table import table_lines
from scvae_cli.tools.sweep.options import SweepOptions
from scvae_cli.tools.sweep.result import NAMES, Sweep
from scvae_cli.tools.sweep.sweep import Training, sweep
from scvae_cli.training.fit import Finished, FitEvent
from scvae_cli.training_counts import counts_for_training
from scvae_cli.training_progress import follow
from scvae_cli.verb import Request


def sweep_and_write(request: Request, shell: Shell) -> Outcome:
    """Run a sweep and write the results; with `--models`, also save each model after its training.

    Raises
    ------
    ScvaeError
        If data or options cannot be used, or if a result could not be written; the error is raised before any training.
    """
    options: SweepOptions = request.options
    run, names = options.training, SlotNames(key_added=options.key_added)
    for file in (options.output, options.plot, options.models):
        if file is not None:
            refuse_long_name(file)
    if options.plot is not None:
        from scvae_cli.report.figure_file import check_figure_file

        check_figure_file(options.plot, force=options.force)
    store = open_store(request.data, genome=run.data.genome, modality=run.data.modality)
    if request.inplace:
        slots = [f"uns/{names.sweep(options.varied)}"]
        store.check_destination(slots, output=options.output, force=options.force)
        if not options.force:
            refuse_foreign(store, slots, names)
    _check_models(options)
    counts = counts_for_training(store, run, shell)

    def followed(training: Training, events: Iterator[FitEvent]) -> FitEvent | None:
        title = f"{NAMES[options.varied]} = {training.value:g} ({training.number} of {training.of})"
        last = follow(events, shell, title=title, brief=training.number > 1)
        if isinstance(last, Finished):
            facts = last.model.facts
            shell.info(f"{title}: held-out ELBO {facts['heldout_elbo']:.1f} after {amount(facts['epochs'], 'epoch')}")
        return last

    def keep(value: float, model: Model) -> None:
        if options.models is not None:
            options.models.mkdir(exist_ok=True)
            model.save(options.models / _folder_name(options, value), force=options.force)

    symbols = gene_names(store, run.data.gene_symbols)
    result = sweep(counts, run, options, names=symbols, follow=followed, on_model=keep)
    slots = _write(result, store, options, names) if request.inplace else []
    if options.plot is not None:
        from scvae_cli.report.figure_file import save_figure
        from scvae_cli.tools.sweep.figure import sweep_figure

        save_figure(sweep_figure(result), options.plot, force=options.force)
    return Outcome(
        value=None if request.inplace else result,
        report=lambda: _report(result, request, slots),
        warnings=result.warnings(),
    )


def _folder_name(options: SweepOptions, value: float) -> str:
    return f"{options.varied}_{value:.15g}.scvae"


def _check_models(options: SweepOptions) -> None:
    """Raise an error before the trainings if the models could not be saved in the folder."""
    if options.models is None:
        return
    if not options.models.is_dir():
        check_new_model(options.models, force=options.force)
        return
    for value in options.values:
        check_new_model(options.models / _folder_name(options, value), force=options.force)


def _write(result: Sweep, store: CellStore, options: SweepOptions, names: SlotNames) -> list[str]:
    slots = result.slots(names)
    facts = {
        "command": "sweep",
        "scvae_version": __version__,
        "model_hash": f"{len(result.runs)} models, trained by the sweep",
        "counts_source": result.counts_source,
        "device": result.device,
        "missing_genes": 0,
        "options": {
            result.varied: list(result.values),
            "criterion": result.criterion,
            "config": options.training.as_dict(),
        },
    }
    record = provenance(store, names, f"sweep_{result.varied}", slots, facts)
    store.write([*slots, record], output=options.output, force=options.force)
    return [slot.path for slot in slots]


def _report(result: Sweep, request: Request, slots: list[str]) -> Report:
    options: SweepOptions = request.options
    target = str(options.output or request.data)
    facts: dict[str, Any] = {
        "output": target,
        **{name: getattr(result, name) for name in ("varied", "criterion", "suggested", "best")},
        "runs": [asdict(run) for run in result.runs],
        **{name: getattr(result, name) for name in ("kept_molecules", "n_cells", "n_genes", "n_heldout")},
        "reversals": [list(reversal) for reversal in result.reversals],
        "models": None if options.models is None else str(options.models),
        "plot": None if options.plot is None else str(options.plot),
        "slots": slots,
    }
    # The suggested `train` command repeats the training options of the sweep.
    own = {"beta", "n_latent", "models", "output", "plot", "key_added", "force"}
    chosen = {result.varied: f"{result.suggested:g}"} | {k: v for k, v in request.flags.items() if k not in own}
    lines = [_text(result), *(f"→ {place}" for place in (facts["models"], facts["plot"]) if place)]
    return Report(
        facts=facts,
        text="\n".join([*lines, f"→ {', '.join(slots)} of {target}"]),
        next_step=shell_line("train", request.data, **chosen),
    )


def _text(result: Sweep) -> str:
    criterion = "thinning loss" if result.criterion == "thinning" else "−bound"
    figures = ("rate", "distortion", "ELBO", "bound", "active", criterion, "gain", "epochs", "seconds")
    rows = [(f"{NAMES[result.varied]}  ", *figures)]
    for value, run in zip(result.values, result.runs, strict=True):
        excess = f"+{run.excess:.2f} ± {run.excess_se:.2f}" if value != result.best else "best"
        gain = f"{run.gain:.1%}" if run.gain == run.gain else "-"
        marked = f"{value:g}" + (" *" if value == result.suggested else "  ")
        numbers = (f"{run.rate:.2f}", f"{run.distortion:.2f}", f"{run.elbo:.2f}", f"{run.bound:.2f}")
        rows.append((marked, *numbers, str(run.active_units), excess, gain, str(run.epochs), f"{run.seconds:.1f}"))
    lines = table_lines(rows, left=())
    if result.criterion == "thinning":
        lines += [
            (
                f"trained on {result.kept_molecules:.0%} of the molecules of {result.n_cells:,} cells; rate (the KL), "
                "distortion (the reconstruction loss), ELBO and bound are means over "
                f"{amount(result.n_heldout, 'held-out cell')}"
            ),
            "thinning loss: Poisson loss of the withheld molecules, minus the loss of the best run, ± standard error; "
            "rate, distortion, ELBO, bound and thinning loss are in nats per cell",
            "gain: advantage over a mean model, as a fraction of the best run's advantage; the mean model predicts the "
            "same proportions for all cells",
        ]
    else:
        lines.append(
            f"values in nats per cell, on {amount(result.n_heldout, 'held-out cell')}; the criterion is the bound"
        )
    return "\n".join([*lines, *_suggestion(result)])


def _suggestion(result: Sweep) -> list[str]:
    """Return the suggested value, and the reason for the suggestion."""
    task = "predicting withheld molecules" if result.criterion == "thinning" else "explaining held-out cells"
    chosen = result.suggested_run
    if result.suggested == result.best:
        reason = f"best at {task}"
        if (edge := result.at_the_edge()) is not None:
            which = "smallest" if edge == "lower" else "largest"
            reason += f"; it is the {which} value that was tried, and {edge} values may be better"
    else:
        simplest = "the largest β" if result.varied == "beta" else "the fewest dimensions"
        which = "the default" if result.suggested == result.default else simplest
        reason = (
            f"{which} among the runs that are as good as the best one ({result.best:g}) at {task}, within one standard "
            f"error or the variation between random seeds: worse by {chosen.excess:.2f} ± {chosen.excess_se:.2f} nats "
            "per cell"
        )
    return [f"* suggested: {_called(result, result.suggested)}, {reason}"]


def _called(result: Sweep, value: float) -> str:
    return f"β = {value:g}" if result.varied == "beta" else f"{value:g} latent dimension{'s' if value > 1 else ''}"
