"""Are the fates of mature cells, the fate probabilities of progenitors and the order of cells correct?

    python benchmarks/fates.py [--peers-python PEERS_ENV/bin/python] [--seeds 10,11,12] [--parts trees,paul15]

The part `trees` (`fates_trees.py`) simulates trees with 2 to 6 ends, which have different numbers of cells. The
branches leave the trunk together or one after the other. The true order and the true fates are known. The part `paul15`
uses mouse myeloid progenitors with all five ends. The measures are:

- fate, committed: share of mature cells whose most probable end is their true end, and share of mature cells that are
  committed to their true end. The shares of mature cells are means over the ends.
- hidden: share of mature cells whose most probable end is their true end, among cells whose label was hidden from the
  method (half of the mature cells).
- AUC: how well the probability of an end distinguishes cells that develop into this end from all other cells, between
  the last branching and maturity. The mean over the ends is given, for the trees only.
- ECE: mean difference between predicted probabilities and observed frequencies, in ten bins, over all cells that are
  not mature. Brier: mean squared error of the probabilities, summed over the ends.
- uncommitted: share of all cells that are not committed to an end.
- lineage, within: mean Spearman correlation with the true pseudotime, over the cells from the root to an end
  ("lineage"), and over the cells of each group ("within"). For paul15, the published pseudotime of monocle replaces the
  truth, and the lineages are erythrocytes, monocytes and neutrophils. Monocle's pseudotime is itself an estimate.

scvae is compared with diffusion pseudotime (`sc.tl.dpt`) on X_scvae and on PCA. Diffusion pseudotime gives no fates.
With `--peers-python`, scvae is also compared with Palantir and CellRank's pseudotime kernel, both on PCA
(`fates_peers.py`). Palantir represents each end by one cell and CellRank by 30 cells, whereas scvae uses the whole
group. A comparison of `fate` therefore favors scvae; comparisons of `hidden`, `auc`, `ece` and `brier` do not. All
methods start from the same root cell: the first root cell that scvae chose.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scanpy as sc
from fates_trees import MATURE, tree, turning_points
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from timed import describe_machine

import scvae_cli as scvae
from scvae_cli.latent.fates import committed

HERE = Path(__file__).parent
PAUL = HERE.parents[1] / "shared" / "data" / "paul15_3004.h5ad"
TREES = ((2, False), (3, False), (4, True), (5, True), (6, False))
PAUL_ROOT = "Multipotent progenitors"
PAUL_ENDS = ["Erythrocyte", "Megakaryocytes", "Monocytes", "Neutrophils", "Basophils"]
PAUL_LINEAGES = {
    "red": [PAUL_ROOT, "Erythrocyte"],
    "monocyte": [PAUL_ROOT, "GMP", "Monocytes"],
    "neutrophil": [PAUL_ROOT, "GMP", "Neutrophils"],
}
HIDDEN = "hidden"
COLUMNS = {
    "fate": "true end most probable",
    "committed": "committed to the true end",
    "hidden": "true end most probable, label hidden",
    "auc": "AUC",
    "ece": "ECE",
    "brier": "Brier score",
    "uncommitted": "uncommitted cells",
    "lineage": "ρ along lineages",
    "within": "ρ within groups",
}
LEGEND = (
    "The first three columns are shares of mature cells; in the third column, the labels of these cells were hidden "
    "from the method. AUC, ECE and Brier score evaluate the fate probabilities of cells that are not yet mature; for "
    "ECE and Brier score, lower is better. Uncommitted cells are the share of all cells that are not committed to an "
    "end. ρ is Spearman's correlation with the true pseudotime (for paul15: with monocle's pseudotime). Means over the "
    "seeds; a measure that a method or data set lacks is empty."
)


def measure(adata: anndata.AnnData, data: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train once, and score every method; return one row per method."""
    root, ends = (PAUL_ROOT, PAUL_ENDS) if data == "paul15" else ("stem", mature_of(adata))
    model = scvae.train(adata, seed=seed, threads=arguments.threads, device="cpu")
    scvae.embed(adata, model)
    groups = adata.obs["cell_type"].astype(str).to_numpy()
    random = np.random.default_rng(seed)
    hidden_n = np.isin(groups, ends) & (random.random(len(groups)) < 0.5)
    adata.obs["partly_hidden"] = np.where(hidden_n, HIDDEN, groups)
    own = [ordered(adata, model, key, root, ends) for key in ("cell_type", "partly_hidden")]
    pca(adata)
    first = adata.obs_names.get_loc(own[0].root_cells[0])
    found = {"scvae": (own[0].pseudotime_n, own[0].probability_ne, own[1].probability_ne)}
    for name, key in (("X_scvae", "X_scvae"), ("PCA", "X_pca")):
        found[f"dpt on {name}"] = (dpt(adata, key, first), None, None)
    if arguments.peers_python:
        found |= peers(adata, first, ends, arguments.peers_python)
    rows = []
    for method, (time_n, probability_ne, of_hidden_ne) in found.items():
        row = {"data": data, "seed": seed, "method": method}
        row |= order_scores(adata, data, groups, time_n, ends)
        if probability_ne is not None:
            row |= fate_scores(adata, data, groups, probability_ne, ends)
        if of_hidden_ne is not None:
            row["hidden"] = right(of_hidden_ne, groups, hidden_n, ends)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr)
    return rows


