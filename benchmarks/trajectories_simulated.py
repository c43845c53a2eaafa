"""Trajectories and orderings on simulated trees, compared with the simulated truth."""

from __future__ import annotations

import argparse
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp
from nearest_point import log_normalized, means_line, pca_line, to_polyline
from scipy.stats import spearmanr

import scvae_cli as scvae
from scvae_cli.data.simulation import simulate
from scvae_cli.data.simulation_config import SimulationConfig

N_CELLS = 3000
POINTS = 60


def tree(branches: int, seed: int, depth: float) -> anndata.AnnData:
    """Simulate the cells of a tree with the defaults; a tree with one branch is a differentiation without branching."""
    simulated = simulate(SimulationConfig(n_cells=N_CELLS, n_branches=branches, seed=seed, depth=depth))
    matrix = sp.vstack(list(simulated.blocks()), format="csr")
    return anndata.AnnData(
        matrix, obs=simulated.obs, var=simulated.var, varm=dict(simulated.varm), uns=dict(simulated.uns)
    )


def measure(branches: int, seed: int, depth: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train on one tree and compare its trajectories and its ordering with the truth; return one row per branch."""
    adata = tree(branches, seed, depth)
    model = scvae.train(adata, seed=seed, genes="all", threads=arguments.threads, device="cpu")
    groups = adata.obs["cell_type"].astype(str).to_numpy()
    time_n, branch_n = adata.obs["true_pseudotime"].to_numpy(), adata.obs["true_branch"].astype(str).to_numpy()
    ends = [f"mature_{b + 1}" for b in range(branches)]
    order = scvae.pseudotime(adata, model, groupby="cell_type", root="stem", ends=ends, inplace=False)
    assert order is not None
    rows = []
    for b, end in enumerate(ends):
        truth = truth_between(adata, b + 1, time_n[groups == "stem"].mean(), time_n[groups == end].mean())
        on_lineage = np.isin(branch_n, ["trunk", f"branch_{b + 1}"])
        late = (branch_n == f"branch_{b + 1}") & (time_n > 0.5)
        row: dict[str, Any] = {
            "tree": f"{branches} branch(es), depth {depth:,.0f}, seed {seed}",
            "branch": b + 1,
            "pca": to_polyline(truth, pca_line(adata, groups == "stem", groups == end)).mean(),
            "means": to_polyline(truth, means_line(adata, groups == "stem", groups == end)).mean(),
            "spearman": spearmanr(order.pseudotime_n[on_lineage], time_n[on_lineage])[0],
            "right_branch": (order.branch_n[late] == end).mean() if branches > 1 else None,
            "wrong_branch": (~np.isin(order.branch_n[late], [end, "shared"])).mean() if branches > 1 else None,
        }
        for kind in ("straight", "graph", "geodesic"):
            walk = scvae.interpolate(adata, model, groupby="cell_type", groups=["stem", end], path=kind, inplace=False)
            assert walk is not None
            row[kind] = to_polyline(truth, log_normalized(walk.mean_tg)).mean()
            row[f"{kind}_off"] = walk.steps.off_manifold_t.max()
            near = ~np.isnan(walk.pseudotime_n) & on_lineage
            row[f"{kind}_walk_spearman"] = spearmanr(walk.pseudotime_n[near], time_n[near])[0]
        rows.append({name: float(v) if isinstance(v, np.floating) else v for name, v in row.items()})
    return rows


def truth_between(adata: anndata.AnnData, branch: int, start: float, end: float) -> np.ndarray:
    """Compute the true log-normalized expression along a lineage from one pseudotime to another."""
    grid = adata.uns["simulation"]["pseudotime_grid"]
    rho_gs = np.asarray(adata.varm[f"true_rho_branch_{branch}"])
    times = np.linspace(start, end, POINTS)
    return log_normalized(np.stack([np.interp(times, grid, rho_s) for rho_s in rho_gs], axis=1))


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown, one row per tree, with means over the branches of the tree."""
    lines = [
        "Error of lines and trajectories from stem cells to mature cells: mean distance between the true curve and the "
        "decoded trajectory (mean over the branches of a tree). There are two lines without a model (between centroids "
        "in PCA, and between mean proportions) and three trajectories of scvae (straight, graph, geodesic). The ratio "
        "geodesic / straight, the off-manifold scores (the highest of all steps) and the pseudotime's Spearman "
        "correlation with the truth (ρ) are those of the worst branch. The last two columns are the shares of cells "
        "that `pseudotime` assigns to the correct branch and to a wrong branch.",
        "",
        "| tree | PCA line | line of means | straight | graph | geodesic | geodesic / PCA line | geodesic / straight "
        "| off-manifold, straight | off-manifold, geodesic | pseudotime ρ | correct branch | wrong branch |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    trees: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        trees.setdefault(row["tree"], []).append(row)
    summary = []
    for name, branches in trees.items():
        mean = {
            key: np.mean([row[key] for row in branches]) for key in ("pca", "means", "straight", "graph", "geodesic")
        }
        off = {kind: max(row[f"{kind}_off"] for row in branches) for kind in ("straight", "geodesic")}
        worst = max(row["geodesic"] / row["straight"] for row in branches)
        rho = min(row["spearman"] for row in branches)
        right, wrong = (
            "" if branches[0][key] is None else f"{np.mean([row[key] for row in branches]):.3f}"
            for key in ("right_branch", "wrong_branch")
        )
        lines.append(
            f"| {name} | {mean['pca']:.2f} | {mean['means']:.2f} | {mean['straight']:.2f} | {mean['graph']:.2f} "
            f"| {mean['geodesic']:.2f} | {mean['geodesic'] / mean['pca']:.2f} | {worst:.2f} | {off['straight']:.2f} "
            f"| {off['geodesic']:.2f} | {rho:.3f} | {right} | {wrong} |"
        )
        summary.append((mean["geodesic"] / mean["pca"], mean["geodesic"] / mean["means"], worst, rho))
    against_pca, against_means, worst, rho = (np.asarray(part) for part in zip(*summary, strict=True))
    lines += [
        "",
        f"The error of the geodesic is on average {against_pca.mean():.2f} times the error of the PCA line, and "
        f"{against_means.mean():.2f} times that of the line of means. On every branch, it is at most {worst.max():.2f} "
        "times the error of the straight trajectory, and the pseudotime's Spearman correlation with the truth is at "
        f"least {rho.min():.3f}.",
    ]
    return lines
