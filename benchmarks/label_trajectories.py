"""Do trajectories, the order of cells and fates become worse if a model is trained with labels?

    python benchmarks/label_trajectories.py [--seeds 0,1,2] [--sets "2 ends,4 ends, nested,paul15"]
        [--labels "none,default,weight 10"] [--threads 2]

As in `label_training.py`, a random half of the cells has a label, and three models are trained on the same cells with
the same seed: without labels, with labels (`train --labels-key`, with its defaults), and with labels and
`--label-weight 10`. All models then get the same questions. The sets are simulated trees (`fates_trees.py`), in which
the true path, order and fate of every cell are known, and mouse myeloid progenitors (paul15). The measures are:

- geodesic, straight: error of the decoded trajectory from the stem cells to an end, with the paths of these names. The
  error is the mean distance, over 60 points of the true curve, to the nearest point of the trajectory, in
  log-normalized expression (`trajectories_simulated.py`); mean over the ends.
- off: largest off-manifold score of a geodesic, 0 to 1; mean over the ends.
- in_order: share of the five geodesics of paul15 that pass the populations in their known order.
- lineage, within, fate, committed, auc, ece and brier: `fates.py` says what is measured.
- hidden: share of mature cells whose most probable end is their true end, among the mature cells without a label. The
  labels of these cells are hidden from the pseudotime too.
- CD34, FcgR3: Spearman correlation of the pseudotime with two surface proteins (`trajectories_paul15.py`). CD34 is lost
  along the lineage, so its correlation is multiplied by −1: a larger value is better.

Each difference from the model without labels is a mean over the seeds, with its standard error. The last table counts
the differences that are worse, and that are better, by more than two standard errors. With three seeds, a difference
that is only noise is worse by more than two standard errors with a probability of 9% (t distribution with 2 degrees of
freedom).

Results are written to results/label_trajectories.json and .md; results that are not requested are kept.
"""

from __future__ import annotations

import argparse
import re
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import trajectories_paul15
from fates import HIDDEN, PAUL, PAUL_ENDS, PAUL_ROOT, fate_scores, mature_of, order_scores, ordered, right
from fates_trees import tree
from label_training import TRAININGS, add_rows, changes, machines, table
from nearest_point import log_normalized, to_polyline
from scipy.stats import t
from timed import describe_machine
from trajectories_simulated import truth_between

import scvae_cli as scvae
from scvae_cli.model.bundle import Model

RESULTS = Path(__file__).parent / "results" / "label_trajectories.json"
# Number of ends of each simulated tree, and whether its branches leave each other.
TREES = {"2 ends": (2, False), "4 ends, nested": (4, True)}
SETS = (*TREES, "paul15")
SHARED = ("off", "lineage", "within", "fate", "committed", "hidden")
COLUMNS = {
    "trees": ("geodesic", "straight", *SHARED, "auc", "ece", "brier"),
    "paul15": ("in_order", "CD34", "FcgR3", *SHARED),
}
# Headings of the measures in the table.
NAMES = {
    "geodesic": "error, geodesic",
    "straight": "error, straight",
    "in_order": "share in known order",
    "CD34": "−ρ with CD34",
    "FcgR3": "ρ with FcgR3",
    "off": "off-manifold score",
    "lineage": "order of lineages (ρ)",
    "within": "order within groups (ρ)",
    "fate": "fate of mature cells",
    "committed": "committed mature cells",
    "hidden": "fate, labels hidden",
    "auc": "AUC of progenitors",
    "ece": "ECE",
    "brier": "Brier score",
}
# Measures of which a smaller value is better.
SMALLER = {"geodesic", "straight", "off", "ece", "brier"}


def measure(name: str, seed: int, trainings: list[str], threads: int) -> list[dict[str, Any]]:
    """Train models on one set and return their rows."""
    adata = anndata.read_h5ad(PAUL) if name == "paul15" else tree(TREES[name][0], seed, nested=TREES[name][1])
    groups = adata.obs["cell_type"].astype(str).to_numpy()
    root, ends = (PAUL_ROOT, PAUL_ENDS) if name == "paul15" else ("stem", mature_of(adata))
    given_n = np.random.default_rng(seed).random(adata.n_obs) < 0.5
    adata.obs["given"] = adata.obs["cell_type"].astype(object).where(given_n)
    hidden_n = np.isin(groups, ends) & ~given_n
    adata.obs["partly_hidden"] = np.where(hidden_n, HIDDEN, groups)
    rows = []
    for labels in trainings:
        model = scvae.train(adata, seed=seed, genes="all", threads=threads, device="cpu", **TRAININGS[labels])
        all_labels, some_labels = (ordered(adata, model, key, root, ends) for key in ("cell_type", "partly_hidden"))
        row: dict[str, Any] = {"set": name, "seed": seed, "labels": labels}
        row |= order_scores(adata, name, groups, all_labels.pseudotime_n, ends)
        row |= fate_scores(adata, name, groups, all_labels.probability_ne, ends)
        row["hidden"] = right(some_labels.probability_ne, groups, hidden_n, ends)
        if name == "paul15":
            row |= _known_biology(adata, model, groups, all_labels.pseudotime_n)
        else:
            row |= _errors(adata, model, groups, ends)
        rows.append({key: float(value) if isinstance(value, np.floating) else value for key, value in row.items()})
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
    return rows


