"""Do trajectories lead through cells of a sister fate, which do not develop into the end of the trajectory?

Three trajectories are compared between the same two cells: the path of least change in expression; the trajectory that
`scvae interpolate` computes if groups are known, which avoids the fates that it finds ("found"); and the trajectory if
all fates were named in an earlier `scvae pseudotime --to` ("named"). The measures are:

- foreign cells: fraction of foreign cells among the cells nearest to the steps. In a tree, a cell is foreign if it is
  on a branch that does not lead to the end, after pseudotime 0.5; soon after the branching, branches are hardly
  distinguishable. In paul15, a cell is foreign if its group is neither the start, nor GMP (for ends that develop from
  GMP), nor the end.
- foreign steps: fraction of the steps whose nearest cells are mostly foreign.
- error: mean distance of the decoded trajectory from the true expression along the lineage, as in part 1. The error is
  only known for trees.
- off-manifold score: the highest score of a step.
- length: length of the trajectory, divided by the length of the path of least change.
- detours corrected or warned of: how many detours `interpolate` corrects or warns of. A detour is a path of least
  change of which at least a tenth of the steps are foreign.
- false alarms: how many of the other paths of least change `interpolate` corrects or warns of.

In the trees of `fates_trees.py`, the expression of the branches differs more and more. In converging trees, the mature
cells of the first two branches are alike, and few cells lie on the way to the first end, so that the path of least
change may lead through the other mature cells.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from fates_trees import MATURE, NESTED_SPLIT, parent_of, tree
from nearest_point import log_normalized, to_polyline
from trajectories_simulated import truth_between

import scvae_cli as scvae
from scvae_cli.data.simulation import SPLIT, simulate, true_mean
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.data.zinb_draws import draw_zinb

N_CELLS, FEW = 3000, 0.06
# Branches of a converging tree, similarity of the first two ends (0 to 1), and library size.
CONVERGING = ((2, 0.5, 1500.0), (2, 0.7, 1500.0), (3, 0.7, 5000.0), (4, 0.7, 3000.0), (3, 0.9, 3000.0))
TREES = ((3, False), (4, True), (6, False))
# These are not the seeds with which the method was developed (0 to 6).
SEEDS = (10, 11)
PAUL_START = "Multipotent progenitors"
PAUL_LINEAGES = {
    "Erythrocyte": {PAUL_START, "Erythrocyte"},
    "Megakaryocytes": {PAUL_START, "Megakaryocytes"},
    "Monocytes": {PAUL_START, "GMP", "Monocytes"},
    "Neutrophils": {PAUL_START, "GMP", "Neutrophils"},
    "Basophils": {PAUL_START, "GMP", "Basophils"},
}
DISTINCT = 0.5
# A trajectory is a detour if at least this fraction of its steps is foreign.
DETOUR = 0.1


def converging(n_branches: int, alike: float, depth: float, seed: int) -> anndata.AnnData:
    """Draw the cells of a tree whose first two branches become alike."""
    drawn = simulate(SimulationConfig(n_cells=N_CELLS, n_branches=n_branches, depth=depth, seed=seed))
    random = np.random.default_rng([seed, n_branches, 7])
    names = [f"true_rho_branch_{b + 1}" for b in range(n_branches)]
    grid_s = np.linspace(0, 1, drawn.varm[names[0]].shape[1])
    # All branches also mature in the same way.
    mature_g = np.where(random.random(len(drawn.var)) < 0.25, random.normal(0, 1.5, len(drawn.var)), 0)
    log_gs = [np.log(drawn.varm[name]) + mature_g[:, None] * np.clip((grid_s - 0.55) / 0.25, 0, 1) for name in names]
    alike_s = alike * np.clip((grid_s - 0.6) / 0.3, 0, 1)
    log_gs[0] = log_gs[0] * (1 - alike_s) + log_gs[1] * alike_s
    rho = [(np.exp(log) / np.exp(log).sum(0)).astype(np.float32) for log in log_gs]
    each = 0.7 / n_branches
    stages = [(0.0, SPLIT, 0.3, "trunk")]
    for branch in range(n_branches):
        way = min(FEW, each / 2) if branch == 0 else each / 2
        name = f"branch_{branch + 1}"
        stages += [(SPLIT, MATURE, way, name), (MATURE, 1.0, each - way, name)]
    first, last, share, branch = (np.asarray(column) for column in zip(*stages, strict=True))
    stage_n = random.choice(len(stages), N_CELLS, p=share / share.sum())
    time_n, branch_n = random.uniform(first[stage_n], last[stage_n]), branch[stage_n]
    kind_n = np.select([time_n < SPLIT / 2, time_n < SPLIT, time_n < 0.7], ["stem", "progenitor", "middle"], "mature")
    type_n = [kind + on.removeprefix("branch").removeprefix("trunk") for kind, on in zip(kind_n, branch_n, strict=True)]
    obs = drawn.obs.assign(
        true_pseudotime=time_n, true_branch=pd.Categorical(branch_n), cell_type=pd.Categorical(type_n)
    )
    varm = dict(drawn.varm) | dict(zip(names, rho, strict=True))
    genes = drawn.var
    matrix = draw_zinb(
        true_mean(obs, varm), genes["true_theta"].to_numpy(), genes["true_zero_inflation"].to_numpy(), random
    )
    return anndata.AnnData(sp.csr_matrix(matrix), obs=obs, var=genes, varm=varm, uns=dict(drawn.uns))


def of_trees(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all simulated trees; return one row per tree and end."""
    sets = [
        (f"converging, {n} branches, alike {alike}, depth {depth:,.0f}, seed {seed}", n, False, seed, (alike, depth))
        for n, alike, depth in CONVERGING
        for seed in SEEDS
    ]
    sets += [
        (f"tree, {n} ends{', nested' if nested else ''}, seed {seed}", n, nested, seed, None)
        for n, nested in TREES
        for seed in SEEDS[:1]
    ]
    rows = []
    for name, n_branches, nested, seed, alike in sets:
        adata = tree(n_branches, seed, nested=nested) if alike is None else converging(n_branches, *alike, seed)
        model = scvae.train(adata, seed=seed, genes="all", threads=arguments.threads, device="cpu")
        named = with_fates(adata, model, "stem", [f"mature_{end + 1}" for end in range(n_branches)])
        for end in range(n_branches):
            foreign_n, truth = foreign_to(adata, end, nested), lineage_of(adata, end)
            rows.append({"data": name} | compared(adata, named, model, "stem", f"mature_{end + 1}", foreign_n, truth))
            print(rows[-1], flush=True)
    return rows


