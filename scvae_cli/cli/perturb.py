"""`scvae perturb`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console, told
from scvae_cli.cli.training_progress import follow
from scvae_cli.importing import importing

if TYPE_CHECKING:
    from scvae_cli.tools.perturb.result import Perturbation
    from scvae_cli.training.fit import FitEvent

ASKED = "Which perturbation of which cells"
_SHOWN_GENES = 20


def perturb(
    data: o.Data,
    perturbation_key: Annotated[
        str, typer.Option(help="Column of obs that says what was done to a cell.", rich_help_panel=ASKED)
    ],
    control: Annotated[str, typer.Option(help="Its label for nothing.", rich_help_panel=ASKED)],
    treated: Annotated[
        str, typer.Option(help="Its label for what shall be done; B+C for a combination.", rich_help_panel=ASKED)
    ],
    groupby: Annotated[
        str, typer.Option(help="Column of obs that says what kind of cell it is.", rich_help_panel=ASKED)
    ],
    group: Annotated[str, typer.Option(help="The kind whose control cells shall be treated.", rich_help_panel=ASKED)],
    method: Annotated[
        str,
        typer.Option(
            help="centroid (as groups move), ot (as matched cells move), or auto: what does better where it is known.",
        ),
    ] = "auto",
    retrain: Annotated[
        bool,
        typer.Option(
            "--retrain", help="Test on models trained without each group's treated cells: an honest accuracy."
        ),
    ] = False,
    counts: Annotated[
        bool, typer.Option("--counts", help="Draw the cells' counts; else what drawn ones average to.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the counts drawn.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="New .h5ad for the predicted cells.", show_default="none", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    model: o.ModelFolder = None,
    layer: o.Layer = None,
    allow_missing_genes: o.AllowMissingGenes = False,
    drop_empty: o.DropEmpty = False,
    plot: o.Plot = None,
    key_added: o.KeyAdded = "scvae",
    force: o.Force = False,
    device: o.Device = "auto",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Predict what cells of a kind would express under a perturbation that other kinds have been under.

    The control cells move in latent space as the other groups' do, and their genes change as the decoder says. The same
    prediction is made for every group whose answer is known, beside the mean change of the other groups and, for
    combinations, the sum of their parts. Genes' changes are of the mean of log(1 + 10⁴·count/library).
    """
    with importing():
        from scvae_cli.api_perturb import PerturbRequest
        from scvae_cli.data.new_cells import check_output
        from scvae_cli.data.slots import SlotNames
        from scvae_cli.session import Session

    console = Console(json=json, quiet=quiet)
    names = SlotNames(key_added=key_added)
    request = PerturbRequest(
        perturbation_key=perturbation_key,
        control=control,
        treated=treated,
        groupby=groupby,
        group=group,
        method=method,
        counts=counts,
        retrain=retrain,
        seed=seed,
    )
    target = None if output is None else check_output(output, data, force=force)
    if plot is not None:
        from scvae_cli.report.figure_file import check_figure_file

        check_figure_file(plot, force=force)
    session = Session.open(
        data,
        o.model_folder(model, data),
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
    )

    def followed(title: str, events: Iterator[FitEvent]) -> FitEvent | None:
        console.info(f"training {title}")
        return follow(events, console, title=title, brief=True)

    asked = request.answer(session, follow=followed)
    result = asked.result
    if target is not None:
        made = request.new_cells(session, result, names)
        with console.progress("Predicting", total=len(made.cell_names)) as advance:
            replace(made, blocks=told(made.blocks, advance)).write(target, force=force)
    if plot is not None:
        from scvae_cli.tools.perturb.figure import draw_perturbation

        draw_perturbation(result, asked.predictor, asked.design, plot)
    values = {
        "output": None if target is None else str(target),
        **result.facts(),
        "genes": _gene_table(result),
        "missing_genes": len(session.missing_genes),
        "plot": None if plot is None else str(plot),
        "slots": [] if target is None else [slot.path for slot in result.slots(names)],
    }
    console.result(values, "\n".join(_text(result, values)))
    _warn(console, result)
    if target is None:
        console.next_step("-o PREDICTED.h5ad writes the predicted cells")
    else:
        console.next_step(f'anndata.concat([adata, anndata.read_h5ad("{target}")], label="origin")')


def _gene_table(result: Perturbation) -> list[dict[str, Any]]:
    columns = result.changes.columns()
    names = ("change", "log2_fold_change", "mean_change", "additive", "observed")
    return [
        {"gene": result.genes[g]} | {name: float(columns[name][g]) if name in columns else None for name in names}
        for g in result.top_genes(_SHOWN_GENES)
    ]


