"""`scvae info`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scvae_cli.cli import options as o
from scvae_cli.cli.console import Console
from scvae_cli.importing import importing


def info(
    target: Annotated[Path, typer.Argument(metavar="MODEL|DATA", help="A model folder, or data with results.")],
    key_added: o.KeyAdded = "scvae",
    json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Say what a model is, or which runs left their results in a file."""
    with importing():
        from scvae_cli.data.formats import open_store
        from scvae_cli.data.provenance import read_runs
        from scvae_cli.model.bundle import CONFIG, load

    console = Console(json=json, quiet=quiet)
    if (target / CONFIG).exists() or target.suffix == ".scvae":
        model = load(target)
        values: dict[str, Any] = {
            "model": str(target),
            "hash": model.hash,
            "n_genes": len(model.genes),
            "batches": list(model.batches),
            "facts": model.facts,
            "config": model.config.as_dict(),
        }
        console.result(values, _model_text(values))
        return
    runs = read_runs(open_store(target), key_added)
    console.result({"data": str(target), "runs": runs}, _runs_text(target, runs))


def _model_text(values: dict[str, Any]) -> str:
    facts, run = values["facts"], values["config"]
    shape = run["model"]
    widths = f"{shape['n_latent']} latent dimensions, {shape['n_layers']} × {shape['n_hidden']} hidden"
    widths += ", linear decoder" if shape["decoder"] == "linear" else ""
    likelihood = shape["likelihood"] + ("" if shape["variance"] is None else f" (variance {shape['variance']:g})")
    parts = f"NLL {facts['heldout_nll']:.2f}, KL {facts['heldout_kl']:.2f}"
    active = f"{facts['active_units']} of {shape['n_latent']} dimensions active"
    length = f"{facts['epochs']} epochs (best: {facts['best_epoch']}) in {facts['seconds']:.0f} s"
    lines = [
        f"{values['model']} ({values['hash']})",
        f"{likelihood}, {widths}, β = {run['train']['beta']:g}, seed {run['train']['seed']}",
        f"{facts['n_genes']:,} genes ({facts['genes_chosen']})",
        f"{facts['n_cells']:,} cells from {facts['counts_source']}, {facts['n_heldout']:,} of them held out",
        f"batches: {', '.join(values['batches']) or 'none'}",
        f"held-out ELBO {facts['heldout_elbo']:.2f} nats a cell ({parts}); {active}",
        f"{length} on {facts['compute']}",
    ]
    return "\n".join(lines)


def _runs_text(target: Path, runs: dict[str, dict[str, Any]]) -> str:
    if not runs:
        return f"{target}: no results of scvae"
    lines = [f"{target}: results of {len(runs)} run(s)"]
    for name, run in runs.items():
        told = ", ".join(f"{key}={value}" for key, value in run["options"].items() if value is not None)
        lines.append(
            f"{name}: model {run['model_hash'] or '(in memory)'}, counts from {run['counts_source']}, {run['device']}"
        )
        lines.append(f"  {told or 'no options'}")
        lines.append(f"  → {', '.join(run['slots'])}")
        for path, model in run.get("earlier", {}).items():
            lines.append(f"  from an earlier run, of model {model or '(in memory)'}: {path}")
    return "\n".join(lines)