def of_paul15(data: Path, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all ends of one seed."""
    adata = anndata.read_h5ad(data)
    model = scvae.train(adata, seed=seed, threads=arguments.threads, device="cpu")
    groups = adata.obs["cell_type"].astype(str).to_numpy()
    named = with_fates(adata, model, PAUL_START, list(PAUL_LINEAGES))
    rows = []
    for end, own in PAUL_LINEAGES.items():
        foreign_n = ~np.isin(groups, list(own))
        rows.append({"data": f"paul15, seed {seed}"} | compared(adata, named, model, PAUL_START, end, foreign_n, None))
    return rows


def with_fates(adata: anndata.AnnData, model: Any, root: str, ends: list[str]) -> anndata.AnnData:
    """Return a copy of the cells with an order toward all ends."""
    named = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvae.pseudotime(named, model, groupby="cell_type", root=root, ends=ends)
    return named


def foreign_to(adata: anndata.AnnData, end: int, nested: bool) -> np.ndarray:
    """Return the mask of cells on branches that do not lead to an end, except for cells soon after the branching."""
    time_n = adata.obs["true_pseudotime"].to_numpy()
    key = "true_fate" if "true_fate" in adata.obs else "true_branch"
    branch_n = adata.obs[key].astype(str).to_numpy()
    foreign_n = (branch_n != f"branch_{end + 1}") & (time_n > DISTINCT)
    n_branches = sum(name.startswith("true_rho_branch") for name in adata.varm)
    for other in range(n_branches if nested else 0):
        if parent_of(other, nested) == end or parent_of(end, nested) == other:
            foreign_n &= ~((branch_n == f"branch_{other + 1}") & (time_n < NESTED_SPLIT + DISTINCT - SPLIT))
    return foreign_n


def lineage_of(adata: anndata.AnnData, end: int) -> np.ndarray:
    """Return the true expression along a lineage."""
    groups, time_n = adata.obs["cell_type"].astype(str).to_numpy(), adata.obs["true_pseudotime"].to_numpy()
    return truth_between(adata, end + 1, time_n[groups == "stem"].mean(), time_n[groups == f"mature_{end + 1}"].mean())


def compared(
    adata: anndata.AnnData,
    named: anndata.AnnData,
    model: Any,
    start: str,
    end: str,
    foreign_n: np.ndarray,
    truth: np.ndarray | None,
) -> dict[str, Any]:
    """Compute the trajectories to an end, and their measures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {
            kind: scvae.interpolate(cells, model, groupby="cell_type", groups=[start, end], inplace=False)
            for kind, cells in (("found", adata), ("named", named))
        }
        ends = [str(kinds["found"].nearest_names_tj[t, 0]) for t in (0, -1)]
        kinds["least"] = scvae.interpolate(adata, model, cells=ends, inplace=False)
    row: dict[str, Any] = {"end": end}
    for kind, trajectory in kinds.items():
        foreign_tj = foreign_n[trajectory.steps.nearest_tj]
        row[kind] = {
            "foreign": float(foreign_tj.mean()),
            "steps": float((foreign_tj.mean(1) > 0.5).mean()),
            "off": float(trajectory.steps.off_manifold_t.max()),
            "length": float(trajectory.steps.length / kinds["least"].steps.length),
            "corrected": bool(trajectory.avoided),
            "told": bool(trajectory.avoided or trajectory.sisters or trajectory.beyond or trajectory.returning),
        }
        if truth is not None:
            row[kind]["error"] = float(to_polyline(truth, log_normalized(trajectory.mean_tg)).mean())
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown: means over the ends of a data set, except for the highest off-manifold score."""
    lines = [
        "Each cell of the table contains three values: of the path of least change, of the trajectory that avoids the "
        "fates that `interpolate` finds, and of the trajectory that avoids the fates that were named in an earlier "
        "`pseudotime`. (The last three columns contain the last two values.) Foreign cells do not develop into the end "
        "of the trajectory. The columns are the fraction of foreign cells among the cells nearest to the steps, the "
        "fraction of steps whose nearest cells are mostly foreign, the error of the decoded trajectory, the highest "
        "off-manifold score, the length relative to the path of least change, the number of corrected trajectories, "
        "the number of detours (at least a tenth of the steps are foreign) that are corrected or warned of, and the "
        "number of other paths that are corrected or warned of.",
        "",
        "| data | ends | foreign cells | foreign steps | error | off-manifold score | length | corrected "
        "| detours corrected or warned of | false alarms |",
        "|" + "---|" * 10,
    ]
    kinds = ("least", "found", "named")
    for name in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == name]
        cells = [name, str(len(own))]
        for key in ("foreign", "steps", "error", "off", "length"):
            values = [[row[kind].get(key) for row in own] for kind in kinds]
            known = values[0][0] is not None
            cells.append(" / ".join(f"{(max if key == 'off' else np.mean)(v):.3f}" for v in values) if known else "")
        cells.append(" / ".join(str(sum(row[kind]["corrected"] for row in own)) for kind in kinds[1:]))
        detours = [row for row in own if row["least"]["steps"] >= DETOUR]
        others = [row for row in own if row["least"]["steps"] < DETOUR]
        for some in (detours, others):
            noticed = " / ".join(str(sum(row[kind]["told"] for row in some)) for kind in kinds[1:])
            cells.append(f"{noticed} of {len(some)}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines
