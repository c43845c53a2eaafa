"""`scvae interpolate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console
from scvae_cli.importing import importing
from scvae_cli.tools.trajectory.output import WALK, check_path_out, gene_lines, gene_table, places, steps_file


def interpolate(
    data: o.Data,
    groupby: Annotated[str | None, typer.Option(help="Column of obs that names the populations.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Population the walk starts in.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Population it ends in.")] = None,
    via: Annotated[list[str] | None, typer.Option(help="Population it passes through; may be repeated.")] = None,
    from_cell: Annotated[str | None, typer.Option(metavar="ID", help="Or: the cell it starts at.")] = None,
    to_cell: Annotated[str | None, typer.Option(metavar="ID", help="The cell it ends at.")] = None,
    time_key: Annotated[
        str | None, typer.Option(help="Or: column of obs with time points, walked through in order.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the path.", show_default="FROM_to_TO")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Points on the walk, both ends included.")] = 50,
    path: Annotated[
        str,
        typer.Option(
            help="geodesic (shortest in expression where there are cells), graph (from cell to cell) or straight.",
            rich_help_panel=WALK,
        ),
    ] = "geodesic",
    endpoint: Annotated[
        str,
        typer.Option(
            help="Where a population stands: density (the densest place of its core) or centroid.",
            rich_help_panel=WALK,
        ),
    ] = "density",
    couple: Annotated[
        str,
        typer.Option(
            help="ot: a bundle of walks between cells that optimal transport pairs; none: one walk.",
            rich_help_panel=WALK,
        ),
    ] = "none",
    paths: Annotated[int, typer.Option(help="Walks in a bundle.", rich_help_panel=WALK)] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Of bands and pairs.", rich_help_panel=WALK)] = 0,
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
    """Walk through latent space from one population (or cell) to another, and decode every step.

    Writes the walk, what lies along it, and its genes (uns and varm), and where each cell lies on it:
    obs["scvae_pseudotime_NAME"], NaN for cells far from it. Prints the populations passed and the genes that change
    most, and warns where no cells support the walk.
    """
    with importing():
        from scvae_cli.data.slots import SlotNames
        from scvae_cli.session import Session
        from scvae_cli.tools.trajectory import interpolation
        from scvae_cli.tools.trajectory.result import PathOptions, default_name

    console = Console(json=json, quiet=quiet)
    route = _route(groupby, start, end, via or [], from_cell, to_cell, time_key)
    names = SlotNames(key_added=key_added)
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
    labels = session.time_points(time_key) if time_key is not None else route.labels
    waypoints = session.waypoints(labels, groupby=None if route.by_cells else time_key or groupby)
    options = PathOptions(
        name=name or default_name(labels),
        n_steps=steps,
        path=path,
        endpoint=endpoint,
        couple=couple,
        n_paths=paths,
        seed=seed,
        library=library,
        batch_as=batch_as,
    )
    planned, run = names.written_by("interpolate", options.name), f"interpolate_{options.name}"
    made_of = None if name else {"waypoints": labels}
    session.check_destination(planned, names=names, output=output, force=force, run=run, made_of=made_of)
    key = groupby or time_key
    groups = None if key is None else session.labels(key)
    walk = interpolation.interpolate(session.model, session.counts, waypoints, options, groups=groups)
    with steps_file(walk, path_out, names, force=force):
        slots = session.write(
            walk.slots(names, session.store.gene_names),
            names=names,
            run=run,
            options=asdict(options) | {"groupby": groupby, "time_key": time_key, "waypoints": labels},
            output=output,
            force=force,
        )
    if plot is not None:
        draw_walk(session, walk, groups, plot)
    values = {
        "output": str(output or data),
        "name": options.name,
        "waypoints": labels,
        "kind": path,
        "n_steps": steps,
        "length": walk.steps.length,
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
    console.result(values, _text(values, library, of_counts=walk.of_counts))
    if (warning := walk.warning()) is not None:
        console.warn(warning)
    console.next_step(f'sc.pl.umap(adata, color="{names.pseudotime(options.name)}")')


@dataclass(frozen=True)
class _Route:
    """The way-points asked for, and whether they are cells; no way-points when time points are walked through."""

    labels: list[str]
    by_cells: bool


def _route(
    groupby: str | None,
    start: str | None,
    end: str | None,
    via: list[str],
    from_cell: str | None,
    to_cell: str | None,
    time_key: str | None,
) -> _Route:
    from scvae_cli.errors import ConfigError

    by_cells = from_cell is not None or to_cell is not None
    by_groups = start is not None or end is not None or bool(via)
    if by_cells + by_groups + (time_key is not None) > 1:
        raise ConfigError(
            "the way was given twice", "use one of --from/--to/--via, --from-cell/--to-cell and --time-key"
        )
    if time_key is not None:
        return _Route([], by_cells=False)
    if by_cells:
        if from_cell is None or to_cell is None:
            raise ConfigError("a walk between cells needs both --from-cell and --to-cell", "name the other cell too")
        return _Route([from_cell, to_cell], by_cells=True)
    if start is None or end is None or groupby is None:
        raise ConfigError(
            "a walk needs --groupby KEY --from A --to B (or --from-cell ID --to-cell ID, or --time-key KEY)",
            "scvae check DATA lists the columns that group cells",
        )
    return _Route([start, *via, end], by_cells=False)


def _text(values: dict[str, Any], library: str, *, of_counts: bool) -> str:
    unit = o.noise_unit(of_counts=of_counts)
    lines = [
        f"{' → '.join(values['waypoints'])}: {values['kind']}, {values['n_steps']} steps, {values['length']:.1f} "
        f"{unit}; {values['n_cells_on_path']:,} of {values['n_cells']:,} cells near"
    ]
    if values["groups_passed"]:
        lines.append(f"passes {' → '.join(values['groups_passed'])}")
    lines.append(f"off-manifold score at most {values['off_manifold']:.2f} (0.95 is the limit)")
    return "\n".join([*lines, *gene_lines(values["genes"], library, of_counts=of_counts), *places(values)])