def mature_of(adata: anndata.AnnData) -> list[str]:
    """Return the groups at the ends of a tree."""
    return [group for group in adata.obs["cell_type"].cat.categories if group.startswith("mature")]


def ordered(adata: anndata.AnnData, model: Any, groupby: str, root: str, ends: list[str]) -> Any:
    """Compute the order and the fates of scvae."""
    return scvae.pseudotime(adata, model, groupby=groupby, root=root, ends=ends, inplace=False)


def pca(adata: anndata.AnnData) -> None:
    """Compute scanpy's usual PCA, in obsm["X_pca"]."""
    cells = anndata.AnnData(adata.X.copy(), obs=adata.obs[[]], var=adata.var[[]])
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    sc.pp.highly_variable_genes(cells, n_top_genes=2000)
    sc.pp.pca(cells, n_comps=30)
    adata.obsm["X_pca"] = cells.obsm["X_pca"]


def dpt(adata: anndata.AnnData, key: str, root: int) -> np.ndarray:
    """Compute scanpy's diffusion pseudotime with its defaults."""
    cells = anndata.AnnData(obs=adata.obs[[]], obsm={key: adata.obsm[key]})
    sc.pp.neighbors(cells, use_rep=key)
    sc.tl.diffmap(cells)
    cells.uns["iroot"] = int(root)
    sc.tl.dpt(cells)
    return cells.obs["dpt_pseudotime"].to_numpy()


def peers(adata: anndata.AnnData, root: int, ends: list[str], python: str) -> dict[str, Any]:
    """Run Palantir and CellRank in a separate environment, with all labels and with half of the labels hidden."""
    with tempfile.TemporaryDirectory() as folder:
        cells = anndata.AnnData(obs=adata.obs[["cell_type", "partly_hidden"]], obsm={"X_pca": adata.obsm["X_pca"]})
        cells.write_h5ad(Path(folder) / "cells.h5ad")
        command = [python, str(HERE / "fates_peers.py"), folder, str(root), *ends]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        loaded = np.load(Path(folder) / "peers.npz")
        names = ("Palantir", "CellRank")
        return {name: tuple(loaded[f"{name}_{part}"] for part in ("time", "fates", "hidden")) for name in names}


def order_scores(
    adata: anndata.AnnData, data: str, groups: np.ndarray, time_n: np.ndarray, ends: list[str]
) -> dict[str, float]:
    """Compute correlations with the truth, or with monocle's order, along lineages and within groups."""
    if data == "paul15":
        true_n = adata.obs["monocle_pseudotime"].to_numpy()
        lineages = [np.isin(groups, members) for members in PAUL_LINEAGES.values()]
        within = [groups == end for end in ("Erythrocyte", "Monocytes", "Neutrophils")]
    else:
        true_n, branch_n = adata.obs["true_pseudotime"].to_numpy(), adata.obs["true_branch"].astype(str).to_numpy()
        lineages = [np.isin(branch_n, ["trunk", f"branch_{end.rsplit('_', 1)[1]}"]) for end in ends]
        within = [groups == group for group in ("stem", "progenitor", *ends)]

    def mean(masks: list[np.ndarray]) -> float:
        return float(np.mean([spearmanr(time_n[mask], true_n[mask])[0] for mask in masks]))

    return {"lineage": mean(lineages), "within": mean(within)}


