"""`scvae de`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console
from scvae_cli.importing import importing

if TYPE_CHECKING:
    from scvae_cli.tools.de.result import DifferentialExpression

_SHOWN_GENES = 20
# Rates below it hang on the far tails of normals.
_LEAST_TOLD = 1e-6
_TOLD = (
    "gene", "change", "low", "high", "probability", "expected_fdr", "false_sign", "estimate", "error", "raw", "mean",
    "reference_mean",
)  # fmt: skip


def de(
    data: o.Data,
    groupby: Annotated[str, typer.Option(help="Column of obs that names the groups.")],
    group: Annotated[str, typer.Option(help="Group whose change is told.")],
    reference: Annotated[
        str | None, typer.Option(help="Group it is compared with.", show_default="all other cells of the column")
    ] = None,
    within: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Compare only cells with this value in obs; may be repeated."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="A gene has changed beyond this log2 ratio; 0: at all.")] = 0.25,
    fdr: Annotated[float, typer.Option(help="Expected false discovery rate at which genes are called.")] = 0.05,
    centre: Annotated[
        str,
        typer.Option(
            help="bulk: tell changes relative to what the genes have in common; none: of shares of all counts; auto: "
            "bulk where most genes agree."
        ),
    ] = "auto",
    cells: Annotated[int, typer.Option(help="Most cells of a group looked at, drawn at random.")] = 5000,
    samples: Annotated[int, typer.Option(help="Posterior samples a cell.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the samples and the cells drawn.")] = 0,
    model: o.ModelFolder = None,
    layer: o.Layer = None,
    allow_missing_genes: o.AllowMissingGenes = False,
    drop_empty: o.DropEmpty = False,
    output: o.Output = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write all genes as .csv, surest first.", rich_help_panel=o.OUTPUT),
    ] = None,
    plot: o.Plot = None,
    key_added: o.KeyAdded = "scvae",
    force: o.Force = False,
    device: o.Device = "auto",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Tell which genes differ between two groups of cells, by how much, and how surely.

    Writes uns["rank_genes_groups_scvae"], which sc.get.rank_genes_groups_df and sc.pl.rank_genes_groups read with that
    key: posterior probabilities of a change beyond the threshold and expected false discovery rates, no p-values.
    Cells are taken for independent: donors are not modelled.
    """
    with importing():
        from scvae_cli.api_de import ComparisonRequest
        from scvae_cli.data.slots import SlotNames
        from scvae_cli.session import Session
        from scvae_cli.tools.de.result import ComparisonOptions

    console = Console(json=json, quiet=quiet)
    names = SlotNames(key_added=key_added)
    request = ComparisonRequest(
        groupby=groupby,
        group=group,
        reference=reference,
        within=dict(_pair(text) for text in within or []),
        options=ComparisonOptions(
            threshold=threshold, fdr=fdr, centre=centre, max_cells=cells, n_samples=samples, seed=seed
        ),
    )
    if table is not None:
        _check_table(table, force=force)
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
        needs_batch=True,
    )
    session.check_destination(names.written_by("de"), names=names, output=output, force=force)
    result = request.answer(session)
    with _table_file(result, table):
        slots = session.write(
            result.slots(names, session.store.gene_names),
            names=names,
            run="de",
            options=request.told(),
            output=output,
            force=force,
        )
    if plot is not None:
        from scvae_cli.report.figure_file import save_figure
        from scvae_cli.tools.de.figure import de_figure

        save_figure(de_figure(result), plot)
    called = result.called
    values = {
        "output": str(output or data),
        "groupby": groupby,
        "group": group,
        "reference": result.contrast.reference,
        "within": dict(request.within),
        "n_group": result.n_group,
        "n_reference": result.n_reference,
        "n_left_out": result.n_left_out,
        "threshold": threshold,
        "fdr": fdr,
        "centre": result.centre,
        "shift": result.shift,
        "agreeing": result.agreeing,
        "null_share": result.null_share,
        "n_tested": int(result.tested.sum()),
        "n_genes": len(session.store.gene_names),
        "called": int(called.sum()),
        "up": int((called & (result.change_g > 0)).sum()),
        "down": int((called & (result.change_g < 0)).sum()),
        "genes": [
            {name: result.columns()[name][g] for name in _TOLD} for g in result.order[: max(_SHOWN_GENES, called.sum())]
        ],
        "missing_genes": len(session.missing_genes),
        "table": None if table is None else str(table),
        "plot": None if plot is None else str(plot),
        "slots": slots,
    }
    console.result(values, _text(values))
    console.next_step(f'sc.get.rank_genes_groups_df(adata, group="{group}", key="{names.rank_genes_groups}")')


