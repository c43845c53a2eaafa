"""`scvae pseudotime`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console
from scvae_cli.importing import importing

if TYPE_CHECKING:
    from scvae_cli.tools.pseudotime.ordering import Pseudotime


def pseudotime(
    data: o.Data,
    groupby: Annotated[str | None, typer.Option(help="Column of obs that names the populations.")] = None,
    root: Annotated[str | None, typer.Option(help="Population the cells start from.")] = None,
    end: Annotated[list[str] | None, typer.Option("--to", help="Population they may end in; may be repeated.")] = None,
    root_cell: Annotated[str | None, typer.Option(metavar="ID", help="Or: the cell they start from.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the ordering.", show_default="from_ROOT")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the selections made among very many cells.")] = 0,
    model: o.ModelFolder = None,
    layer: o.Layer = None,
    allow_missing_genes: o.AllowMissingGenes = False,
    drop_empty: o.DropEmpty = False,
    output: o.Output = None,
    key_added: o.KeyAdded = "scvae",
    force: o.Force = False,
    device: o.Device = "auto",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Order the cells by their geodesic distance from a root, and share them out among named ends.

    Writes obs["scvae_pseudotime_NAME"] (0 to 1) and obs["scvae_distance_NAME"]; with ends also obs["scvae_branch_NAME"]
    ("shared" for cells that have not decided) and obsm["scvae_ends_NAME"].
    """
    with importing():
        from scvae_cli.data.slots import SlotNames
        from scvae_cli.session import Session
        from scvae_cli.tools.pseudotime.ordering import default_name
        from scvae_cli.tools.pseudotime.ordering import pseudotime as order

    console = Console(json=json, quiet=quiet)
    start, by_cell = _root(groupby, root, root_cell, end or [])
    chosen = name or default_name(start)
    names = SlotNames(key_added=key_added)
    session = Session.open(
        data,
        o.model_folder(model, data),
        layer=layer,
        device=device,
        allow_missing_genes=allow_missing_genes,
        drop_empty=drop_empty,
    )
    places = session.places([start], groupby=None if by_cell else groupby)
    places += session.places(end or [], groupby=groupby)
    planned, run = names.written_by("pseudotime", chosen)[: None if end else 2], f"pseudotime_{chosen}"
    made_of = None if name else {"root": start}
    session.check_destination(planned, names=names, output=output, force=force, run=run, made_of=made_of)
    result = order(session.model, session.counts, places[0], places[1:], name=chosen, seed=seed)
    slots = session.write(
        result.slots(names),
        names=names,
        run=run,
        options={"groupby": groupby, "root": start, "ends": end or [], "seed": seed, "name": chosen},
        output=output,
        force=force,
    )
    values = {
        "output": str(output or data),
        "name": chosen,
        "root": start,
        "ends": list(result.ends),
        "root_cells": list(result.root_cells),
        "n_cells": len(result.pseudotime_n),
        "branches": result.branch_sizes(),
        "bridges": result.bridges,
        "missing_genes": len(session.missing_genes),
        "slots": slots,
    }
    console.result(values, _text(values, result, o.noise_unit(of_counts=session.model.of_counts)))
    if (warning := result.warning()) is not None:
        console.warn(warning)
    console.next_step(f'sc.pl.umap(adata, color="{names.pseudotime(chosen)}")')


def _root(groupby: str | None, root: str | None, root_cell: str | None, ends: list[str]) -> tuple[str, bool]:
    """The root asked for, and whether it is a cell."""
    from scvae_cli.errors import ConfigError

    if root is not None and root_cell is not None:
        raise ConfigError("the root was given twice", "use one of --root and --root-cell")
    if root_cell is None and (root is None or groupby is None):
        raise ConfigError(
            "an ordering needs --groupby KEY --root POPULATION (or --root-cell ID)",
            "scvae check DATA lists the columns that group cells",
        )
    if ends and groupby is None:
        raise ConfigError("--to names a population", "say with --groupby which column of obs it is from")
    if len(set(ends)) < len(ends) or (root is not None and root in ends):
        raise ConfigError("a population was named twice", "root and ends must differ")
    return (root_cell, True) if root_cell is not None else (str(root), False)


def _text(values: dict[str, Any], result: Pseudotime, unit: str) -> str:
    lines = [
        f"{values['n_cells']:,} cells in order from {values['root']}; the farthest is "
        f"{result.distance_n.max():.1f} {unit} away"
    ]
    lines += [f"{branch:<30}{size:>10,} cells" for branch, size in values["branches"].items()]
    lines.append(f"→ {', '.join(values['slots'])} of {values['output']}")
    return "\n".join(lines)
