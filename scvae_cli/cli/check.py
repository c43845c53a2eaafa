"""`scvae check`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console

if TYPE_CHECKING:
    from scvae_cli.data.inspection import Inspection


def check(
    data: o.Data,
    layer: o.Layer = None,
    batch_key: Annotated[
        str | None, typer.Option(help="Column of obs with the batches.", rich_help_panel=o.INPUT)
    ] = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what is in a file, and what training would refuse (exit code 3) or warn about."""
    from scvae_cli import api

    console = Console(json=json, quiet=quiet)
    inspection = api.check(data, layer=layer, batch_key=batch_key)
    console.result(inspection.as_dict(), _text(inspection))
    if not inspection.ok:
        raise typer.Exit(3)
    console.next_step(f"scvae train {data}" + (f" --batch-key {batch_key}" if batch_key else ""))


def _text(seen: Inspection) -> str:
    lines = [f"{seen.title}: {seen.n_cells:,} cells × {seen.n_genes:,} genes"]
    if seen.counts_source is not None:
        depth = f"median {seen.median_library:,.0f} counts a cell"
        lines.append(f"raw counts: {seen.counts_source} ({seen.zero_share:.1%} zeros, {depth})")
        lines.append(f"genes modelled by default: {seen.n_genes_modelled:,}")
        lines.append(f"training on a CPU: roughly {seen.memory_gib} GiB of memory, {_duration(seen.cpu_minutes or 0)}")
    else:
        lines.append("raw counts: none found")
    if seen.obs:
        lines.append("columns that group cells: " + ", ".join(f"{key} ({n})" for key, n in seen.obs.items()))
    lines += [f"{finding.level}: {finding.message} ({finding.hint})" for finding in seen.findings]
    return "\n".join(lines)


def _duration(minutes: float) -> str:
    return f"{minutes * 60:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