def _text(result: Perturbation, values: dict[str, Any]) -> list[str]:
    how = {"centroid": "as groups move", "ot": "as matched cells move"}[result.recipe.method]
    lines = [
        f"{result.group}, {result.control} → {result.treated}: {len(result.cells):,} cells × {len(result.genes):,} "
        f"genes, {how} (--method {result.recipe.method})"
    ]
    lines += [f"learned from {label} in {', '.join(groups)}" for label, groups in result.sources.items()]
    if not result.sources.keys() >= {result.treated} and result.recipe.plain == 1:
        lines.append(
            "the prediction is what the parts come to, in logs: their sum, or where they move a gene the same way, the "
            "mean of that and the stronger change"
        )
    elif result.recipe.plain:
        lines.append(f"the prediction mixes in {result.recipe.plain:.0%} of the plain mean change, in logs")
    lines.append(f"in holes (off-manifold score above 0.95): {result.in_holes:.1%} of the cells, usually 5%")
    columns = result.changes.columns()
    shown = {
        "log2_fold_change": "log2 fold",
        "change": "change",
        "mean_change": "others' mean",
        "additive": "additive",
        "observed": "observed",
    }
    shown = {name: head for name, head in shown.items() if name in columns}
    lines.append(f"{'gene':<16}" + "".join(f"{head:>14}" for head in shown.values()))
    for row in values["genes"]:
        lines.append(f"{row['gene']:<16}" + "".join(f"{row[name]:>+14.2f}" for name in shown))
    of_counts = result.changes.log2_fold_g is not None
    lines.append("(changes of the mean of log(1 + 10⁴·count/library))" if of_counts else "(changes of the mean)")
    lines += _checks(result)
    return [*lines, *(f"→ {place}" for place in (values["plot"], values["output"]) if place)]


def _checks(result: Perturbation) -> list[str]:
    if not result.checks and result.own is None:
        return ["accuracy: unknown, no other group's answer can be found without looking at it"]
    checks = [*result.checks, *([result.own] if result.own is not None else [])]
    baselines = [
        (name, head)
        for name, head in (("mean_change", "others' mean"), ("additive", "additive"))
        if any(getattr(check, name) is not None for check in checks)
    ]
    columns = [("predicted", "predicted"), *baselines]
    unseen = all(check.unseen for check in checks)
    seen = "" if unseen else " (but to the model too)"
    lines = [
        f"where the answer is known{seen}: correlation of predicted and observed changes, all genes / top 50; "
        "no change: 0 / 0",
        f"{'left out':<28}" + "".join(f"{head:>18}" for _, head in columns),
    ]

    def row(title: str, fits: list[Any]) -> str:
        cells = ("-" if fit is None else f"{fit.correlation:.2f} / {fit.top_correlation:.2f}" for fit in fits)
        return f"{title:<28}" + "".join(f"{cell:>18}" for cell in cells)

    single = len({check.treated for check in checks}) == 1
    for check in checks:
        title = check.group if single else f"{check.group}, {check.treated}"
        title += " (asked for)" if check is result.own else ""
        lines.append(row(title, [getattr(check, name) for name, _ in columns]))
    if len(result.checks) > 1:
        title = ("mean, to be expected" if unseen else "mean, at best") if result.tested else "mean, of single ones"
        lines.append(row(title, [result.expected(name) for name, _ in columns]))
    expected, mean_change = result.expected(), result.expected("mean_change")
    if expected is not None and mean_change is not None and mean_change.mark > expected.mark:
        lines.append("there the mean change of the other groups predicts better than this")
    if not result.tested and result.checks:
        lines.append(f"no cell was under {result.treated}: how well its parts add up cannot be tested on these data")
    return lines


def _agreement(carried: float, result: Perturbation) -> str:
    """What the model's word and the plain change have in common, in words."""
    if not result.checks:
        return f"its correlation with the plain mean change is {carried:.2f}"
    if carried <= 0:
        return "there or in the other groups it does not agree with the plain mean change at all"
    return f"its agreement with the plain mean change is {carried:.2f} of that in the other groups"


def _warn(console: Console, result: Perturbation) -> None:
    from scvae_cli.tools.perturb.validation import CARRIED

    if result.carried is not None and result.carried < CARRIED:
        console.warn(
            f"the model does not carry the change over to {result.group} ({_agreement(result.carried, result)}), so "
            "the prediction is that change, in logs"
        )
    elif result.checks and not result.checks[0].unseen and (result.tested or result.recipe.plain < 1):
        console.info(
            "the model was trained on the cells that it is tested on here, so a group without treated cells will be "
            "predicted less well: --retrain tells how well"
        )
