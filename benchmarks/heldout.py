"""Held-out likelihood: scvae against scVI on the same cells and genes, quality beside time.

    python benchmarks/heldout.py --scvi-python SCVI_ENV/bin/python --seeds 0,1,2 --also-2x30nb

What is measured. Each data set is split per seed into test cells (10%), which go to a file of their own that no
trainer sees, and the rest, which every contender gets as one file. From that file each contender sets aside its own
validation cells, at its own default (10% for both tools). Genes expressed in fewer than 3 of the trainers' cells are
left out of both files, so both tools model the same genes. There is no batch key: the decoder sees a cell only through
z and its library size. The seed drives the split and the training.

Contenders: `scvae train` as it comes (with `--genes all`), scVI as it comes, scVI with early stopping, and with
`--also-2x30nb` a larger scVI (2 layers, 30 latent dimensions, nb, early stopping).

On the test cells: ELBO and importance bound (IWAE, `--samples` posterior samples), nats per cell. Times: the wall time
of the whole training process (start of Python, imports, reading, training, saving), and beside it what the tool says
of its training alone. Both tools run on CPU with `--threads` threads; the contenders take turns within a seed and data
set.

`scvae` is looked for beside the running interpreter; scvi-tools may live in another environment (`--scvi-python`). Runs
are written to `--results` (JSON, and a table as .md beside it) as they finish. `--only scvae` measures scvae anew and
keeps the scVI runs already in that file; `--resume` measures only what is missing from it; without either the file is
started afresh.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import heldout_table
import numpy as np
from heldout_scvi import CONTENDERS as SCVI_CONTENDERS
from heldout_split import Split, split
from timed import Timed, describe_machine, run_json

HERE = Path(__file__).resolve().parent
DEFAULT_DATA = [HERE.parent.parent / "shared" / "data" / name for name in ("pbmc4k_top2000.h5ad", "paul15_3004.h5ad")]
LABELS = {"scvae": "scvae, defaults"} | {name: chosen.label for name, chosen in SCVI_CONTENDERS.items()}


def main() -> None:
    """Run what is asked for, one process a step, and write the results after every run."""
    args = parse_arguments()
    results: Path = args.results
    old_runs: list[dict[str, Any]] = json.loads(results.read_text())["runs"] if results.exists() else []
    contenders = [name for name in LABELS if name != "scvi-2x30nb" or args.also_2x30nb]
    chosen = [name for name in contenders if args.only is None or name.startswith(args.only)]
    done = [run for run in old_runs if args.resume or (args.only and not replaced(run, chosen, args))]

    with tempfile.TemporaryDirectory(prefix="heldout-") as folder:
        for seed in args.seeds:
            for data in args.data:
                work = Path(folder) / f"{data.stem}-{seed}"
                parts = split(data, work, seed=seed, test_share=args.test_share, samples=args.samples)
                print(f"{data.stem}, seed {seed}: {parts.describe()}", file=sys.stderr)
                # A run on other cells, genes or sample counts cannot stand in the same table.
                outdated = [run for run in done if parts.outdates(run)]
                if outdated:
                    print(f"  {len(outdated)} recorded runs were made on another split: dropped", file=sys.stderr)
                done = [run for run in done if run not in outdated]
                finished = {run["contender"] for run in done if (run["dataset"], run["seed"]) == (data.stem, seed)}
                for name in chosen:
                    if name in finished:
                        continue
                    done.append(measure(name, parts, work / name, args))
                    save(results, done, args)
    save(results, done, args)
    print(results.with_suffix(".md").read_text())


def parse_arguments() -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path, default=DEFAULT_DATA, help="h5ad files with raw counts in X")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=100, help="posterior samples a cell (100)")
    parser.add_argument("--test-share", type=float, default=0.1, help="share of the cells that is tested on (0.1)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of either tool (2)")
    parser.add_argument("--also-2x30nb", action="store_true", help="a larger scVI as a further contender")
    parser.add_argument("--only", choices=["scvae", "scvi"], help="measure this tool anew, keep the other's runs")
    parser.add_argument("--resume", action="store_true", help="measure only what the results file lacks")
    parser.add_argument("--scvae", default=str(Path(sys.executable).with_name("scvae")), help="the scvae command")
    parser.add_argument("--scvi-python", default=sys.executable, help="an interpreter that has scvi-tools")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "heldout.json")
    return parser.parse_args()


def replaced(run: dict[str, Any], chosen: list[str], args: argparse.Namespace) -> bool:
    """Whether a recorded run is about to be measured again."""
    datasets = [data.stem for data in args.data]
    return run["contender"] in chosen and run["dataset"] in datasets and run["seed"] in args.seeds


def measure(name: str, parts: Split, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one contender on one split; the result is one record of the results file."""
    work.mkdir()
    run = {
        "dataset": parts.dataset,
        "seed": parts.seed,
        "contender": name,
        "label": LABELS[name],
        "split": parts.fingerprint,
        "n_trainer": parts.n_trainer,
        "n_test": parts.n_test,
        "n_genes": parts.n_genes,
        "samples": args.samples,
        "machine": describe_machine(args.threads),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    run |= measure_scvae(parts, work, args) if name == "scvae" else measure_scvi(name, parts, work, args)
    if run.pop("seen_genes") != parts.n_genes or run.pop("seen_cells") != parts.n_test:
        raise SystemExit(
            f"{name} did not model the {parts.n_genes} genes or score the {parts.n_test} cells it was given"
        )
    line = f"  {LABELS[name]}: IWAE {run['mean_iwae']:.2f}, ELBO {run['mean_elbo']:.2f}"
    if "scvi_elbo" in run:
        line += f" (by scVI's own functions {run['scvi_marginal_ll']:.2f}, {run['scvi_elbo']:.2f})"
    print(f"{line}, {run['epochs']} epochs, {run['process_s']:.0f} s", file=sys.stderr)
    return run


def measure_scvae(parts: Split, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`scvae train` and `scvae score`, as a user types them."""
    model, scored = work / "model.scvae", work / "scored.h5ad"
    train = ["train", str(parts.trainer_file), "-m", str(model), "--genes", "all", "--seed", str(parts.seed), "--json"]
    score = ["score", str(parts.test_file), "-m", str(model), "--samples", str(args.samples), "--json"]
    scvae = shlex.split(args.scvae)
    trained = run_json([*scvae, *train], args.threads)
    summary = run_json([*scvae, *score, "-o", str(scored)], args.threads)
    return {
        **times(trained, summary),
        "active_units": trained.result["active_units"],
        "versions": {name: importlib.metadata.version(name) for name in ("scvae-cli", "torch", "anndata")},
        **per_cell(*read_scores(scored), summary.result),
    }


def read_scores(scored: Path) -> tuple[np.ndarray, np.ndarray]:
    """Per-cell ELBO and importance bound, where `scvae score` writes them."""
    import h5py

    with h5py.File(scored) as file:
        return file["obs/scvae_elbo"][:], file["obs/scvae_iwae"][:]


def measure_scvi(name: str, parts: Split, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`heldout_scvi.py train` and `score`, in scVI's own environment."""
    scores = work / "scores.npz"
    script = [args.scvi_python, str(HERE / "heldout_scvi.py")]
    common = ["-m", str(work / "model"), "--seed", str(parts.seed), "--threads", str(args.threads)]
    train = ["train", str(parts.trainer_file), *common, "--contender", name]
    score = ["score", str(parts.test_file), *common, "--samples", str(args.samples), "-o", str(scores)]
    trained = run_json([*script, *train], args.threads)
    summary = run_json([*script, *score], args.threads)
    cells = np.load(scores)
    return {
        **times(trained, summary),
        "n_validation": trained.result["n_validation"],
        "versions": trained.result["versions"],
        "scvi_marginal_ll": summary.result["scvi_marginal_ll"],
        "scvi_elbo": summary.result["scvi_elbo"],
        **per_cell(cells["elbo"], cells["iwae"], summary.result),
    }


def times(trained: Timed, summary: Timed) -> dict[str, Any]:
    """What is recorded alike for both tools: times, epochs, and what they saw."""
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
    """Means and standard errors over cells; refuses cells that don't add up to the mean the tool printed."""
    for values, said in ((elbo, summary["mean_elbo"]), (iwae, summary["mean_iwae"])):
        if not abs(values.mean() - said) < 0.01:
            raise SystemExit(f"the cells' mean is {values.mean():.3f}, the tool printed {said:.3f}")
    return {
        "mean_elbo": float(elbo.mean()),
        "mean_iwae": float(iwae.mean()),
        "se_elbo": heldout_table.standard_error(elbo),
        "se_iwae": heldout_table.standard_error(iwae),
        "iwae_per_cell": [round(float(value), 3) for value in iwae],
    }


def save(results: Path, runs: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Write the records, one a line, and the table made of them."""
    results.parent.mkdir(parents=True, exist_ok=True)
    runs = sorted(runs, key=lambda run: (run["dataset"], run["seed"], list(LABELS).index(run["contender"])))
    head = json.dumps({"test_share": args.test_share, "samples": args.samples, "threads": args.threads})
    lines = ",\n".join(json.dumps(run) for run in runs)
    sibling = results.with_suffix(".partial")
    sibling.write_text(f'{{"settings": {head},\n"runs": [\n{lines}\n]}}\n')
    sibling.replace(results)
    results.with_suffix(".md").write_text(heldout_table.render(runs))


if __name__ == "__main__":
    main()
