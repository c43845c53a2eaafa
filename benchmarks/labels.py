"""Are labels of cells predicted correctly, are the probabilities calibrated, and are unknown types recognized?

    python benchmarks/labels.py [--scvi-python SCVI_ENV/bin/python] [--seeds 0,1,2] [--sets mixology,kang]

`labels_tasks.py` contains the tasks: mixology (cell lines) from CEL-seq2 to Drop-seq and back, kang (PBMC) from control
to stimulated cells and back, paul15 with 10% and 1% of the labels, and pbmc68k in five folds. The scvae model is
trained on all cells of a data set, without labels; `annotate` gets the labels. `annotate` is compared, on the same
genes, with

- logistic regression (scikit-learn's defaults) on log-normalized genes, unscaled and scaled to unit variance;
- a vote of the 15 nearest neighbors on 30 principal components;
- with `--scvi-python`, SCANVI on an scVI model of the same cells (`labels_scanvi.py`).

The methods are compared by these measures:

- accuracy, macro_f1: accuracy and macro F1 score of the most probable label.
- ece: expected calibration error of the probability of the most probable label, in 15 bins. The value ece_by_chance is
  the expected calibration error that calibrated probabilities would have for the same number of cells.
- coverage, size: coverage and mean size of prediction sets that are requested to have a coverage of 90%.
- auroc: every label is left out in turn, with seed 0, and the AUROC measures how well the cells of the omitted label
  are distinguished from cells of the known labels. For scvae, the cells are ranked by the p-value of "unknown"; for the
  nearest neighbors, by the mean distance; and for all other methods, by the probability of the most probable label.
- alarms: share of the cells of known labels that are called unknown at a rate of 5%.

Results are written to results/labels.json and .md; results of sets and seeds that are not requested are kept. With
`--only-scvae`, the results of the other methods are kept, too. SCANVI was run only on kang (scVI with `--scvi-epochs
150`, and no label left out) and on pbmc68k (scVI with its defaults, and labels left out only of the first fold).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp
from labels_tasks import SETS, Task, all_tasks
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from timed import describe_machine

import scvae_cli as scvae
from scvae_cli.data.known_labels import KnownLabels
from scvae_cli.evaluation.log_pca import log_normalized
from scvae_cli.session import Session
from scvae_cli.tools.annotate.annotation import annotate
from scvae_cli.tools.annotate.batches import new_batches
from scvae_cli.tools.annotate.options import AnnotateOptions
from scvae_cli.tools.annotate.quality import reliability

HERE = Path(__file__).parent
RATE = 0.05
COLUMNS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "ece": "ECE",
    "ece_by_chance": "ECE by chance",
    "coverage": "coverage of sets",
    "size": "labels per set",
    "auroc": "AUROC of unknown types",
    "alarms": "known called unknown",
}
LEGEND = """\
Means over the seeds, accuracy ± standard error. ECE is the expected calibration error, and "ECE by chance" that of
calibrated probabilities for the same number of cells. Prediction sets should have a coverage of 0.9. AUROC measures how
well cells of a type without labels are distinguished from cells of the known types. "Known called unknown" is the share
of the cells of known types that are called unknown at a rate of 5%. Measures that a method or task lacks are empty.
"""
METHODS = ("scvae", "logistic regression", "logistic regression, scaled", "neighbors on PCA", "SCANVI")


@dataclass(frozen=True)
class Answer:
    """Predictions of a method for all cells: labels, probabilities, novelty, prediction sets and unknown cells."""

    p_nc: np.ndarray
    labels: np.ndarray
    novelty_n: np.ndarray
    set_nc: np.ndarray | None = None
    unknown_n: np.ndarray | None = None


def by_scvae(session: Session, task: Task, seed: int) -> Answer:
    """Annotate all cells."""
    labels = np.unique(task.label_n[task.given_n])
    code_n = np.where(task.given_n, np.searchsorted(labels, task.label_n), -1)
    options = AnnotateOptions(labels_key="label", unknown_rate=RATE, seed=seed)
    known = KnownLabels(tuple(labels), code_n)
    found = annotate(session, known, options, new_batch_n=new_batches(session, known, None).batch_n)
    return Answer(found.probability_nc.astype(float), labels, -found.p_n, found.set_nc, found.unknown_n)


def by_others(log_ng: np.ndarray, pca_nj: np.ndarray, task: Task) -> Iterator[tuple[str, Answer]]:
    """Train the methods with which `annotate` is compared."""
    given_n, label_n = task.given_n, task.label_n[task.given_n]
    scaled_ng = StandardScaler().fit(log_ng[given_n]).transform(log_ng).clip(-10, 10)
    for name, x_ng in (("logistic regression", log_ng), ("logistic regression, scaled", scaled_ng)):
        # The regression is computed in the space spanned by the labeled cells, which gives the same result and is much
        # faster.
        centered_ng = x_ng - x_ng[given_n].mean(axis=0)
        basis_jg = np.linalg.svd(centered_ng[given_n], full_matrices=False)[2]
        x_nj = centered_ng @ basis_jg.T
        fitted = LogisticRegression(max_iter=1000).fit(x_nj[given_n], label_n)
        p_nc = fitted.predict_proba(x_nj)
        yield name, Answer(p_nc, fitted.classes_, -p_nc.max(1))
    voters = KNeighborsClassifier(min(15, int(given_n.sum()))).fit(pca_nj[given_n], label_n)
    yield (
        "neighbors on PCA",
        Answer(voters.predict_proba(pca_nj), voters.classes_, voters.kneighbors(pca_nj)[0].mean(1)),
    )


def by_scanvi(
    adata: anndata.AnnData, tasks: list[Task], batch: str | None, seed: int, arguments: argparse.Namespace, name: str
) -> dict[int, Answer]:
    """Train SCANVI in a separate environment; its predictions are kept in the folder of the models."""
    with tempfile.TemporaryDirectory() as folder:
        data, asked = Path(folder) / "cells.h5ad", Path(folder) / "tasks.npz"
        answers = arguments.models / f"scanvi_{name}_{seed}.npz"
        if arguments.scvi_python:
            adata.write_h5ad(data)
            labels = {f"task{i}": np.where(task.given_n, task.label_n, "Unknown") for i, task in enumerate(tasks)}
            np.savez(asked, **labels)
            command = [arguments.scvi_python, HERE / "labels_scanvi.py", data, asked, "--seed", seed, "-o", answers]
            command += ["--threads", arguments.threads, *(["--batch-key", batch] if batch else [])]
            command += ["--max-epochs", arguments.scvi_epochs] if arguments.scvi_epochs else []
            subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
        if not answers.exists():
            return {}
        with np.load(answers) as stored:
            found = {
                i: (stored[f"task{i}_p"], stored[f"task{i}_labels"])
                for i in range(len(tasks))
                if f"task{i}_p" in stored
            }
    return {i: Answer(p_nc, labels, -p_nc.max(1)) for i, (p_nc, labels) in found.items()}


def by_peers(
    session: Session, obs: Any, tasks: list[Task], seed: int, arguments: argparse.Namespace, name: str
) -> Iterator[tuple[Task, str, Answer]]:
    """Run all other methods on all tasks of a set."""
    log_ng = log_normalized(session.counts).toarray()
    pca_nj = PCA(30, random_state=0).fit_transform(log_ng)
    peers = anndata.AnnData(sp.csr_matrix(session.counts.matrix), obs=obs)
    scanvi = by_scanvi(peers, tasks, SETS[name][1], seed, arguments, name)
    for i, task in enumerate(tasks):
        for method, answer in by_others(log_ng, pca_nj, task):
            yield task, method, answer
        if i in scanvi:
            yield task, "SCANVI", scanvi[i]


def scores(parts: list[tuple[Task, Answer]]) -> dict[str, float]:
    """Score the predictions of one task; folds are scored together."""
    truth, label, top, inside, size = [], [], [], [], []
    for task, answer in parts:
        p_nc = answer.p_nc[task.scored_n]
        truth.append(task.label_n[task.scored_n])
        label.append(answer.labels[p_nc.argmax(1)])
        top.append(p_nc.max(1))
        if answer.set_nc is not None:
            set_nc = answer.set_nc[task.scored_n]
            code_n = np.searchsorted(answer.labels, truth[-1])
            inside.append(set_nc[np.arange(len(set_nc)), code_n])
            size.append(set_nc.sum(1))
    truth_n, label_n, top_n = np.concatenate(truth), np.concatenate(label), np.concatenate(top)
    right_n, one_n = truth_n == label_n, np.ones(len(truth_n))
    random = np.random.default_rng(0)
    chance = np.mean([reliability(top_n, random.random(len(top_n)) < top_n, one_n).error for _ in range(200)])
    found = {
        "accuracy": float(right_n.mean()),
        "macro_f1": float(f1_score(truth_n, label_n, average="macro", labels=np.unique(truth_n), zero_division=0)),
        "ece": reliability(top_n, right_n, one_n).error,
        "ece_by_chance": float(chance),
    }
    if inside:
        found |= {"coverage": float(np.concatenate(inside).mean()), "size": float(np.concatenate(size).mean())}
    return found


def novelty_scores(parts: list[tuple[Task, Answer]]) -> dict[str, float]:
    """Score how well the cells of left-out labels are recognized, as means over the labels."""
    areas, alarms = [], []
    for task, answer in parts:
        new_n = task.label_n[task.scored_n] == task.left_out
        areas.append(roc_auc_score(new_n, answer.novelty_n[task.scored_n]))
        if answer.unknown_n is not None:
            alarms.append(answer.unknown_n[task.scored_n][~new_n].mean())
    return {"auroc": float(np.mean(areas))} | ({"alarms": float(np.mean(alarms))} if alarms else {})


def measure(name: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all methods on all tasks of a set; return one row per task and method."""
    path, batch = SETS[name]
    adata = anndata.read_h5ad(path)
    folder = arguments.models / f"{name}_{seed}.scvae"
    if not folder.exists():
        trained = {} if batch is None else {"batch_key": batch}
        scvae.train(adata, seed=seed, threads=arguments.threads, device="cpu", **trained).save(folder)
    session = Session.open(adata, folder, device="cpu")
    tasks = [task for task in all_tasks(name, adata, seed) if not task.left_out or seed == 0]
    answers: dict[tuple[str, str, bool], list[tuple[Task, Answer]]] = {}
    found = [(task, "scvae", by_scvae(session, task, seed)) for task in tasks]
    if not arguments.only_scvae:
        found += by_peers(session, adata.obs[[batch] if batch else []], tasks, seed, arguments, name)
    for task, method, answer in found:
        answers.setdefault((task.name, method, bool(task.left_out)), []).append((task, answer))
    rows = []
    for (task_name, method, left_out), parts in answers.items():
        scored = novelty_scores(parts) if left_out else scores(parts)
        rows.append({"set": name, "task": task_name, "seed": seed, "method": method, "left_out": left_out} | scored)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown: means over the seeds, and the standard error of the accuracy."""
    columns = list(COLUMNS)
    lines = [f"| task | method | seeds | {' | '.join(COLUMNS.values())} |", "|---" * (len(columns) + 3) + "|"]
    names = list(dict.fromkeys(row["task"] for row in rows))
    means: dict[str, list[dict[str, float]]] = {}
    for task in names:
        own = [row for row in rows if row["task"] == task]
        for method in dict.fromkeys(row["method"] for row in own):
            some = [row for row in own if row["method"] == method]
            found = {c: [row[c] for row in some if c in row] for c in columns}
            mean = {c: float(np.mean(values)) for c, values in found.items() if values}
            means.setdefault(method, []).append(mean)
            seeds = len(found["accuracy"])
            error = f" ± {np.std(found['accuracy'], ddof=1) / np.sqrt(seeds):.3f}" if seeds > 1 else ""
            cells = [f"{mean[c]:.3f}{error if c == 'accuracy' else ''}" if c in mean else "" for c in columns]
            lines.append(f"| {task} | {method} | {seeds} | {' | '.join(cells)} |")
    for method, members in means.items():
        whole = {c: [mean[c] for mean in members if c in mean] for c in columns}
        cells = [f"{np.mean(values):.3f}" if values else "" for values in whole.values()]
        lines.append(f"| mean of {len(members)} tasks | {method} | | {' | '.join(cells)} |")
    return lines


def _place(rows: list[dict[str, Any]]) -> Callable[[dict[str, Any]], tuple[int, ...]]:
    """Return the key by which rows are sorted: by set, seed, task and method."""
    sets, tasks = list(SETS), list(dict.fromkeys(row["task"] for row in rows))
    return lambda row: (
        sets.index(row["set"]), row["seed"], row["left_out"], tasks.index(row["task"]), METHODS.index(row["method"]),
    )  # fmt: skip


def main() -> None:
    """Measure, and write results/labels.json and results/labels.md; rows that were measured before are kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scvi-python")
    parser.add_argument("--scvi-epochs", type=int, help="largest number of epochs of scVI; by default, that of scVI")
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--sets", default=",".join(SETS), type=lambda text: text.split(","))
    parser.add_argument("--only-scvae", action="store_true", help="measure scvae again, and keep the other results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--models", type=Path, help="folder in which models and predictions of SCANVI are kept for another run"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    place = arguments.results / "labels.json"
    with tempfile.TemporaryDirectory() as temporary:
        arguments.models = arguments.models or Path(temporary)
        for name in arguments.sets:
            for seed in arguments.seeds:
                new = measure(name, seed, arguments)
                rows = json.loads(place.read_text())["rows"] if place.exists() else []
                measured = {(row["set"], row["seed"], row["method"]) for row in new}
                rows = [row for row in rows if (row["set"], row["seed"], row["method"]) not in measured] + new
                rows.sort(key=_place(rows))
                machine = describe_machine(arguments.threads)
                stored = {"date": str(date.today()), "machine": machine, "rows": rows}
                place.write_text(json.dumps(stored, indent=1) + "\n")
                text = ["# Labels", "", f"Written by `benchmarks/labels.py`; {date.today()}; {machine}.", LEGEND]
                place.with_suffix(".md").write_text("\n".join([*text, *table(rows)]) + "\n")


if __name__ == "__main__":
    main()
