"""`scvae check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console
from scvae_cli.cli.shell_line import shell_line
from scvae_cli.importing import importing

if TYPE_CHECKING:
    from scvae_cli.config import Likelihood
    from scvae_cli.data.inspection import Inspection


def check(
    data: o.Data,
    layer: o.Layer = None,
    batch_key: Annotated[
        str | None, typer.Option(help="Column of obs with the batches.", rich_help_panel=o.INPUT)
    ] = None,
    likelihood: Annotated[
        str,
        typer.Option(help="The one to train with: normal looks at real numbers.", rich_help_panel=o.INPUT),
    ] = "zinb",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what is in a file, and what training would refuse (exit code 3) or warn about."""
    with importing():
        from scvae_cli import api

    console = Console(json=json, quiet=quiet)
    # A word that is no likelihood is refused by the configuration.
    inspection = api.check(data, layer=layer, batch_key=batch_key, likelihood=cast("Likelihood", likelihood))
    console.result(inspection.as_dict(), _text(inspection, of_counts=likelihood != "normal"))
    if not inspection.ok:
        raise typer.Exit(3)
    other = None if likelihood == "zinb" else likelihood
    console.next_step(shell_line("train", data, layer=layer, batch_key=batch_key, likelihood=other))


def _text(seen: Inspection, *, of_counts: bool) -> str:
    lines = [f"{seen.title}: {seen.n_cells:,} cells × {seen.n_genes:,} genes"]
    if seen.counts_source is not None:
        if seen.median_library is None:
            lines.append(f"real numbers: {seen.counts_source} ({seen.zero_share:.1%} zeros)")
        else:
            depth = f"median {seen.median_library:,.0f} counts a cell"
            lines.append(f"raw counts: {seen.counts_source} ({seen.zero_share:.1%} zeros, {depth})")
        lines.append(f"genes modelled by default: {seen.n_genes_modelled:,}")
        lines.append(f"training on a CPU: roughly {seen.memory_gib} GiB of memory, {_duration(seen.cpu_minutes or 0)}")
    else:
        lines.append("raw counts: none read" if of_counts else "real numbers: none read")
    if seen.obs:
        lines.append("columns that group cells: " + ", ".join(f"{key} ({n})" for key, n in seen.obs.items()))
    lines += [f"{finding.level}: {finding.message} ({finding.hint})" for finding in seen.findings]
    return "\n".join(lines)


def _duration(minutes: float) -> str:
    return f"{minutes * 60:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
