"""Does `scvae score` find cells that do not belong to the data, and are its p-values calibrated?

    python benchmarks/anomalies.py [--data-folder FOLDER] [--seeds 0,1] [--threads 2]

In each data set, 1% of the cells are replaced by cells of each kind in the list below. The benchmark reports the
average precision with which a score finds the replaced cells among the unchanged cells (about 0.01 for a random score).
Two cases are measured. In the case "trained on all", the model was trained on the replaced cells too, as when a data
set is searched for anomalies. In the case "trained on unchanged", the model was trained without the replaced cells, as
when new cells are compared with a model of trusted cells. A replaced cell gets the counts of a doublet, of a foreign
cell, or of noise:

- doublets: the sum of the counts of two random cells, or this sum thinned to the depth of the replaced cell;
- foreign cells: cells of a population, batch or tissue that the data otherwise lack (paul15: basophils; pbmc4k: cluster
  type5; kang: stimulated cells; simulated: cells of another tree);
- noise with the depth of the replaced cell: the counts of the replaced cell, assigned to other genes at random, or
  counts drawn from the mean of all cells, as in an empty droplet.

In the tables, "anomaly p" is the p-value that `scvae score` writes. The anomaly p-value is compared with five other
scores: the ELBO and the importance bound with the same calibration, the importance bound without calibration, the sum
of counts (large sums first), and the squared error of 20 principal components of log-normalized counts.

The uniformity of the p-values is measured by the Kolmogorov–Smirnov distance, for 1,000 cells simulated from the model
with another seed. The distance is given for all simulated cells, and for the halves with smaller and with larger
library sizes. For real cells that were not replaced, the share with p ≤ 0.05 is given. Finally, the benchmark counts
the replaced and the unchanged cells that are called anomalies at a false discovery rate of 0.05.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp
import torch
from scipy.stats import kstest
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score
from timed import describe_machine

import scvae_cli as scvae
from scvae_cli.data.simulation import simulate
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.model.bundle import Model
from scvae_cli.tools.score.anomalies import Covariates, ExpectedFit
from scvae_cli.tools.score.options import ScoreOptions
from scvae_cli.tools.score.result import Scores
from scvae_cli.tools.score.simulated_cells import simulate_cells

HERE = Path(__file__).parent
SHARE, FDR, SAMPLES, FRESH = 0.01, 0.05, 25, 1000
LEARNED, NEW = "trained on all", "trained on unchanged"
KINDS = ("doublets, summed", "doublets, thinned", "foreign", "shuffled", "ambient")
# Column and value of the cells that are removed and then added again as foreign cells.
FOREIGN = {
    "paul15_3004": ("cell_type", "Basophils"),
    "pbmc4k_top2000": ("cell_type", "type5"),
    "kang_muscat_2donors": ("condition", "stim"),
}


def cells_and_foreign(name: str, folder: Path) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Counts of the cells that belong to the data, and counts of foreign cells."""
    if name == "simulated":
        return tree(10), tree(99)
    adata = anndata.read_h5ad(folder / f"{name}.h5ad")
    key, value = FOREIGN[name]
    foreign = (adata.obs[key].astype(str) == value).to_numpy()
    matrix = sp.csr_matrix(adata.X)
    return matrix[~foreign], matrix[foreign]


def tree(seed: int) -> sp.csr_matrix:
    """Counts of 3,000 cells of a simulated tree."""
    return sp.vstack(list(simulate(SimulationConfig(n_cells=3000, seed=seed, depth=1500.0)).blocks()), format="csr")


