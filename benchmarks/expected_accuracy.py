"""Is the accuracy that `annotate` expects close to the true accuracy, also if the labels lack a type of the cells?

    python benchmarks/expected_accuracy.py [--seeds 0] [--sets kang,paul15] [--flows "kang, donor → donor"]

`annotate` reports which share of the cells without a label is expected to get the correct label (`expected_accuracy` in
the JSON). The truth is the share of these cells whose label in obs["scvae_label"] is correct. A cell of a type that the
labels lack never gets the correct label. Two simpler estimates are compared with `expected_accuracy`: the accuracy on
the held-out labeled cells, and the mean probability of the predicted labels.

- Sets: the tasks of `labels_tasks.py`. One model is trained on all cells of a set, without labels. All labels are
  given, and then each label is left out in turn.
- Flows: the references and queries of `mapping.py`. A model is trained on the reference with its labels, the query is
  mapped onto the model, and the labels of the query are predicted (`train --labels-key`, `map`, `annotate`). Then each
  of the first `--leave-out` types with at least 15 cells in the query is removed from the reference in turn.

The constants of the estimate were chosen on the set kang, and the correction for new batches on kang and mixology. The
other sets and all flows show how the estimate does on other data. The recorded results have seed 0, and all flows
except paul15. Results are written to results/expected_accuracy.json and .md; rows of other sets, flows and seeds are
kept. Trained models are kept in the folder `--models`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from labels_tasks import SETS, Task, all_tasks
from mapping import LEAST_LEFT_OUT, cells_of
from mapping import SETS as FLOWS
from timed import describe_machine

import scvae_cli as scvae
from scvae_cli.data.known_labels import KnownLabels
from scvae_cli.session import Session
from scvae_cli.tools.annotate.annotation import annotate
from scvae_cli.tools.annotate.batches import new_batches
from scvae_cli.tools.annotate.options import AnnotateOptions
from scvae_cli.tools.annotate.result import Annotation

HERE = Path(__file__).parent
ESTIMATES = ("expected", "mean_probability", "heldout")


def scores(found: Annotation, label_n: np.ndarray, other_n: np.ndarray) -> dict[str, float]:
    """Compare the estimates with the truth on the cells without a label."""
    right_n = np.append(found.labels, "")[found.code_n] == label_n
    assert found.expected is not None, "some cells have no label"
    return {
        "n_cells": int(other_n.sum()),
        "of_missing_types": float((~np.isin(label_n[other_n], found.labels)).mean()),
        "of_missing_types_expected": found.expected.of_missing_types,
        "true": float(right_n[other_n].mean()),
        "expected": found.expected.accuracy,
        "mean_probability": float(found.probability_nc[other_n].max(1).mean(dtype=np.float64)),
        "heldout": found.quality.labels.accuracy,
    }


def of_set(name: str, seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Annotate the cells of all tasks of a set."""
    path, batch = SETS[name]
    adata, folder = anndata.read_h5ad(path), arguments.models / f"{name}_{seed}.scvae"
    if not folder.exists():
        trained = {} if batch is None else {"batch_key": batch}
        scvae.train(adata, seed=seed, threads=arguments.threads, device="cpu", **trained).save(folder)
    session = Session.open(adata, folder, device="cpu")
    for task in all_tasks(name, adata, seed):
        yield {"of": task.name, "left_out": task.left_out} | scores(_annotated(session, task, seed), *_others(task))


def _annotated(session: Session, task: Task, seed: int) -> Annotation:
    labels = np.unique(task.label_n[task.given_n])
    code_n = np.where(task.given_n, np.searchsorted(labels, task.label_n), -1)
    known = KnownLabels(tuple(labels), code_n)
    options = AnnotateOptions(labels_key="label", seed=seed)
    return annotate(session, known, options, new_batch_n=new_batches(session, known, None).batch_n)


def _others(task: Task) -> tuple[np.ndarray, np.ndarray]:
    return task.label_n, ~task.given_n