def _errors(adata: anndata.AnnData, model: Model, groups: np.ndarray, ends: list[str]) -> dict[str, float]:
    """Compare decoded trajectories with the true expression between the same populations, as means over the ends."""
    time_n = adata.obs["true_pseudotime"].to_numpy()
    found: dict[str, list[float]] = {"geodesic": [], "straight": [], "off": []}
    for end in ends:
        branch = int(end.rsplit("_", 1)[1])
        truth_tg = truth_between(adata, branch, time_n[groups == "stem"].mean(), time_n[groups == end].mean())
        for kind in ("geodesic", "straight"):
            trajectory = scvae.interpolate(
                adata, model, groupby="cell_type", groups=["stem", end], path=kind, inplace=False
            )
            assert trajectory is not None
            found[kind].append(float(to_polyline(truth_tg, log_normalized(trajectory.mean_tg)).mean()))
            if kind == "geodesic":
                found["off"].append(float(trajectory.steps.off_manifold_t.max()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _known_biology(
    adata: anndata.AnnData, model: Model, groups: np.ndarray, pseudotime_n: np.ndarray
) -> dict[str, float]:
    """Compare trajectories and pseudotime with the known order of populations, and with surface proteins."""
    orders, off = [], []
    for end, known in trajectories_paul15.KNOWN.items():
        trajectory = scvae.interpolate(adata, model, groupby="cell_type", groups=[PAUL_ROOT, end], inplace=False)
        assert trajectory is not None
        orders.append(trajectories_paul15.in_order(known, trajectory.steps.groups_passed()))
        off.append(float(trajectory.steps.off_manifold_t.max()))
    found = trajectories_paul15.agreement(adata, groups, pseudotime_n)
    proteins = {"CD34": -found["CD34, red"], "FcgR3": found["FcgR3, monocyte"]}
    return {"in_order": float(np.mean(orders)), "off": float(np.mean(off))} | proteins


def worse_and_better(rows: list[dict[str, Any]]) -> list[str]:
    """List, for each training with labels, the measures that differ by more than two standard errors."""
    lines = ["| labels | measures | worse by more than 2 SE | better by more than 2 SE |", "|---|---|---|---|"]
    for labels in list(TRAININGS)[1:]:
        compared, found = 0, {"worse": list[str](), "better": list[str]()}
        for name in dict.fromkeys(row["set"] for row in rows):
            columns = COLUMNS["paul15" if name == "paul15" else "trees"]
            change_rc = changes(rows, name, labels, columns)
            if len(change_rc) < 2:
                continue
            error_c = change_rc.std(axis=0, ddof=1) / np.sqrt(len(change_rc))
            for column, mean, error in zip(columns, change_rc.mean(axis=0), error_c, strict=True):
                compared += 1
                gain = -mean if column in SMALLER else mean
                if abs(gain) > 2 * error:
                    found["worse" if gain < 0 else "better"].append(
                        f"{name}: {NAMES[column]} {mean:+.3f} ± {error:.3f}"
                    )
        if compared:
            shown = [f"{len(found[kind])} ({'; '.join(found[kind]) or 'none'})" for kind in ("worse", "better")]
            lines.append(f"| {labels} | {compared} | {shown[0]} | {shown[1]} |")
    n_seeds = len({row["seed"] for row in rows})
    if n_seeds > 1:
        by_chance = t.sf(2, n_seeds - 1)
        lines += ["", f"By chance, {by_chance:.0%} of the measures would be worse by more than 2 standard errors."]
    return lines


def text(rows: list[dict[str, Any]]) -> str:
    """Format the results as markdown."""
    lines = ["# Trajectories of models that were trained with labels", ""]
    lines += [f"{date.today()}; {machines(rows)}. `label_trajectories.py` says what is measured.", ""]
    trees = [row for row in rows if row["set"] != "paul15"]
    for part, members in (("trees", trees), ("paul15", [row for row in rows if row["set"] == "paul15"])):
        if members:
            lines += [*table(members, {column: NAMES[column] for column in COLUMNS[part]}), ""]
    return "\n".join([*lines, *worse_and_better(rows)]) + "\n"


def _names(argument: str) -> list[str]:
    """Split a list of sets at the commas, except at the comma in the name of a nested tree."""
    return re.split(r",(?! )", argument)


def main() -> None:
    """Measure, and write the results; rows that were measured before are kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--sets", default=",".join(SETS), type=_names)
    parser.add_argument("--labels", default=",".join(TRAININGS), type=lambda text: text.split(","))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    machine = describe_machine(arguments.threads)
    for seed in arguments.seeds:
        for name in arguments.sets:
            rows = add_rows(RESULTS, measure(name, seed, arguments.labels, arguments.threads), machine, SETS)
            RESULTS.with_suffix(".md").write_text(text(rows))


if __name__ == "__main__":
    main()