def contaminated(x_ng: np.ndarray, foreign: sp.csr_matrix, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Replace 1% of the cells by each kind; return the cells and the kind of each cell ("" for an unchanged cell)."""
    # With the seed of the training, the replaced cells would be the held-out cells of the training.
    rng = np.random.default_rng([seed, 1])
    n, result, kind_n = len(x_ng), x_ng.copy(), np.full(len(x_ng), "", dtype=object)
    depth_n, mean_g = x_ng.sum(1), x_ng.sum(0, dtype=np.float64) / x_ng.sum(dtype=np.float64)
    chosen = rng.permutation(n)[: len(KINDS) * round(SHARE * n)]
    for kind, rows in zip(KINDS, np.array_split(chosen, len(KINDS)), strict=True):
        kind_n[rows] = kind
        for row in rows:
            a, b = rng.choice(n, 2, replace=False)
            depth = int(depth_n[row])
            if kind == "doublets, summed":
                result[row] = x_ng[a] + x_ng[b]
            elif kind == "doublets, thinned":
                both = (x_ng[a] + x_ng[b]).astype(np.int64)
                result[row] = rng.multivariate_hypergeometric(both, min(depth, both.sum()))
            elif kind == "foreign":
                result[row] = foreign[rng.integers(foreign.shape[0])].toarray().ravel()
            elif kind == "shuffled":
                result[row] = rng.permutation(x_ng[row])
            else:
                result[row] = rng.multinomial(depth, mean_g)
    return result, kind_n


def measure(name: str, seed: int, replaced: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train on one data set with replaced cells, with or without these cells; return all reported numbers."""
    matrix, foreign = cells_and_foreign(name, arguments.data_folder)
    x_ng, kind_n = contaminated(matrix.toarray().astype(np.float32), foreign, seed)
    adata = as_anndata(sp.csr_matrix(x_ng))
    known = adata if replaced == LEARNED else adata[kind_n == ""].copy()
    model = scvae.train(known, genes="all", seed=seed, threads=arguments.threads, device="cpu")
    scores = scvae.score(adata, model, n_samples=SAMPLES, seed=seed, inplace=False)
    assert scores is not None
    rng = np.random.default_rng(seed + 1000)
    drawn = simulate_cells(model, rng.choice(scores.library, ScoreOptions().n_simulated), None, seed=seed + 1000)
    simulated = as_anndata(drawn[np.diff(drawn.indptr) > 0])
    fresh = scvae.score(simulated, model, n_samples=SAMPLES, seed=seed, inplace=False)
    assert fresh is not None
    badness = {"anomaly p": -np.log(scores.anomaly_p), **alternatives(adata, model, scores, simulated, fresh)}
    alone_n = kind_n == ""
    precision = {
        method: {
            kind: average_precision_score(kind_n[alone_n | (kind_n == kind)] == kind, bad_n[alone_n | (kind_n == kind)])
            for kind in KINDS
        }
        for method, bad_n in badness.items()
    }
    called_n, left_n = scores.anomalies(FDR), scores.heldout & alone_n
    # Few simulated cells are tested, because the test ignores the noise of the simulated cells that they are compared
    # with.
    p_n, deep_n = fresh.anomaly_p[:FRESH], fresh.library[:FRESH] > np.median(fresh.library[:FRESH])
    tests = {"all": p_n, "shallower": p_n[~deep_n], "deeper": p_n[deep_n]}
    return {
        "set": f"{name}, {replaced}",
        "seed": seed,
        "n_cells": len(kind_n),
        "precision": precision,
        "ks": {part: tuple(map(float, kstest(p, "uniform"))) for part, p in tests.items()},
        "simulated_below": float((p_n <= 0.05).mean()),
        "heldout_below": float((scores.anomaly_p[left_n] <= 0.05).mean()),
        "other_below": float((scores.anomaly_p[alone_n & ~scores.heldout] <= 0.05).mean()),
        "called": {kind: float(called_n[kind_n == kind].mean()) for kind in KINDS},
        "false_calls": int(called_n[alone_n].sum()),
    }


def as_anndata(matrix: sp.csr_matrix) -> anndata.AnnData:
    """Make an AnnData of a count matrix, with names of cells and genes."""
    adata = anndata.AnnData(matrix)
    adata.obs_names, adata.var_names = ([f"{c}{i}" for i in range(m)] for c, m in zip("cg", matrix.shape, strict=True))
    return adata


def alternatives(
    adata: anndata.AnnData, model: Model, scores: Scores, simulated: anndata.AnnData, fresh: Scores
) -> dict[str, np.ndarray]:
    """Compute other scores of each cell; higher scores mean more unusual cells."""
    embedded = [scvae.embed(data, model, axes="training", inplace=False) for data in (simulated, adata)]
    result = {}
    for name, key in (("ELBO, calibrated", "elbo"), ("importance bound, calibrated", "iwae")):
        reference, cells = (
            (getattr(of, key), Covariates(of.library, None, place.mean_nk))
            for of, place in zip((fresh, scores), embedded, strict=True)
        )
        result[name] = ExpectedFit(*reference, 0).shortfall(*cells)
    log_ng = np.log1p(adata.X.multiply(1e4 / scores.library[:, None]).toarray())
    pca = PCA(20, random_state=0).fit(log_ng)
    error_n = np.square(log_ng - pca.inverse_transform(pca.transform(log_ng))).sum(1)
    return {**result, "importance bound": -scores.iwae, "sum of counts": scores.library, "PCA error": error_n}


def text(rows: list[dict[str, Any]], threads: int) -> str:
    """Format the results as markdown, with means over seeds."""
    sets: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        sets.setdefault(row["set"], []).append(row)
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    lines = ["# Anomalies", "", "Written by `benchmarks/anomalies.py`; its docstring says what is measured."]
    lines += [
        "",
        "In each data set, 1% of the cells were replaced by cells of each of these kinds: doublets (the sum of the "
        "counts of two cells, or this sum thinned to the depth of one cell), foreign (cells of a population that the "
        "data otherwise lack), shuffled (the counts of the cell, assigned to other genes at random) and ambient "
        "(counts drawn from the mean of all cells). The model was trained on all cells, or on the unchanged cells "
        "alone.",
    ]
    lines += ["", "## Average precision", ""]
    lines += [
        "How well each score finds the replaced cells among the unchanged cells: 1 is the best possible value, and a "
        f"random score has about 0.01. Means over the seeds {seeds}. In brackets: number of cells.",
        "",
        f"| data and training | score | {' | '.join(KINDS)} |",
        "|---|---|" + "---|" * len(KINDS),
    ]
    for name, runs in sets.items():
        for method in runs[0]["precision"]:
            means = (np.mean([run["precision"][method][kind] for run in runs]) for kind in KINDS)
            lines.append(f"| {name} ({runs[0]['n_cells']:,}) | {method} | {' | '.join(f'{m:.3f}' for m in means)} |")
    lines += ["", "## p-values of simulated and of real cells", ""]
    lines += [
        f"Kolmogorov–Smirnov distance between the p-values of {FRESH:,} cells simulated from the model and the uniform "
        "distribution (in brackets: p-value of the distance), for all these cells and for the halves with smaller and "
        "larger library sizes. The last three columns are shares of cells with p ≤ 0.05; a share of 5% is expected. "
        "The real cells are unchanged cells that were held out of the training, or used for it. Each row is one seed.",
        "",
    ]
    lines += [
        "| data and training | KS distance, all | smaller libraries | larger libraries | p ≤ 0.05, simulated "
        "| held-out real cells | real training cells |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    for row in rows:
        tests = " | ".join(f"{distance:.3f} ({p:.2f})" for distance, p in row["ks"].values())
        shares = " | ".join(f"{row[f'{part}_below']:.1%}" for part in ("simulated", "heldout", "other"))
        lines.append(f"| {row['set']} | {tests} | {shares} |")
    lines += ["", f"## Cells called anomalies at a false discovery rate of {FDR:g}", ""]
    lines += ["Share of the replaced cells of each kind, and number of unchanged cells, that are called anomalies.", ""]
    lines += [f"| data and training | {' | '.join(KINDS)} | unchanged cells |", "|---|" + "---|" * (len(KINDS) + 1)]
    for name, runs in sets.items():
        shares = " | ".join(f"{np.mean([run['called'][kind] for run in runs]):.0%}" for kind in KINDS)
        lines.append(f"| {name} | {shares} | {np.mean([run['false_calls'] for run in runs]):.1f} |")
    machine = f"({describe_machine(threads)}; torch {torch.__version__}; {date.today().isoformat()})"
    return "\n".join([*lines, "", machine, ""])


def main() -> None:
    """Measure all data sets and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument(
        "--sets", default=",".join(["simulated", *FOREIGN]), help="parts, separated by commas; all by default"
    )
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "anomalies.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.sets.split(","):
        for seed in arguments.seeds:
            for replaced in (LEARNED, NEW):
                rows.append(measure(name, seed, replaced, arguments))
                arguments.results.write_text(text(rows, arguments.threads))
                print(name, seed, replaced, flush=True)
    print(text(rows, arguments.threads))


if __name__ == "__main__":
    main()
