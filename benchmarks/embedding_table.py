"""Make the table of `embedding.py`, results/embedding.md, from the recorded runs in results/embedding.json.

python benchmarks/embedding_table.py
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
NAMES = {"expression": "X_scvae", "latent": "scvae_latent", "pca": "PCA", "harmony": "Harmony", "scvi": "scVI"}
LABEL_SCORES = {
    "knn": "neighbor accuracy",
    "ari_1": "ARI at resolution 1",
    "ari_best": "best ARI",
    "nmi_1": "NMI at resolution 1",
    "nmi_best": "best NMI",
    "silhouette": "silhouette",
}


def shown(values: Iterable[float]) -> str:
    """Return mean ± standard error of the seeds, or the value of a single seed."""
    found = list(values)
    if not found:
        return "–"
    mean = sum(found) / len(found)
    if len(found) == 1:
        return f"{mean:.3f}"
    variance = sum((value - mean) ** 2 for value in found) / (len(found) - 1)
    return f"{mean:.3f} ± {math.sqrt(variance / len(found)):.3f}"


def table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "--:|" * (len(head) - 2)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def label_lines(results: dict[str, Any]) -> list[str]:
    """Return the table of the scores that need labels, with the means over the data sets."""
    rows, means = [], {name: {score: [] for score in LABEL_SCORES} for name in NAMES}
    for data, runs in results.items():
        for name in NAMES:
            of = [run["labels"][name] for run in runs.values() if name in run["labels"]]
            if not of:
                continue
            rows.append([data, NAMES[name], *(shown(one[score] for one in of) for score in LABEL_SCORES)])
            for score in LABEL_SCORES:
                means[name][score].append(sum(one[score] for one in of) / len(of))
    n_sets = max(len(scores["knn"]) for scores in means.values())
    for name, scores in means.items():
        # A mean over other data sets would not be comparable.
        if len(scores["knn"]) == n_sets:
            values = [f"{sum(scores[score]) / n_sets:.3f}" for score in LABEL_SCORES]
            rows.append([f"mean of {n_sets}", NAMES[name], *values])
    return table(["data", "embedding", *LABEL_SCORES.values()], rows)


def batch_lines(results: dict[str, Any]) -> list[str]:
    """Return the table of scIB's scores, with the means over the data sets."""
    rows: list[list[str]] = []
    means: dict[str, list[float]] = {name: [] for name in NAMES}
    for data, runs in results.items():
        for name in NAMES:
            of = [run["scores"][name] for run in runs.values() if name in run.get("scores", {})]
            if of:
                rows.append(
                    [data, NAMES[name], *(shown(one[part] for one in of) for part in ("total", "bio", "batch"))]
                )
                means[name].append(sum(one["total"] for one in of) / len(of))
    n_sets = max(len(totals) for totals in means.values())
    for name, totals in means.items():
        if totals and len(totals) == n_sets:
            rows.append([f"mean of {n_sets}", NAMES[name], f"{sum(totals) / n_sets:.3f}", "", ""])
    return table(["data", "embedding", "total", "bio conservation", "batch correction"], rows)


def distance_lines(results: dict[str, Any]) -> list[str]:
    """Return the table of rank correlations, shared neighbors and times."""
    rows = []
    for data, runs in results.items():
        for name in NAMES:
            rank = [run["rank_correlation"][name] for run in runs.values() if name in run["rank_correlation"]]
            common = [run["shared_neighbors"][name] for run in runs.values() if name in run.get("shared_neighbors", {})]
            tool = {"expression": "scvae", "scvi": "scvi"}.get(name, "")
            seconds = [run["seconds"][tool] for run in runs.values() if tool in run["seconds"]]
            took = f"{sum(seconds) / len(seconds):.0f}" if seconds else "–"
            if rank or common or seconds:
                rows.append([data, NAMES[name], shown(rank), shown(common), took])
    return table(["data", "embedding", "rank correlation", "shared neighbors", "seconds of training"], rows)


def main() -> None:
    """Write results/embedding.md."""
    results = json.loads((RESULTS / "embedding.json").read_text())
    runs: dict[str, Any] = {name: of for name, of in results.items() if name != "hardware"}
    judged = {name: of for name, of in runs.items() if any("scores" in run for run in of.values())}
    labelled = {name: of for name, of in runs.items() if " by " not in name and not name.startswith("tree")}
    lines = [
        "# Neighbors, clusters and batches",
        "",
        "Written by `benchmarks/embedding_table.py`; the docstring of `embedding.py` says what is compared. Means over "
        f"the seeds ± standard error. {results['hardware']}",
        "",
        "## Known labels",
        "",
        "Accuracy of the vote of the 15 nearest neighbors, agreement of Leiden clusters with the labels (ARI and NMI, "
        "at resolution 1 and at the best of five resolutions), and mean silhouette. Higher is better.",
        "",
        *label_lines(labelled),
        "",
        "## Batches",
        "",
        "Scores of scIB; higher is better.",
        "",
        *batch_lines(judged),
        "",
        "## Distances and seeds",
        "",
        "Rank correlation of distances with Fisher–Rao lengths; mean share of the 15 nearest neighbors of a cell that "
        "trainings with different seeds have in common; and time of the training.",
        "",
        *distance_lines(runs),
        "",
    ]
    (RESULTS / "embedding.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
