"""`scvae interpolate`."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console

if TYPE_CHECKING:
    from scvae_cli.data.slots import SlotNames
    from scvae_cli.latent.interpolation import Path as Walk

_SHOWN_GENES = 20


def interpolate(
    data: o.Data,
    groupby: Annotated[str | None, typer.Option(help="Column of obs that names the populations.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Population the walk starts in.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Population it ends in.")] = None,
    via: Annotated[list[str] | None, typer.Option(help="Population it passes through; may be repeated.")] = None,
    from_cell: Annotated[str | None, typer.Option(metavar="ID", help="Or: the cell it starts at.")] = None,
    to_cell: Annotated[str | None, typer.Option(metavar="ID", help="The cell it ends at.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Points on the walk, both ends included.")] = 50,
    name: Annotated[str | None, typer.Option(help="Of the path.", show_default="FROM_to_TO")] = None,
    path: Annotated[str, typer.Option(help="Kind of path: straight.")] = "straight",
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
    key_added: o.KeyAdded = "scvae",
    force: o.Force = False,
    device: o.Device = "auto",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Walk through latent space from one population (or cell) to another, and decode every step.

    Writes the walk and its genes (uns and varm), and where each cell lies along it: obs["scvae_pseudotime_NAME"],
    NaN for cells far from it. Prints the genes that change most and the step at which they switch.
    """
    from scvae_cli.data.slots import SlotNames
    from scvae_cli.latent import interpolation
    from scvae_cli.session import Session

    console = Console(json=json, quiet=quiet)
    labels, by_cells = _route(groupby, start, end, via or [], from_cell, to_cell)
    options = interpolation.PathOptions(
        name=name or interpolation.default_name(labels),
        n_steps=steps,
        path=path,
        library=library,
        batch_as=batch_as,
    )
    names = SlotNames(key_added=key_added)
    if path_out is not None:
        _check_path_out(path_out, (data, output or data), force=force)
    session = Session.open(
        data,
        o.model_folder(model, data),
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
    )
    waypoints = session.waypoints(labels, groupby=None if by_cells else groupby)
    planned = names.written_by("interpolate", options.name)
    session.check_destination(planned, names=names, output=output, force=force)
    walk = interpolation.interpolate(session.model, session.counts, waypoints, options)
    with _steps_file(walk, path_out, names, force=force):
        slots = session.write(
            walk.slots(names, session.store.gene_names),
            names=names,
            run=f"interpolate_{options.name}",
            options=asdict(options) | {"groupby": groupby, "waypoints": labels},
            output=output,
            force=force,
        )
    genes = _gene_table(walk)
    n_on_path = int((walk.pseudotime_n == walk.pseudotime_n).sum())
    values = {
        "output": str(output or data),
        "name": options.name,
        "waypoints": labels,
        "n_steps": steps,
        "n_cells": len(walk.pseudotime_n),
        "n_cells_on_path": n_on_path,
        "missing_genes": len(session.missing_genes),
        "genes": genes,
        "path_out": None if path_out is None else str(path_out),
        "slots": slots,
    }
    console.result(values, _text(values, library))
    console.next_step(f'sc.pl.umap(adata, color="{names.pseudotime(options.name)}")')


def _route(
    groupby: str | None, start: str | None, end: str | None, via: list[str], from_cell: str | None, to_cell: str | None
) -> tuple[list[str], bool]:
    """The way-points asked for, and whether they are cells."""
    from scvae_cli.errors import ConfigError

    if from_cell is not None or to_cell is not None:
        if from_cell is None or to_cell is None:
            raise ConfigError("a walk between cells needs both --from-cell and --to-cell", "name the other cell too")
        if start is not None or end is not None or via:
            raise ConfigError("cells and populations were both given", "use --from-cell/--to-cell or --from/--to/--via")
        labels, by_cells = [from_cell, to_cell], True
    elif start is None or end is None or groupby is None:
        raise ConfigError(
            "a walk needs --groupby KEY --from A --to B (or --from-cell ID --to-cell ID)",
            "scvae check DATA lists the columns that group cells",
        )
    else:
        labels, by_cells = [start, *via, end], False
    return labels, by_cells


def _gene_table(walk: Walk) -> list[dict[str, Any]]:
    rows = []
    for g in walk.top_genes(_SHOWN_GENES):
        rows.append(
            {
                "gene": walk.genes[g],
                "start": float(walk.mean_tg[0, g]),
                "end": float(walk.mean_tg[-1, g]),
                "change": float(walk.change_g[g]),
                "switch_step": int(walk.switch_g[g]),
            }
        )
    return rows


def _text(values: dict[str, Any], library: str) -> str:
    depth = "the median depth" if library == "median" else f"a depth of {library}"
    lines = [f"{' → '.join(values['waypoints'])}: {values['n_steps']} steps, "
             f"{values['n_cells_on_path']:,} of {values['n_cells']:,} cells near the walk",
             f"{'gene':<16}{'start':>10}{'end':>10}{'change':>9}{'switch step':>13}"]  # fmt: skip
    for row in values["genes"]:
        lines.append(
            f"{row['gene']:<16}{row['start']:>10.3g}{row['end']:>10.3g}{row['change']:>9.2f}{row['switch_step']:>13}"
        )
    lines.append(f"(expected counts at {depth}; change in standard deviations of a count)")
    lines.append(f"→ {', '.join(values['slots'])} of {values['output']}")
    return "\n".join(lines)


def _check_path_out(path_out: Path, others: tuple[Path, ...], *, force: bool) -> None:
    from scvae_cli.data.atomic import check_new_file, check_writable
    from scvae_cli.errors import ConfigError

    if path_out.resolve() in {other.resolve() for other in others}:
        raise ConfigError(f"--path-out is {path_out}, which holds the cells", "give the steps a file of their own")
    check_new_file(path_out, force=force)
    check_writable(path_out)


def _steps_file(
    walk: Walk, path_out: Path | None, names: SlotNames, *, force: bool
) -> contextlib.AbstractContextManager[None]:
    """The steps as cells of an AnnData of their own; the file appears when the block, writing the results, is done."""
    if path_out is None:
        return contextlib.nullcontext()
    import anndata
    import pandas as pd

    from scvae_cli.data.h5ad_create import new_h5ad

    steps = pd.DataFrame(
        {"position": walk.position_t}, index=pd.Index([f"step_{t}" for t in range(len(walk.position_t))], dtype=object)
    )
    genes = pd.DataFrame(
        {"change": walk.change_g, "switch_step": walk.switch_g}, index=pd.Index(walk.genes, dtype=object)
    )
    adata = anndata.AnnData(walk.mean_tg, obs=steps, var=genes, obsm={names.embedding: walk.z_tk})
    return new_h5ad(path_out, adata, force=force)
