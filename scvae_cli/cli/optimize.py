"""`scvae optimize`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console
from scvae_cli.importing import importing
from scvae_cli.tools.trajectory.output import WALK, check_path_out, gene_lines, gene_table, places, steps_file

if TYPE_CHECKING:
    from scvae_cli.tools.optimize.optimization import Optimized

_STOPPED = {
    "top": "a top: it rises no further",
    "length": "the length it was allowed",
    "steps": "the number of steps it was allowed",
}


def optimize(
    data: o.Data,
    toward: Annotated[str | None, typer.Option(help="Genes (or features) to raise: A,B,C or @FILE.")] = None,
    away: Annotated[str | None, typer.Option(help="Genes to lower: A,B,C or @FILE.")] = None,
    groupby: Annotated[str | None, typer.Option(help="Column of obs that names the populations.")] = None,
    group: Annotated[str | None, typer.Option(metavar="VALUE", help="Population the walk starts in.")] = None,
    from_cell: Annotated[str | None, typer.Option(metavar="ID", help="Or: the cell it starts at.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the walk.", show_default="toward_GENE")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Points on the walk, both ends included.")] = 50,
    within: Annotated[
        float,
        typer.Option(
            help="Stay where it is as dense as around this share of the held-out cells, at most 0.95.",
            rich_help_panel=WALK,
        ),
    ] = 0.9,
    unconstrained: Annotated[
        bool, typer.Option("--unconstrained", help="Go anywhere, also where no cells are.", rich_help_panel=WALK)
    ] = False,
    max_length: Annotated[
        float | None,
        typer.Option(
            help="Length of the walk at most, as interpolate tells it.",
            show_default="five times the way to the farthest cell",
            rich_help_panel=WALK,
        ),
    ] = None,
    starts: Annotated[
        int,
        typer.Option(
            help="Places of the population to try where the first leads no higher than cells; 1: uphill only.",
            rich_help_panel=WALK,
        ),
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of bands.", rich_help_panel=WALK)] = 0,
    model: o.ModelFolder = None,
    library: Annotated[
        str, typer.Option(help="Depth to decode at: median, or a number of counts.", rich_help_panel=o.DECODE)
    ] = "median",
    batch_as: o.BatchAs = "average",
    layer: o.Layer = None,
    allow_missing_genes: o.AllowMissingGenes = False,
    drop_empty: o.DropEmpty = False,
    output: o.Output = None,
    path_out: Annotated[
        Path | None,
        typer.Option(help="Also write the steps as an .h5ad of their own.", rich_help_panel=o.OUTPUT),
    ] = None,
    plot: o.Plot = None,
    key_added: o.KeyAdded = "scvae",
    force: o.Force = False,
    device: o.Device = "auto",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Climb through latent space towards more of some genes (and less of others), where cells allow it.

    Writes the walk as interpolate does, with the score of every step. Prints how high it got beside the cells, and
    warns where it goes beyond all of them, ends on a lower top, or leaves the places where cells are.
    """
    with importing():
        from scvae_cli.api_optimize import AscentRequest
        from scvae_cli.data.slots import SlotNames
        from scvae_cli.session import Session
        from scvae_cli.tools.optimize import optimization

    console = Console(json=json, quiet=quiet)
    request = AscentRequest(
        toward=() if toward is None else o.gene_list("--toward", toward),
        away=() if away is None else o.gene_list("--away", away),
        groupby=groupby,
        group=group,
        from_cell=from_cell,
        name=name,
        n_steps=steps,
        within=within,
        unconstrained=unconstrained,
        n_starts=starts,
        max_length=max_length,
        library=library,
        batch_as=batch_as,
        seed=seed,
    )
    options, names = request.options(), SlotNames(key_added=key_added)
    if path_out is not None:
        check_path_out(path_out, (data, output or data), force=force)
    if plot is not None:
        from scvae_cli.report.figure_file import check_figure_file
        from scvae_cli.tools.trajectory.drawing import draw_walk

        check_figure_file(plot, force=force)
    session = Session.open(
        data,
        o.model_folder(model, data),
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
    )
    start, groups = request.start(session)
    planned, run = names.written_by("optimize", options.name), f"optimize_{options.name}"
    session.check_destination(planned, names=names, output=output, force=force, run=run)
    result = optimization.optimize(session.model, session.counts, start, request.programme(), options, groups=groups)
    walk = result.walk
    with steps_file(walk, path_out, names, force=force, score_t=result.score_t):
        slots = session.write(
            result.slots(names, session.store.gene_names),
            names=names,
            run=run,
            options=asdict(options) | request.told(),
            output=output,
            force=force,
        )
    if plot is not None:
        draw_walk(session, walk, groups, plot)
    values = {
        "output": str(output or data),
        "name": options.name,
        "start": start.label,
        **request.programme().told(),
        "n_steps": steps,
        "length": walk.steps.length,
        "score_start": float(result.score_t[0]),
        "score_end": float(result.score_t[-1]),
        "best_score": result.best_score,
        "best_cell": result.best_cell,
        "share_below": result.below,
        "beyond_step": result.beyond,
        "stopped": result.stopped,
        "off_manifold": float(walk.steps.off_manifold_t.max()),
        "groups_passed": walk.steps.groups_passed(),
        "n_cells": len(walk.pseudotime_n),
        "n_cells_on_path": int((walk.pseudotime_n == walk.pseudotime_n).sum()),
        "missing_genes": len(session.missing_genes),
        "genes": gene_table(walk),
        "path_out": None if path_out is None else str(path_out),
        "plot": None if plot is None else str(plot),
        "slots": slots,
    }
    console.result(values, _text(result, values, library))
    for warning in result.warnings():
        console.warn(warning)
    for advice in result.advice():
        console.info(advice)
    console.next_step(f'sc.pl.umap(adata, color="{names.pseudotime(options.name)}")')


def _text(result: Optimized, values: dict[str, Any], library: str) -> str:
    of_counts = result.walk.of_counts
    lines = [
        f"{values['start']} → {result.programme.label()}: {values['n_steps']} steps, {values['length']:.1f} "
        f"{o.noise_unit(of_counts=of_counts)}; {values['n_cells_on_path']:,} of {values['n_cells']:,} cells near",
        f"score {values['score_start']:.2f} → {values['score_end']:.2f}, in the best cell {values['best_score']:.2f}; "
        f"{values['share_below']:.1%} of the cells lie below the end",
        f"ends at {_STOPPED[values['stopped']]}",
    ]
    if values["groups_passed"]:
        lines.append(f"passes {' → '.join(values['groups_passed'])}")
    lines.append(f"off-manifold score at most {values['off_manifold']:.2f} (0.95 is the limit)")
    return "\n".join([*lines, *gene_lines(values["genes"], library, of_counts=of_counts), *places(values)])
