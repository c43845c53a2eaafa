"""Make the table of the held-out likelihood benchmark from the recorded runs.

python benchmarks/heldout_table.py benchmarks/results/heldout.json > benchmarks/results/heldout.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

Run = dict[str, Any]

# The first columns of every table, which contain text.
WORDS = ("data set", "seed", "model", "better scVI")
OTHERS = "cores used by others"

INTRODUCTION = """\
# Held-out likelihood: scvae and scVI

Written by `benchmarks/heldout.py`; its docstring says what is measured. All bounds are in nats per test cell; higher is
better. IWAE is the importance bound on log p(x) with {samples} posterior samples, ± the standard error over cells. The
column "advantage of scvae" is the mean over cells of scvae's IWAE minus that of the other model, ± the standard error
of these paired differences. No model was trained on the test cells. scVI keeps the weights of its last epoch, also with
early stopping. The process time is the wall time of the whole training process; the training time is that of the
training alone. Every number is the median over the seeds; the single runs are listed below.
"""


def render(runs: list[Run]) -> str:
    """Make the markdown page with all tables of the runs."""
    if not runs:
        return "No runs yet.\n"
    parts = [INTRODUCTION.format(samples=listed({run["samples"] for run in runs}))]
    for dataset in dict.fromkeys(run["dataset"] for run in runs):
        parts.append(_dataset_section([run for run in runs if run["dataset"] == dataset]))
    parts += [_single_runs(runs), provenance(runs)]
    return "\n".join(parts)


def standard_error(values: np.ndarray) -> float:
    """Compute the standard error of the mean.

    >>> round(standard_error(np.array([1.0, 2.0, 3.0])), 3)
    0.577
    """
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def paired_lead(ours: Run, theirs: Run) -> tuple[float, float]:
    """Compute the mean of `ours` minus `theirs` over the same cells, and its standard error, nats."""
    difference = np.subtract(ours["iwae_per_cell"], theirs["iwae_per_cell"])
    return float(difference.mean()), standard_error(difference)


def _dataset_section(runs: list[Run]) -> str:
    first = runs[0]
    ours = {run["seed"]: run for run in runs if run["contender"] == "scvae"}
    rows = []
    for contender in dict.fromkeys(run["contender"] for run in runs):
        group = [run for run in runs if run["contender"] == contender]
        leads = [paired_lead(ours[r["seed"]], r) for r in group if r["seed"] in ours and contender != "scvae"]
        rows.append(
            [
                group[0]["label"],
                f"{_middle(group, 'mean_iwae'):.2f} ± {_middle(group, 'se_iwae'):.2f}",
                f"{median(lead for lead, _ in leads):.2f} ± {median(error for _, error in leads):.2f}" if leads else "",
                f"{_middle(group, 'mean_elbo'):.2f}",
                f"{_middle(group, 'process_s'):.0f} s",
                f"{_middle(group, 'training_s'):.0f} s",
                f"{_middle(group, 'epochs'):g}",
                str(len(group)),
            ]
        )
    head = ["model", "IWAE", "advantage of scvae", "ELBO", "process time", "training time", "epochs", "seeds"]
    found = [run["n_genes"] for run in runs]
    cells = f"{first['n_trainer']} cells for training (each tool holds out 10% of these cells for validation)"
    n_genes = " to ".join(str(n) for n in sorted({min(found), max(found)}))
    return f"## {first['dataset']}\n\n{cells}, {first['n_test']} test cells, {n_genes} genes.\n\n{table(head, rows)}"


def _single_runs(runs: list[Run]) -> str:
    head = [
        "data set", "seed", "model", "IWAE", "ELBO", "process time", "training time", "epochs", OTHERS,
    ]  # fmt: skip
    rows = [
        [
            run["dataset"],
            str(run["seed"]),
            run["label"],
            f"{run['mean_iwae']:.2f} ± {run['se_iwae']:.2f}",
            f"{run['mean_elbo']:.2f} ± {run['se_elbo']:.2f}",
            f"{run['process_s']:.1f} s",
            f"{run['training_s']:.1f} s",
            str(run["epochs"]),
            "?" if run["other_cores"] is None else f"{run['other_cores']:.1f} cores",
        ]
        for run in runs
    ]
    return f"## Single runs\n\n{table(head, rows)}"


def provenance(runs: list[Run]) -> str:
    """Make the section about the machines and dates of the runs."""

    def versions(chosen: Callable[[Run], bool]) -> str:
        return listed({", ".join(f"{k} {v}" for k, v in run["versions"].items()) for run in runs if chosen(run)})

    lines = [
        f"- machine: {listed({run['machine'] for run in runs})}",
        f"- date: {listed({run['date'] for run in runs})}",
        f"- scvae: {versions(lambda run: run['contender'] == 'scvae') or 'not run'}",
        f"- scVI: {versions(lambda run: run['contender'] != 'scvae') or 'not run'}",
        f'- "{OTHERS}": number of cores that other programs used during the run; times are reliable if it is about 0',
    ]
    return "## Machine and versions\n\n" + "\n".join(lines) + "\n"


def _middle(runs: list[Run], key: str) -> float:
    return median(run[key] for run in runs)


def listed(values: Iterable[Any]) -> str:
    """Return the different values, sorted, as text."""
    return "; ".join(str(value) for value in sorted(values))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Make a markdown table."""
    # Text is aligned left, numbers right.
    n_words = max(i for i, name in enumerate(head) if name in WORDS) + 1
    rule = ["---"] * n_words + ["---:"] * (len(head) - n_words)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


if __name__ == "__main__":
    print(render(json.loads(Path(sys.argv[1]).read_text())["runs"]), end="")