def right(probability_ne: np.ndarray, groups: np.ndarray, some_n: np.ndarray, ends: list[str]) -> float:
    """Compute the share of some mature cells whose most probable end is their true end, as a mean over the ends."""
    best_n = np.asarray(ends)[probability_ne.argmax(1)]
    return float(np.mean([(best_n[some_n & (groups == end)] == end).mean() for end in ends]))


def fate_scores(
    adata: anndata.AnnData, data: str, groups: np.ndarray, probability_ne: np.ndarray, ends: list[str]
) -> dict[str, float]:
    """Score the fate probabilities of mature cells and, on simulated trees, of cells before maturity."""
    clear_n, best_n = committed(probability_ne), np.asarray(ends)[probability_ne.argmax(1)]
    scores = {
        "fate": right(probability_ne, groups, np.ones(len(groups), dtype=bool), ends),
        "committed": float(np.mean([(clear_n & (best_n == end))[groups == end].mean() for end in ends])),
        "uncommitted": float(1 - clear_n.mean()),
    }
    if data == "paul15":
        return scores
    true_n = np.asarray([int(branch.rsplit("_", 1)[1]) - 1 for branch in adata.obs["true_fate"].astype(str)])
    time_n = adata.obs["true_pseudotime"].to_numpy()
    between_n = (time_n > turning_points(len(ends), "nested" in data)[true_n]) & (time_n < MATURE)
    early_n = time_n < MATURE
    truth_ne = np.eye(len(ends))[true_n]
    auc = [roc_auc_score(truth_ne[between_n, e], probability_ne[between_n, e]) for e in range(len(ends))]
    tenth = np.minimum((probability_ne[early_n] * 10).astype(int), 9).ravel()
    gap = (probability_ne - truth_ne)[early_n].ravel()
    off = sum(abs(gap[tenth == one].sum()) for one in range(10)) / len(gap)
    brier = float(((probability_ne - truth_ne)[early_n] ** 2).sum(1).mean())
    return scores | {"auc": float(np.mean(auc)), "ece": float(off), "brier": brier}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown, with means over the seeds."""
    columns = list(COLUMNS)
    lines = [f"| data | method | {' | '.join(COLUMNS.values())} |", "|---" * (len(columns) + 2) + "|"]
    kinds = list(dict.fromkeys(row["data"] for row in rows))
    groups = [(kind, [row for row in rows if row["data"] == kind]) for kind in kinds]
    groups.append(("mean of trees", [row for row in rows if row["data"] != "paul15"]))
    for kind, members in groups:
        for method in dict.fromkeys(row["method"] for row in members):
            own = [row for row in members if row["method"] == method]
            cells = [f"{np.mean([row[c] for row in own]):.3f}" if c in own[0] else "" for c in columns]
            lines.append(f"| {kind} | {method} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure, and write results/fates.json and results/fates.md; rows that were measured before are kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers-python")
    parser.add_argument("--seeds", default="10,11,12", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--parts", default="trees,paul15", type=lambda text: text.split(","))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    place = arguments.results / "fates.json"
    rows = json.loads(place.read_text())["rows"] if place.exists() else []
    for seed in arguments.seeds:
        sets: dict[str, Any] = {}
        if "trees" in arguments.parts:
            for n_branches, nested in TREES:
                name = f"{n_branches} ends{', nested' if nested else ''}"
                sets[name] = lambda n=n_branches, nested=nested, seed=seed: tree(n, seed, nested=nested)
        if "paul15" in arguments.parts:
            sets["paul15"] = lambda: anndata.read_h5ad(PAUL)
        for name, make in sets.items():
            new = measure(make(), name, seed, arguments)
            again = {(row["data"], row["seed"], row["method"]) for row in new}
            rows = [row for row in rows if (row["data"], row["seed"], row["method"]) not in again] + new
            rows.sort(key=lambda row: (row["data"], row["seed"]))
            machine = describe_machine(arguments.threads)
            place.write_text(json.dumps({"date": str(date.today()), "machine": machine, "rows": rows}, indent=1) + "\n")
            seeds = sorted({row["seed"] for row in rows})
            about = f"{date.today()}; {machine}; seeds {', '.join(map(str, seeds))}."
            text = [
                "# Fates",
                "",
                f"Written by `benchmarks/fates.py`; its docstring says what is measured. {about}",
                "",
            ]
            text += [LEGEND, ""]
            place.with_suffix(".md").write_text("\n".join([*text, *table(rows)]) + "\n")


if __name__ == "__main__":
    main()