def _pair(text: str) -> tuple[str, str]:
    """Column and value of KEY=VALUE.

    >>> _pair("cell_type=B cells")
    ('cell_type', 'B cells')
    """
    from scvae_cli.errors import ConfigError

    key, is_there, value = text.partition("=")
    if not (key and is_there and value):
        raise ConfigError(f"--within is {text!r}", 'it takes KEY=VALUE, for example: --within "cell_type=B cells"')
    return key, value


def _text(values: dict[str, Any]) -> str:
    inside = "".join(f", {key} {value}" for key, value in values["within"].items())
    lines = [
        f"{values['group']} ({values['n_group']:,} cells) against {values['reference']} ({values['n_reference']:,})"
        f"{inside}: {values['called']:,} of {values['n_tested']:,} genes changed by more than {values['threshold']:g} "
        f"(log2), {values['up']:,} up and {values['down']:,} down, at an expected FDR of {values['fdr']:g}"
    ]
    if values["n_left_out"]:
        lines.append(f"left out: {values['n_left_out']:,} cells of batches that hold only one of the groups")
    taken = "taken off" if values["centre"] == "bulk" else "not taken off: these are changes of shares of the counts"
    lines.append(
        f"in common the genes changed by {values['shift']:+.2f} (log2), {values['agreeing']:.0%} of them within 0.25 "
        f"of it; {taken}"
    )
    if not_tested := values["n_genes"] - values["n_tested"]:
        lines.append(f"not tested: {not_tested:,} genes that are outside the model or have no counts in these cells")
    wide = max(len(row["gene"]) for row in values["genes"][:_SHOWN_GENES]) + 2
    lines.append(
        f"{'gene':<{wide}}{'change':>8}{'90% interval':>17}{'P(changed)':>12}{'exp. FDR':>10}{'raw':>8}{'mean':>9}"
        f"{'reference':>11}"
    )
    for row in values["genes"][:_SHOWN_GENES]:
        doubt = f"{row['expected_fdr']:.2g}" if row["expected_fdr"] >= _LEAST_TOLD else f"<{_LEAST_TOLD:g}"
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        lines.append(
            f"{row['gene']:<{wide}}{row['change']:>8.2f}{interval:>17}{row['probability']:>12.4f}"
            f"{doubt:>10}{row['raw']:>8.2f}{row['mean']:>9.3g}{row['reference_mean']:>11.3g}"
        )
    lines.append(
        "(change, raw ratio: log2; raw: without model, shrinkage and shift; means: counts at the median depth)"
    )
    lines += [f"→ {place}" for place in (values["table"], values["plot"]) if place]
    lines.append(f"→ {', '.join(values['slots'])} of {values['output']}")
    return "\n".join(lines)


def _check_table(table: Path, *, force: bool) -> None:
    from scvae_cli.data.atomic import check_writable
    from scvae_cli.errors import ConfigError, DataError

    if table.suffix.lower() != ".csv":
        raise ConfigError(f"{table} is no table by its name", "--table takes a file that ends in .csv")
    check_writable(table)
    if table.exists() and not force:
        raise DataError(f"{table} exists", "use --force to replace it, or another name")


@contextlib.contextmanager
def _table_file(result: DifferentialExpression, table: Path | None) -> Iterator[None]:
    """All genes, surest first and untested ones last; the file appears when the block, writing the results, is done."""
    if table is None:
        yield
        return
    import numpy as np
    import pandas as pd

    from scvae_cli.data.atomic import replacing

    frame = pd.DataFrame(result.columns())
    with replacing(table) as sibling:
        rows = np.concatenate([result.order, np.flatnonzero(~result.tested)])
        frame.iloc[rows].to_csv(sibling, index=False)
        yield
