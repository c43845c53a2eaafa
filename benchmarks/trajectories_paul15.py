"""Trajectories and an ordering of mouse myeloid progenitors (Paul et al. 2015), compared with known biology.

"Multipotent progenitors" develop into erythrocytes, into megakaryocytes, or through GMP into monocytes, neutrophils and
basophils. The finer clusters 7 to 1 of the paper are the stages of the erythroid lineage, in this order. Index sorting
measured two surface proteins of each cell: CD34, which is lost on the way to erythrocytes, and FcgR3, which is gained
on the way to monocytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scanpy as sc
from scipy.stats import spearmanr

import scvae_cli as scvae

START = "Multipotent progenitors"
# Groups that each trajectory must pass in this order; further groups may lie between the listed groups.
KNOWN = {
    "Erythrocyte": [START, "Erythrocyte"],
    "Megakaryocytes": [START, "Megakaryocytes"],
    "Monocytes": [START, "GMP", "Monocytes"],
    "Neutrophils": [START, "GMP", "Neutrophils"],
    "Basophils": [START, "GMP", "Basophils"],
}
MISSING = -2147483648
BOOTSTRAPS = 200


def measure(data: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one model with a seed, and compute all trajectories and orderings."""
    adata = anndata.read_h5ad(data)
    model = scvae.train(adata, seed=seed, threads=arguments.threads, device="cpu")
    groups = adata.obs["cell_type"].astype(str).to_numpy()
    walks = []
    for fate, known in KNOWN.items():
        row: dict[str, Any] = {"fate": fate, "known": known}
        for kind in ("straight", "geodesic"):
            walk = scvae.interpolate(adata, model, groupby="cell_type", groups=[START, fate], path=kind, inplace=False)
            assert walk is not None
            passed = walk.steps.groups_passed()
            row[kind] = {
                "passed": passed,
                "in_order": in_order(known, passed),
                "off": float(walk.steps.off_manifold_t.max()),
            }
        walks.append(row)
    fine = scvae.interpolate(adata, model, groupby="paul15_cluster", groups=["7", "1"], inplace=False)
    order = scvae.pseudotime(adata, model, groupby="cell_type", root=START, inplace=False)
    assert fine is not None
    assert order is not None
    dpts = dpt_from(adata, adata.obs_names.get_indexer(list(order.root_cells)))
    return {
        "seed": seed,
        "walks": walks,
        "red_clusters": fine.steps.groups_passed(),
        "red_off": float(fine.steps.off_manifold_t.max()),
        "scvae": agreement(adata, groups, order.pseudotime_n),
        "dpt": mean_of([agreement(adata, groups, dpt) for dpt in dpts]),
        "noise": noise_of_difference(adata, groups, order.pseudotime_n, dpts[0], seed),
    }


def in_order(known: list[str], passed: list[str]) -> bool:
    """Whether a trajectory passes the known groups in their order; further groups may lie between the known groups.

    >>> in_order(["a", "c"], ["a", "b", "c"]), in_order(["a", "c"], ["c", "a"])
    (True, False)
    """
    rest = iter(passed)
    return all(group in rest for group in known)


def dpt_from(adata: anndata.AnnData, roots: np.ndarray) -> list[np.ndarray]:
    """Compute scanpy's diffusion pseudotime on PCA, with its defaults, from each of some root cells."""
    cells = anndata.AnnData(adata.X.copy(), obs=adata.obs[[]], var=adata.var[[]])
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    sc.pp.pca(cells)
    sc.pp.neighbors(cells)
    sc.tl.diffmap(cells)
    found = []
    for root in roots:
        cells.uns["iroot"] = int(root)
        sc.tl.dpt(cells)
        found.append(cells.obs["dpt_pseudotime"].to_numpy().copy())
    return found


def agreement(adata: anndata.AnnData, groups: np.ndarray, time_n: np.ndarray) -> dict[str, float]:
    """Compute Spearman correlations, for each lineage, with monocle's pseudotime and with the two proteins."""
    monocle = adata.obs["monocle_pseudotime"].to_numpy()
    lineages = {
        "red": [START, "Erythrocyte"],
        "monocyte": [START, "GMP", "Monocytes"],
        "neutrophil": [START, "GMP", "Neutrophils"],
    }
    on = {name: np.isin(groups, members) for name, members in lineages.items()}
    found = {f"monocle, {name}": spearmanr(time_n[mask], monocle[mask])[0] for name, mask in on.items()}
    for protein, lineage in (("CD34", "red"), ("FcgR3", "monocyte")):
        level = adata.obs[f"{protein}_measurement"].to_numpy()
        mask = on[lineage] & (level != MISSING)
        found[f"{protein}, {lineage}"] = spearmanr(time_n[mask], level[mask])[0]
    return {name: float(value) for name, value in found.items()}


def noise_of_difference(
    adata: anndata.AnnData, groups: np.ndarray, ours_n: np.ndarray, dpt_n: np.ndarray, seed: int
) -> dict[str, float]:
    """Compute the standard deviation, over resampled cells, of our correlation minus that of dpt."""
    random = np.random.default_rng(seed)
    differences = []
    for _ in range(BOOTSTRAPS):
        rows = random.integers(adata.n_obs, size=adata.n_obs)
        # Only obs is read.
        drawn = anndata.AnnData(obs=adata.obs.iloc[rows].set_axis(np.arange(len(rows)).astype(str)))
        ours, dpt = (agreement(drawn, groups[rows], time_n[rows]) for time_n in (ours_n, dpt_n))
        differences.append({name: ours[name] - dpt[name] for name in ours})
    return {name: float(np.std([one[name] for one in differences])) for name in differences[0]}


def mean_of(found: list[dict[str, float]]) -> dict[str, float]:
    """Compute the mean of each number."""
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Format the results of all seeds as markdown."""
    lines = [
        'Groups of cells near straight latent lines and geodesics from "Multipotent progenitors", highest off-manifold '
        "score of their steps, and whether the geodesic passes the groups in the known order.",
        "",
        "| end | seed | groups, straight | off-manifold score | groups, geodesic | off-manifold score | known order |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        for row in run["walks"]:
            straight, geodesic = row["straight"], row["geodesic"]
            verdict = "yes" if geodesic["in_order"] else "**no**"
            lines.append(
                f"| {row['fate']} | {run['seed']} | {' → '.join(straight['passed'])} | {straight['off']:.2f} "
                f"| {' → '.join(geodesic['passed'])} | {geodesic['off']:.2f} | {verdict} |"
            )
    lines.append("")
    for run in runs:
        lines.append(
            f"Seed {run['seed']}: the geodesic from cluster 7 to cluster 1 of the paper passes the clusters "
            f"{' → '.join(run['red_clusters'])} (off-manifold score at most {run['red_off']:.2f})."
        )
    names = list(runs[0]["scvae"])
    lines += [
        "",
        "Spearman's correlation of pseudotime with the pseudotime of monocle, or with the measured protein, within a "
        "lineage (red: erythrocytes). The last column is the bootstrap standard deviation of the difference between "
        "scvae and dpt.",
        "",
        "| compared with | scvae: mean (single seeds) | dpt on PCA: mean | standard deviation |",
        "|---|---|---|---|",
    ]
    for name in names:
        ours = [run["scvae"][name] for run in runs]
        dpt, noise = (np.mean([run[kind][name] for run in runs]) for kind in ("dpt", "noise"))
        each = ", ".join(f"{value:+.3f}" for value in ours)
        lines.append(f"| {name} | {np.mean(ours):+.3f} ({each}) | {dpt:+.3f} | ± {noise:.3f} |")
    return lines
