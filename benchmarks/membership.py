"""Which cells are assigned to a trajectory, on simulated trees and known lineages to which unrelated cells were added?

    python benchmarks/membership.py [--seeds 0 1 2] [--parts 2-branches,3-branches,paul15,classifier]

1. Simulated trees (`scvae simulate`) of two and three branches, to which the cells of an unrelated tree are added: a
   fifth of all cells. The cells of the trunk and of one branch should be assigned to a trajectory from stem cells to
   the mature cells of this branch. The cells of other branches up to the pseudotime `TOLD_APART` have hardly changed,
   because the first genes of a branch begin to change at a pseudotime of 0.4. Precision is given with and without these
   hardly changed cells.
2. Paul et al. 2015: hematopoietic progenitors, to which one of three sets of human blood cells is added. Genes are
   matched by their symbols in upper case. The trajectories are those of the erythroid lineage (from MEP, called
   multipotent progenitors in the file, to erythrocytes) and of monocytes (from GMP). Megakaryocytes are not counted,
   because they also come from MEP. For each trajectory, the progenitors of the other trajectory are not counted,
   because the progenitors of both trajectories have a common origin. Two classifiers show how well the labels can be
   distinguished at all. The first classifier is a vote of the 15 nearest neighbors in the embedding. The second
   classifier is a logistic regression on 50 principal components of log-normalized counts, which was trained with the
   labels of other cells (five folds). The precision of the second classifier is given at the recall of the trajectory,
   and at a recall of 0.9. A trajectory uses only the labels of the groups at its two ends. A trajectory can therefore
   hardly be more precise than a classifier that was trained with all labels.

Recall is the fraction of a lineage's cells that are assigned to the trajectory. Precision is the fraction of the
assigned cells that belong to the lineage. Foreign is the fraction of the unrelated cells that are assigned to the
trajectory. Recall, precision and foreign are also given for the rule of version 0.2. According to this rule, a cell
belongs to a trajectory if its latent distance from the trajectory is at most the 90% quantile of the distances of the
two end groups. Results are written to results/membership.json and results/membership.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from timed import describe_machine

import scvae_cli as scvae
from scvae_cli.data.simulation import simulate
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.tools.trajectory.membership import project

HERE = Path(__file__).parent
SHARED_DATA = HERE.parents[1] / "shared" / "data"
N_CELLS, N_FOREIGN = 2400, 600
SHAPES = {"2-branches": 2, "3-branches": 3}
DEPTHS = (1500.0, 5000.0)
TOLD_APART = 0.5
FOREIGN = "foreign"
BLOOD = ("citeseq_eccite_500.h5ad", "kang_muscat_2donors.h5ad", "pbmc68k_700.h5ad")
# Groups of each trajectory, in order, and groups that are not counted because they may also belong to the trajectory.
LINEAGES = (
    (("Multipotent progenitors", "Erythrocyte"), ("Megakaryocytes", "GMP")),
    (("GMP", "Monocytes"), ("Multipotent progenitors",)),
)
OLD_QUANTILE = 0.9
REQUIRED_RECALL = 0.9
LEGEND = """\
Written by `benchmarks/membership.py`; its docstring says what is measured. Recall is the fraction of the lineage's
cells that are assigned to the trajectory, precision the fraction of the assigned cells that belong to the lineage, and
foreign the fraction of the added, unrelated cells that are assigned. Precision is given without and with the cells for
which it is unclear whether they belong to the lineage ("all cells"). For comparison: the rule of version 0.2, a vote of
the 15 nearest neighbors with labels, and a logistic regression that was trained with labels. Mean over the seeds, in
brackets the worst seed.
"""


def tree(n_cells: int, branches: int, depth: float, seed: int) -> anndata.AnnData:
    """Simulate the cells of a tree."""
    made = simulate(SimulationConfig(n_cells=n_cells, n_branches=branches, depth=depth, seed=seed))
    return anndata.AnnData(sp.vstack(list(made.blocks()), format="csr"), obs=made.obs, var=made.var[[]])


def mixed(cells: anndata.AnnData, foreign: anndata.AnnData) -> anndata.AnnData:
    """Add unrelated cells to the data; only the genes that are in both data sets are kept."""
    genes = cells.var_names.intersection(foreign.var_names)
    parts = [sp.csr_matrix(part[:, genes].X, dtype=np.float32) for part in (cells, foreign)]
    columns = {"cell_type": [*cells.obs["cell_type"].astype(str), *[FOREIGN] * foreign.n_obs]}
    if "true_branch" in cells.obs:
        columns["branch"] = [*cells.obs["true_branch"].astype(str), *[FOREIGN] * foreign.n_obs]
        columns["time"] = [*cells.obs["true_pseudotime"], *[np.nan] * foreign.n_obs]
    obs = pd.DataFrame(columns, index=[f"cell_{i}" for i in range(len(columns["cell_type"]))])
    result = anndata.AnnData(sp.vstack(parts, format="csr"), obs=obs, var=pd.DataFrame(index=genes))
    kept = np.asarray(result.X.sum(1)).ravel() >= 20
    return result[kept].copy()


def simulated(branches: int, depth: float, seed: int, threads: int) -> list[dict[str, Any]]:
    """Evaluate all branches of a tree."""
    foreign = tree(N_FOREIGN, 3, depth, 1000 + seed)
    adata = mixed(tree(N_CELLS, branches, depth, seed), foreign)
    model = scvae.train(adata, seed=seed, genes="all", threads=threads, device="cpu")
    branch_n, time_n = adata.obs["branch"].to_numpy(), adata.obs["time"].to_numpy()
    rows = []
    for b in range(1, branches + 1):
        on_n = np.isin(branch_n, ["trunk", f"branch_{b}"])
        unclear_n = ~on_n & (time_n < TOLD_APART)
        name = f"{branches} branches, depth {depth:,.0f}"
        rows.append(judged(adata, model, ["stem", f"mature_{b}"], on_n, unclear_n) | {"set": name, "seed": seed})
    return rows


def upper(adata: anndata.AnnData) -> anndata.AnnData:
    """Return gene symbols in upper case, without the prefix of a genome; of equal symbols, the first is kept."""
    adata.var_names = [name.removeprefix("hg19_").upper() for name in adata.var_names]
    return adata[:, ~adata.var_names.duplicated()].copy()


def blood(name: str) -> anndata.AnnData:
    """Read one set of blood cells."""
    folder = HERE.parent / "data_samples" if name.startswith("pbmc68k") else SHARED_DATA
    return upper(anndata.read_h5ad(folder / name))


def paul15(foreign: str, seed: int, threads: int) -> list[dict[str, Any]]:
    """Evaluate both lineages."""
    adata, name = mixed_with(foreign)
    model = scvae.train(adata, seed=seed, genes="all", threads=threads, device="cpu")
    groups_n = adata.obs["cell_type"].to_numpy()
    voted_n = vote(scvae.embed(adata, model, inplace=False).position_nj, groups_n)
    rows = []
    for ends, unknown in LINEAGES:
        on_n, unclear_n = np.isin(groups_n, ends), np.isin(groups_n, unknown)
        by_vote = scores(np.isin(voted_n, ends), on_n, unclear_n, groups_n == FOREIGN)
        row = judged(adata, model, list(ends), on_n, unclear_n)
        row |= {"vote_recall": by_vote["recall"], "vote_precision": by_vote["precision"]}
        rows.append(row | {"set": name, "seed": seed})
    return rows


def vote(x_nj: np.ndarray, groups_n: np.ndarray) -> np.ndarray:
    """Return the most frequent group among the 15 nearest other cells."""
    nearest_nj = NearestNeighbors(n_neighbors=16).fit(x_nj).kneighbors(x_nj, return_distance=False)[:, 1:]
    return np.asarray([pd.Series(groups_n[rows]).mode()[0] for rows in nearest_nj])


def mixed_with(foreign: str) -> tuple[anndata.AnnData, str]:
    """Return the cells of paul15 together with one set of blood cells, and the name of the mixture."""
    adata = mixed(upper(anndata.read_h5ad(SHARED_DATA / "paul15_3004.h5ad")), blood(foreign))
    return adata, f"paul15 + {foreign.split('_')[0]}, {adata.n_vars:,} genes"


def classified(rows: list[dict[str, Any]]) -> None:
    """Add the precision of a classifier that knows the labels of other cells to the rows of paul15."""
    for foreign in BLOOD:
        adata, name = mixed_with(foreign)
        groups_n = adata.obs["cell_type"].to_numpy()
        cells = adata.copy()
        sc.pp.normalize_total(cells)
        sc.pp.log1p(cells)
        sc.pp.pca(cells, n_comps=50)
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        classifier = LogisticRegression(max_iter=2000)
        probability_nc = cross_val_predict(
            classifier, cells.obsm["X_pca"], groups_n, cv=folds, method="predict_proba", n_jobs=1
        )
        classes = np.unique(groups_n)
        for ends, unknown in LINEAGES:
            on_n, unclear_n = np.isin(groups_n, ends), np.isin(groups_n, unknown)
            lineage_n = probability_nc[:, np.isin(classes, ends)].sum(1)
            for row in rows:
                if row["set"] == name and row["trajectory"] == " → ".join(ends):
                    row["classifier_precision"] = precision_at(lineage_n, on_n, unclear_n, row["recall"])
                    row["classifier_precision_90"] = precision_at(lineage_n, on_n, unclear_n, REQUIRED_RECALL)


def precision_at(score_n: np.ndarray, on_n: np.ndarray, unclear_n: np.ndarray, recall: float) -> float:
    """Compute the precision of the cells with the highest scores, at a given recall."""
    least = np.quantile(score_n[on_n], 1 - recall)
    return float(on_n[(score_n >= least) & ~unclear_n].mean())


def judged(
    adata: anndata.AnnData, model: Any, ends: list[str], on_n: np.ndarray, unclear_n: np.ndarray
) -> dict[str, Any]:
    """Compare the cells of a trajectory with the lineage, for the current rule and for the rule of version 0.2."""
    groups_n = adata.obs["cell_type"].to_numpy()
    found = scvae.interpolate(adata, model, groupby="cell_type", groups=ends, inplace=False)
    position_nk = torch.as_tensor(scvae.embed(adata, model, inplace=False).mean_nk)
    distance_n = project(position_nk, torch.as_tensor(found.z_tk))[1]
    limit = np.quantile(distance_n[np.isin(groups_n, ends)], OLD_QUANTILE)
    foreign_n = groups_n == FOREIGN
    now = scores(np.isfinite(found.pseudotime_n), on_n, unclear_n, foreign_n)
    old = scores(distance_n <= limit, on_n, unclear_n, foreign_n)
    return {"trajectory": " → ".join(ends), "n_lineage": int(on_n.sum()), "n_foreign": int(foreign_n.sum())} | {
        **now,
        **{f"old_{key}": value for key, value in old.items()},
    }


def scores(claimed_n: np.ndarray, on_n: np.ndarray, unclear_n: np.ndarray, foreign_n: np.ndarray) -> dict[str, float]:
    """Compute recall, precision with and without the unclear cells, and the fraction of foreign cells."""
    return {
        "recall": float(claimed_n[on_n].mean()),
        "precision": float(on_n[claimed_n & ~unclear_n].mean()),
        "strict_precision": float(on_n[claimed_n].mean()),
        "foreign": float(claimed_n[foreign_n].mean()),
    }


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown, one row per set and trajectory: means over seeds, with the worst seed in
    brackets.
    """
    lines = [
        "| data | trajectory | recall | precision | precision, all cells | foreign | version 0.2: recall | precision "
        "| foreign | neighbor vote: recall | precision | logistic regression: precision at the same recall "
        "| precision at recall 0.9 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    sets: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        sets.setdefault((row["set"], row["trajectory"]), []).append(row)
    for (name, trajectory), same in sets.items():
        keys = ["recall", "precision", "strict_precision", "foreign", "old_recall", "old_precision", "old_foreign"]
        parts = []
        for key in [*keys, "vote_recall", "vote_precision", "classifier_precision", "classifier_precision_90"]:
            values = [row[key] for row in same if key in row]
            worst = (max if key.endswith("foreign") else min)(values, default=0.0)
            parts.append(f"{np.mean(values):.3f} ({worst:.3f})" if values else "")
        lines.append(f"| {name} | {trajectory} | {' | '.join(parts)} |")
    return lines


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", default="2-branches,3-branches,paul15,classifier")
    parser.add_argument("-o", "--out", type=Path, default=HERE / "results" / "membership.json")
    arguments = parser.parse_args()
    known = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    wanted = arguments.parts.split(",")
    rows = [row for row in known if row["part"] not in wanted or row["seed"] not in arguments.seeds]
    for seed in arguments.seeds:
        found = []
        for part in set(SHAPES) & set(wanted):
            made = [simulated(SHAPES[part], depth, seed, arguments.threads) for depth in DEPTHS]
            found += [row | {"part": part} for each in made for row in each]
        if "paul15" in wanted:
            made = [paul15(foreign, seed, arguments.threads) for foreign in BLOOD]
            found += [row | {"part": "paul15"} for each in made for row in each]
        for row in found:
            print(json.dumps(row), file=sys.stderr)
        rows += found
    if "classifier" in wanted:
        classified(rows)
    rows.sort(key=lambda row: (row["part"] == "paul15", row["set"], row["trajectory"], row["seed"]))
    machine = f"{describe_machine(arguments.threads)}, torch {torch.__version__}; {date.today()}"
    if wanted == ["classifier"]:
        machine = json.loads(arguments.out.read_text())["machine"]
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    text = ["# Cells that belong to a trajectory", "", *table(rows), "", machine, ""]
    text.insert(2, LEGEND)
    arguments.out.with_suffix(".md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