def of_flow(name: str, seed: int, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train on the reference, map the query, and annotate it."""
    chosen = FLOWS[name]
    adata, of_reference = cells_of(name)
    label_n = adata.obs[chosen.labels].astype(str).to_numpy()
    query, of_query_n = adata[~of_reference].copy(), label_n[~of_reference]
    in_both = sorted(set(label_n[of_reference]) & set(of_query_n))
    in_both = [label for label in in_both if (of_query_n == label).sum() >= LEAST_LEFT_OUT]
    for left_out in ("", *in_both[: arguments.leave_out]):
        words = (name, "without", left_out, seed) if left_out else (name, "labeled", seed)
        stem = "".join(letter if letter.isalnum() else "_" for letter in " ".join(map(str, words)))
        folder = arguments.models / f"{stem}.scvae"
        if not folder.exists():
            reference = adata[of_reference & (label_n != left_out)].copy()
            asked = {"labels_key": chosen.labels, "batch_key": chosen.batch_key}
            model = scvae.train(reference, seed=seed, threads=arguments.threads, device="cpu", **asked)
            scvae.map(query, model, batch_key=chosen.batch_key, device="cpu").save(folder)
        found = scvae.annotate(query, scvae.load(folder), inplace=False)
        every_n = np.ones(len(of_query_n), dtype=bool)
        yield {"of": name, "left_out": left_out} | scores(found, of_query_n, every_n)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown: mean absolute errors of the estimates, and means over the rows of a task."""
    lines = [
        "| task | labels lack a type | runs | of missing types | estimated | true accuracy | expected | mean "
        "probability | held-out cells | error of expected | error of mean probability | error of held-out cells |",
        "|---" * 12 + "|",
    ]
    kinds = list(dict.fromkeys((row["of"], row["of_missing_types"] > 0) for row in rows))
    means: dict[bool, list[list[float]]] = {}
    for of, lacking in sorted(kinds, key=lambda kind: kind[1]):
        own = [row for row in rows if (row["of"], row["of_missing_types"] > 0) == (of, lacking)]
        columns = ("of_missing_types", "of_missing_types_expected", "true", *ESTIMATES)
        values = [float(np.mean([row[column] for row in own])) for column in columns]
        values += [float(np.mean([abs(row[column] - row["true"]) for row in own])) for column in ESTIMATES]
        means.setdefault(lacking, []).append(values)
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {of} | {'yes' if lacking else 'no'} | {len(own)} | {cells} |")
    for lacking, members in means.items():
        cells = " | ".join(f"{value:.3f}" for value in np.mean(members, axis=0))
        lines.append(f"| mean of {len(members)} tasks | {'yes' if lacking else 'no'} | | {cells} |")
    return lines


def main() -> None:
    """Measure, and write results/expected_accuracy.json and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--sets", default=";".join(SETS), help="names, separated by ;")
    parser.add_argument("--flows", default=";".join(FLOWS), help="names, separated by ;")
    parser.add_argument("--leave-out", type=int, default=2, help="number of types to remove from a reference in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "scvae_expected_accuracy")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "expected_accuracy.json")
    arguments = parser.parse_args()
    arguments.models.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    asked = [(name, of_set) for name in arguments.sets.split(";") if name]
    asked += [(name, of_flow) for name in arguments.flows.split(";") if name]
    order = [*SETS, *FLOWS]
    for name, measure in asked:
        for seed in arguments.seeds:
            new = [{"set": name, "seed": seed} | row for row in measure(name, seed, arguments)]
            # The file is read again, because another run may have added results.
            rows = json.loads(arguments.results.read_text())["rows"] if arguments.results.exists() else []
            rows = [row for row in rows if (row["set"], row["seed"]) != (name, seed)] + new
            rows.sort(key=lambda row: (order.index(row["set"]), row["seed"]))
            machine = describe_machine(arguments.threads)
            stored = {"date": str(date.today()), "machine": machine, "rows": rows}
            arguments.results.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
            text = [
                "# Expected accuracy",
                "",
                f"{date.today()}; {machine}. `expected_accuracy.py` says what is measured.",
            ]
            arguments.results.with_suffix(".md").write_text("\n".join([*text, "", *table(rows)]) + "\n")


if __name__ == "__main__":
    main()
