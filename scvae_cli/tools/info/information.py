"""Implementation of `info` for the command line."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from scvae_cli.amounts import amount
from scvae_cli.data.covariates import covariate_lines
from scvae_cli.data.formats import open_store
from scvae_cli.data.provenance import read_all_runs, read_runs
from scvae_cli.data.slots import DEFAULT_KEY, SlotNames
from scvae_cli.errors import one_line
from scvae_cli.model.bundle import CONFIG, load
from scvae_cli.model.folder_checks import N_LABELED
from scvae_cli.question import Outcome, Report, Shell
from scvae_cli.verb import Request


def info(request: Request, shell: Shell) -> Outcome:  # noqa: ARG001  # the command takes seconds and shows no progress
    """Describe a model, or list the runs of scvae that are recorded in a data file.

    Raises
    ------
    DataError, ModelError
        If the model or the data cannot be opened.
    """
    target = request.data
    facts: dict[str, Any]
    if isinstance(target, Path) and ((target / CONFIG).exists() or target.suffix == ".scvae"):
        model = load(target)
        facts = {
            "model": str(target),
            "hash": model.hash,
            "n_genes": len(model.genes),
            "batches": list(model.batches),
            "mapped_batches": list(model.batches[len(model.vae.trained_share_b) :]),
            "covariates": model.covariates,
            "labels": [] if model.labels is None else list(model.labels.names),
            "facts": model.facts,
            "config": model.config.as_dict(),
        }
        return Outcome(value=facts, report=lambda: Report(facts=facts, text=_model_text(facts)))
    asked = request.options.key_added
    store = open_store(target)
    found = read_all_runs(store) if asked is None else {asked: read_runs(store, SlotNames(key_added=asked).key_added)}
    runs = found.pop(asked or DEFAULT_KEY, {})
    facts = {"data": store.title if not isinstance(target, Path) else str(target), "runs": runs, "other_runs": found}
    return Outcome(value=facts, report=lambda: Report(facts=facts, text=_runs_text(facts, asked or DEFAULT_KEY)))


def _model_text(values: dict[str, Any]) -> str:
    facts, run, mapped = values["facts"], values["config"], values["mapped_batches"]
    shape = run["model"]
    widths = f"{amount(shape['n_latent'], 'latent dimension')}, {shape['n_layers']} × {shape['n_hidden']} hidden"
    widths += ", linear decoder" if shape["decoder"] == "linear" else ""
    likelihood = shape["likelihood"] + ("" if shape["variance"] is None else f" (variance {shape['variance']:g})")
    parts = f"NLL {facts['heldout_nll']:.2f}, KL {facts['heldout_kl']:.2f}"
    active = f"{facts['active_units']} of {shape['n_latent']} dimensions active"
    length = f"{amount(facts['epochs'], 'epoch')} (best: {facts['best_epoch']}) in {facts['seconds']:.0f} s"
    lines = [
        f"{values['model']} ({values['hash']})",
        f"{likelihood}, {widths}, β = {run['train']['beta']:g}, seed {run['train']['seed']}",
        f"{amount(facts['n_genes'], 'gene')} ({facts['genes_chosen']})",
        f"{amount(facts['n_cells'], 'cell')} from {facts['counts_source']}, {facts['n_heldout']:,} of them held out",
        *(covariate_lines(values["covariates"], named=True) or ["batch keys: none"]),
        *([f"mapped after the training (scvae map): {', '.join(mapped)}"] if mapped else []),
        *_label_lines(values),
        f"held-out ELBO {facts['heldout_elbo']:.2f} nats per cell ({parts}); {active}",
        f"{length} on {facts['compute']}",
    ]
    return "\n".join(map(one_line, lines))


def _shown_name(run: str, key_added: str, record: dict[str, Any]) -> str:
    """Return the command of a run, with the values of --name and --key-added under which its result is stored."""
    name, command = record["options"].get("name"), record.get("command")
    if isinstance(name, str) and isinstance(command, str) and command.endswith(f"_{name}"):
        run = f"{command.removesuffix(f'_{name}')} --name {shlex.quote(name)}"
    return run if key_added == DEFAULT_KEY else f"{run} --key-added {shlex.quote(key_added)}"


def _label_lines(values: dict[str, Any]) -> list[str]:
    """Describe the labels of a model, and their influence on the training; the list is empty for other models."""
    run = values["config"]
    key = run["data"].get("labels_key")
    if key is None:
        return []
    weight = run["train"]["label_weight"]
    influence = f"label weight {weight:g}" if weight else "label weight 0: the labels did not change the latent space"
    names = ", ".join(values["labels"]) or "the model has no classifiers of labels"
    n_labeled = values["facts"].get(N_LABELED)
    known = "" if n_labeled is None else f"labels known for {amount(n_labeled, 'cell')}; "
    return [f"labels ({key}): {names}", f"{known}{influence}"]


def _runs_text(facts: dict[str, Any], key_added: str) -> str:
    """List the runs under `key_added`, and then the runs under other names."""
    target, named = facts["data"], {key_added: facts["runs"]} | facts["other_runs"]
    # A list, because runs under different values of --key-added may be printed with the same name.
    runs = [(_shown_name(name, key, run), run) for key, of_key in named.items() for name, run in of_key.items()]
    if not runs:
        return f"{target}: no results of scvae" + ("" if key_added == DEFAULT_KEY else f" with --key-added {key_added}")
    lines = [f"{target}: results of {amount(len(runs), 'run')}"]
    for name, run in runs:
        options = ", ".join(f"{key}={value}" for key, value in run["options"].items() if value is not None)
        lines.append(
            f"{name}: model {run['model_hash'] or '(in memory)'}, counts from {run['counts_source']}, {run['device']}"
        )
        lines.append(f"  {options or 'no options'}")
        lines.append(f"  → {', '.join(run['slots'])}")
        for path, model in run.get("earlier", {}).items():
            lines.append(f"  from an earlier run, of model {model or '(in memory)'}: {path}")
    return "\n".join(map(one_line, lines))
