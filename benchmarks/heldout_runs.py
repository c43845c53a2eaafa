"""Code that the benchmarks on held-out cells share: options, recorded runs, and the steps of a run that use scVI."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from heldout_split import Split
from heldout_table import Run, standard_error
from timed import Timed, describe_machine, run_json

HERE = Path(__file__).resolve().parent
SHARED_DATA = HERE.parent.parent / "shared" / "data"


def add_options(parser: argparse.ArgumentParser, *, data: list[Path], results: str) -> None:
    """Add the options that every benchmark on held-out cells has."""
    parser.add_argument("data", nargs="*", type=Path, default=data, help="h5ad files with raw counts in X")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=100, help="posterior samples per cell (100)")
    parser.add_argument("--test-share", type=float, default=0.1, help="share of test cells (0.1)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each tool (2)")
    parser.add_argument("--gpu", action="store_true", help="let both tools train on the GPU that torch finds")
    parser.add_argument(
        "--only", choices=["scvae", "scvi"], help="repeat the runs of this tool, and keep those of the other"
    )
    parser.add_argument("--resume", action="store_true", help="run only what is missing in the results file")
    parser.add_argument("--scvi-python", default=sys.executable, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--results", type=Path, default=HERE / "results" / results)


class Records:
    """The runs of a results file, one run per line; a table of the runs is written to an .md file of the same name.

    Parameters
    ----------
    args
        The parsed command line. With `--resume`, all recorded runs are kept. With `--only`, the runs of the other tool,
        of other data sets and of other seeds are kept. Without both options, no recorded run is kept.
    chosen
        The tools that will be measured.
    labels
        Label of each tool, in the order in which runs are written.
    render
        Function that makes the table.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        chosen: list[str],
        labels: dict[str, str],
        render: Callable[[list[Run]], str],
    ) -> None:
        self._args, self._order, self._render = args, list(labels), render
        old: list[Run] = json.loads(args.results.read_text())["runs"] if args.results.exists() else []
        datasets = [data.stem for data in args.data]

        def replaced(run: Run) -> bool:
            return run["contender"] in chosen and run["dataset"] in datasets and run["seed"] in args.seeds

        self.runs = [run for run in old if args.resume or (args.only and not replaced(run))]

    def made_on(self, parts: Split) -> dict[str, Run]:
        """Return the recorded runs of a data set and seed, by tool; runs on another split are removed.

        A run on other cells, genes or numbers of samples must not be in the same table.
        """
        outdated = [run for run in self.runs if parts.outdates(run)]
        if outdated:
            print(f"  {len(outdated)} recorded runs were made on another split: dropped", file=sys.stderr)
        self.runs = [run for run in self.runs if run not in outdated]
        here = (parts.dataset, parts.seed)
        return {run["contender"]: run for run in self.runs if (run["dataset"], run["seed"]) == here}

    def add(self, run: Run) -> None:
        """Record a run in place of an earlier run of the same tool, data set and seed, and write the file."""
        self.runs = [old for old in self.runs if self._key(old) != self._key(run)]
        self.runs.append(run)
        self.save()

    def save(self) -> None:
        """Write the records, one per line, and their table."""
        results: Path = self._args.results
        results.parent.mkdir(parents=True, exist_ok=True)
        self.runs.sort(key=self._key)
        head = json.dumps({name: getattr(self._args, name) for name in ("test_share", "samples", "threads")})
        lines = ",\n".join(json.dumps(run) for run in self.runs)
        sibling = results.with_suffix(".partial")
        sibling.write_text(f'{{"settings": {head},\n"runs": [\n{lines}\n]}}\n')
        sibling.replace(results)
        results.with_suffix(".md").write_text(self._render(self.runs))

    def _key(self, run: Run) -> tuple[str, int, int]:
        return run["dataset"], run["seed"], self._order.index(run["contender"])


