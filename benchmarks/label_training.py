"""How do labels change the training of a model, and does the rest of the model become worse?

    python benchmarks/label_training.py [--seeds 0,1,2] [--sets mixology,kang,paul15,pbmc68k] [--threads 2]
        [--labels "none,default,weight 10"]

In each data set, a random half of the cells has a label. A tenth of every cell's molecules is withheld
(`scvae_cli.evaluation.thinning`). Three models are trained on the same cells and molecules with the same seed: without
labels, with labels (`train --labels-key`, with its defaults), and with labels and `--label-weight 10`. The models are
evaluated by

- elbo: held-out ELBO, in nats per cell;
- loss: Poisson loss of the expected counts of the states on the withheld molecules, in nats per cell up to a constant;
- votes and silhouette, in `scvae_latent` and in `X_scvae`, of the cells without a label. Votes are the accuracy with
  which the 15 nearest labeled cells predict the label;
- accuracy, macro_f1, ece and coverage of `annotate` for the cells without a label. For a model with labels, `annotate`
  uses the classifiers that are saved in the model; for the model without labels, `annotate` trains classifiers on the
  labeled cells;
- seconds of the training of the model, and seconds of the training of the classifiers that `annotate` uses.

Results are written to results/label_training.json and .md; results that are not requested are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from labels import Answer, scores
from labels_tasks import SETS, Task
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from timed import describe_machine

import scvae_cli as scvae
from scvae_cli.config import RunConfig
from scvae_cli.data.counts import read_counts
from scvae_cli.data.formats import open_store
from scvae_cli.data.gene_selection import select_genes
from scvae_cli.evaluation.thinning import predicted, thin
from scvae_cli.latent.expected_counts import STATE
from scvae_cli.model.bundle import Model

RESULTS = Path(__file__).parent / "results" / "label_training.json"
LABELS = {"mixology": "cell_line", "kang": "cell_type", "paul15": "cell_type", "pbmc68k": "bulk_labels"}
NEIGHBORS = 15
# Options that differ between the trainings.
TRAININGS: dict[str, dict[str, Any]] = {
    "none": {}, "default": {"labels_key": "given"}, "weight 10": {"labels_key": "given", "label_weight": 10.0},
}  # fmt: skip
COLUMNS = {
    "elbo": "held-out ELBO",
    "loss": "loss on withheld molecules",
    "votes_latent": "votes, scvae_latent",
    "votes_X": "votes, X_scvae",
    "silhouette_latent": "silhouette, scvae_latent",
    "silhouette_X": "silhouette, X_scvae",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "ece": "ECE",
    "coverage": "coverage",
    "seconds": "seconds, model",
    "seconds_of_classifiers": "seconds, classifiers",
}
LEGEND = """\
For each data set, the first row is the training without labels (means over the seeds). The other rows are differences
from the training without labels (± standard error): with labels and default options, and with `--label-weight 10`. The
ELBO (higher is better) and the loss (lower is better) are in nats per cell. Votes and silhouettes evaluate the two
embeddings; accuracy, macro F1, calibration error (ECE) and coverage of prediction sets evaluate `annotate`.
"""


def measure(name: str, seed: int, trainings: list[str], threads: int) -> list[dict[str, Any]]:
    """Train models and return their rows."""
    path, batch_key = SETS[name]
    adata = anndata.read_h5ad(path)
    counts = read_counts(open_store(adata))
    counts = counts.genes(select_genes(counts, np.arange(counts.n_cells), RunConfig().data)[0])
    thinned = thin(counts, seed=seed)
    kept = thinned.kept
    cells = anndata.AnnData(kept.matrix, obs=adata.obs.loc[kept.cell_names], var=adata.var.loc[kept.gene_names])
    label_n = cells.obs[LABELS[name]].astype(str).to_numpy()
    given_n = np.random.default_rng(seed).random(len(label_n)) < 0.5
    cells.obs["given"] = cells.obs[LABELS[name]].astype(object).where(given_n)
    task = Task(name=name, label_n=label_n, given_n=given_n, scored_n=~given_n, exchangeable=True)
    rows = []
    for labels in trainings:
        asked: dict[str, Any] = {"seed": seed, "threads": threads, "device": "cpu", "genes": "all"}
        asked |= {"batch_key": batch_key} if batch_key else {}
        start = time.perf_counter()
        model = scvae.train(cells, **asked, **TRAININGS[labels])
        whole = time.perf_counter() - start
        row = {"set": name, "seed": seed, "labels": labels, "elbo": model.facts["heldout_elbo"]}
        row |= {"seconds": model.facts["seconds"], "seconds_of_classifiers": whole - model.facts["seconds"]}
        row["loss"] = float(thinned.poisson_loss(predicted(model, _in_batches(kept, cells, batch_key), STATE)).mean())
        rows.append(row | _of_cells(cells, model, task))
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
    return rows


def _in_batches(kept: Any, cells: anndata.AnnData, batch_key: str | None) -> Any:
    """Return the counts, with the batches of the cells if the data has batches."""
    return kept if batch_key is None else read_counts(open_store(cells), batch_key=batch_key)


def _of_cells(cells: anndata.AnnData, model: Model, task: Task) -> dict[str, float]:
    """Score the embeddings and the predicted labels of the cells without a label."""
    embedding = scvae.embed(cells, model, inplace=False)
    found: dict[str, float] = {}
    label_n, given_n = task.label_n, task.given_n
    for where, position_nj in (("latent", embedding.mean_nk), ("X", embedding.position_nj)):
        voters = KNeighborsClassifier(NEIGHBORS).fit(position_nj[given_n], label_n[given_n])
        found[f"votes_{where}"] = float((voters.predict(position_nj[~given_n]) == label_n[~given_n]).mean())
        found[f"silhouette_{where}"] = float(silhouette_score(position_nj[~given_n], label_n[~given_n]))
    asked = {"labels_key": "given"} if model.labels is None else {}
    result = scvae.annotate(cells, model, inplace=False, **asked)
    order = np.argsort(result.labels)
    answer = Answer(
        result.probability_nc[:, order].astype(float), np.asarray(result.labels)[order], -result.p_n,
        result.set_nc[:, order], result.unknown_n,
    )  # fmt: skip
    return found | scores([(task, answer)])


def changes(rows: list[dict[str, Any]], name: str, labels: str, columns: Sequence[str]) -> np.ndarray:
    """Return the differences from the training without labels in one set, shape (seeds, columns).

    Only seeds with both trainings are compared.
    """
    of = {(row["labels"], row["seed"]): row for row in rows if row["set"] == name}
    seeds = [seed for kind, seed in of if kind == labels and ("none", seed) in of]
    pairs = [(of[labels, seed], of["none", seed]) for seed in seeds]
    return np.asarray([[ours[column] - without[column] for column in columns] for ours, without in pairs])


def table(rows: list[dict[str, Any]], columns: dict[str, str] = COLUMNS) -> list[str]:
    """Format means over the seeds, and differences from the training without labels, with standard errors."""
    lines = [f"| data | labels | {' | '.join(columns.values())} |", "|---" * (len(columns) + 2) + "|"]
    for name in dict.fromkeys(row["set"] for row in rows):
        without = [[row[c] for c in columns] for row in rows if (row["set"], row["labels"]) == (name, "none")]
        if without:
            lines.append(f"| {name} | none | {' | '.join(f'{value:.3f}' for value in np.mean(without, axis=0))} |")
        for labels in list(TRAININGS)[1:]:
            change = changes(rows, name, labels, columns)
            if len(change) < 2:
                continue
            error = change.std(axis=0, ddof=1) / np.sqrt(len(change))
            cells = [f"{mean:+.3f} ± {one:.3f}" for mean, one in zip(change.mean(axis=0), error, strict=True)]
            lines.append(f"| {name} | {labels}, difference | {' | '.join(cells)} |")
    return lines


def add_rows(path: Path, new: list[dict[str, Any]], machine: str, sets: Sequence[str]) -> list[dict[str, Any]]:
    """Add rows to a file of results, or replace older rows of the same trainings; return all rows."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    again = {(row["set"], row["seed"], row["labels"]) for row in new}
    rows = [row for row in rows if (row["set"], row["seed"], row["labels"]) not in again]
    rows += [{"machine": machine} | row for row in new]
    rows.sort(key=lambda row: (sets.index(row["set"]), row["seed"], list(TRAININGS).index(row["labels"])))
    path.write_text(json.dumps({"date": str(date.today()), "rows": rows}, indent=1) + "\n")
    return rows


def machines(rows: list[dict[str, Any]]) -> str:
    """List the machines on which rows were measured."""
    return " and ".join(dict.fromkeys(row["machine"] for row in rows))


def main() -> None:
    """Measure, and write the results; rows that were measured before are kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--sets", default=",".join(SETS), type=lambda text: text.split(","))
    parser.add_argument("--labels", default=",".join(TRAININGS), type=lambda text: text.split(","))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        for name in arguments.sets:
            machine = describe_machine(arguments.threads)
            rows = add_rows(RESULTS, measure(name, seed, arguments.labels, arguments.threads), machine, list(SETS))
            text = [
                "# Training with labels",
                "",
                f"Written by `benchmarks/label_training.py`; {date.today()}; {machines(rows)}.",
            ]
            RESULTS.with_suffix(".md").write_text("\n".join([*text, LEGEND, *table(rows)]) + "\n")


if __name__ == "__main__":
    main()