def describe_run(name: str, label: str, parts: Split, args: argparse.Namespace) -> Run:
    """Return the first entries of every record: tool, data, machine and date."""
    return {
        "dataset": parts.dataset,
        "seed": parts.seed,
        "contender": name,
        "label": label,
        "split": parts.fingerprint,
        "n_trainer": parts.n_trainer,
        "n_test": parts.n_test,
        "n_genes": parts.n_genes,
        "samples": args.samples,
        "machine": describe_machine(args.threads, gpu=args.gpu),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def check_and_tell(run: Run, parts: Split) -> Run:
    """Stop if a run used other genes or cells than those of the split; otherwise, print a line for the log."""
    name = run["contender"]
    if run.pop("seen_genes") != parts.n_genes or run.pop("seen_cells") != parts.n_test:
        raise SystemExit(
            f"{name} did not model the {parts.n_genes} genes or score the {parts.n_test} cells it was given"
        )
    line = f"  {run['label']}: IWAE {run['mean_iwae']:.2f}, ELBO {run['mean_elbo']:.2f}"
    if "scvi_elbo" in run:
        line += f" (by scVI's own functions {run['scvi_marginal_ll']:.2f}, {run['scvi_elbo']:.2f})"
    print(f"{line}, {run['epochs']} epochs, {run['process_s']:.0f} s", file=sys.stderr)
    return run


def measure_scvi(name: str, parts: Split, work: Path, args: argparse.Namespace) -> Run:
    """Run `heldout_scvi.py train` and `score` in scVI's environment; the model remains in `work`/model."""
    scores = work / "scores.npz"
    train = ["train", str(parts.trainer_file), "--seed", str(parts.seed), "--contender", name]
    score = ["score", str(parts.test_file), "--seed", str(parts.seed), "--samples", str(args.samples)]
    trained = run_scvi(train, work, args)
    summary = run_scvi([*score, "-o", str(scores)], work, args)
    cells = np.load(scores)
    return {
        **times(trained, summary),
        "n_validation": trained.result["n_validation"],
        "versions": trained.result["versions"],
        "scvi_marginal_ll": summary.result["scvi_marginal_ll"],
        "scvi_elbo": summary.result["scvi_elbo"],
        **per_cell(cells["elbo"], cells["iwae"], summary.result),
    }


def run_scvi(step: list[str], work: Path, args: argparse.Namespace) -> Timed:
    """Run one step of `heldout_scvi.py` on the model `work`/model, in a separate process."""
    script = [args.scvi_python, str(HERE / "heldout_scvi.py")]
    return run_json(
        [*script, *step, "-m", str(work / "model"), "--threads", str(args.threads)], args.threads, gpu=args.gpu
    )


def times(trained: Timed, summary: Timed) -> dict[str, Any]:
    """Return the entries that both tools have: times, epochs, and numbers of cells and genes."""
    return {
        "process_s": trained.seconds,
        "training_s": trained.result["seconds"],
        "score_s": summary.seconds,
        "other_cores": trained.other_cores,
        "epochs": trained.result["epochs"],
        "seen_genes": trained.result["n_genes"],
        "seen_cells": summary.result["n_cells"],
    }


def per_cell(elbo: np.ndarray, iwae: np.ndarray, summary: dict[str, Any]) -> dict[str, Any]:
    """Compute means and standard errors over cells; stop if a mean differs from the mean that the tool printed."""
    for values, said in ((elbo, summary["mean_elbo"]), (iwae, summary["mean_iwae"])):
        if not abs(values.mean() - said) < 0.01:
            raise SystemExit(f"the cells' mean is {values.mean():.3f}, the tool printed {said:.3f}")
    return {
        "mean_elbo": float(elbo.mean()),
        "mean_iwae": float(iwae.mean()),
        "se_elbo": standard_error(elbo),
        "se_iwae": standard_error(iwae),
        "iwae_per_cell": [round(float(value), 3) for value in iwae],
    }
