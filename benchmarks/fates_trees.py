"""Simulated trees whose branches have different numbers of cells, for `fates.py`.

The genes change along the tree as in `scvae simulate`, but the numbers of cells differ. Each branch has 0.7 times as
many cells as the branch before it. Half of the cells of a branch are mature, because differentiated cells accumulate in
tissues. In a nested tree, every second branch leaves the branch before it, at pseudotime 0.6, instead of the trunk.

Letters in array shapes: n cells, g genes, s grid steps.
"""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scvae_cli.data.simulation import SPLIT, simulate, true_mean
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.data.zinb_draws import draw_zinb

SIZE_RATIO = 0.7
TRUNK_SHARE, MATURE_SHARE = 0.3, 0.5
# Pseudotime at which a nested branch leaves the branch before it, and at which cells are mature.
NESTED_SPLIT, MATURE = 0.6, 0.75


def parent_of(branch: int, nested: bool) -> int | None:
    """Return the branch (counted from 0) from which a branch starts, or None if a branch starts from the trunk."""
    return branch - 1 if nested and branch % 2 == 1 else None


def shares(n_branches: int) -> np.ndarray:
    """Compute the fraction of the cells that develop into each branch."""
    size_b = SIZE_RATIO ** np.arange(n_branches)
    return size_b / size_b.sum()


def tree(n_branches: int, seed: int, *, nested: bool = False, n_cells: int = 3000) -> anndata.AnnData:
    """Draw the cells of a tree, with `true_pseudotime` and the branch into which each cell develops, `true_fate`."""
    drawn = simulate(SimulationConfig(n_cells=n_cells, n_branches=n_branches, seed=seed))
    random = np.random.default_rng([seed, n_branches, int(nested)])
    fate_n = random.choice(n_branches, n_cells, p=shares(n_branches))
    on_trunk_n = random.random(n_cells) < TRUNK_SHARE
    late_n = random.random(n_cells) < MATURE_SHARE
    time_n = np.where(late_n, random.uniform(MATURE, 1, n_cells), random.uniform(SPLIT, MATURE, n_cells))
    time_n = np.where(on_trunk_n, random.uniform(0, SPLIT, n_cells), time_n)
    stage_n = np.where(time_n < SPLIT / 2, "stem", "progenitor").astype(object)
    stage_n = np.where(time_n >= SPLIT, "intermediate", stage_n)
    mature_n = np.asarray([f"mature_{b + 1}" for b in range(n_branches)], dtype=object)[fate_n]
    branch_n = np.asarray([f"branch_{b + 1}" for b in range(n_branches)], dtype=object)[fate_n]
    obs = drawn.obs.assign(
        true_pseudotime=time_n,
        true_fate=pd.Categorical(branch_n),
        true_branch=pd.Categorical(np.where(time_n < SPLIT, "trunk", branch_n)),
        cell_type=pd.Categorical(np.where(time_n >= MATURE, mature_n, stage_n)),
    )
    varm = dict(drawn.varm)
    for branch in range(n_branches):
        if (parent := parent_of(branch, nested)) is not None:
            name = f"true_rho_branch_{branch + 1}"
            varm[name] = grafted(varm[f"true_rho_branch_{parent + 1}"], varm[name])
    mean_ng = true_mean(obs, varm)
    matrix = draw_zinb(mean_ng, drawn.var["true_theta"].to_numpy(), drawn.var["true_zero_inflation"].to_numpy(), random)
    return anndata.AnnData(sp.csr_matrix(matrix), obs=obs, var=drawn.var, varm=varm, uns=dict(drawn.uns))


def grafted(parent_gs: np.ndarray, child_gs: np.ndarray) -> np.ndarray:
    """Compute the expression of a branch that leaves another branch at the pseudotime `NESTED_SPLIT`."""
    grid_s = np.linspace(0, 1, parent_gs.shape[1])
    graft = int(np.searchsorted(grid_s, NESTED_SPLIT))
    source_s = SPLIT + (grid_s[graft:] - grid_s[graft]) * (1 - SPLIT) / (1 - grid_s[graft])
    trunk_g = child_gs[:, int(np.searchsorted(grid_s, SPLIT - 1e-9))]
    later = np.stack([np.interp(source_s, grid_s, row_s) for row_s in child_gs])
    whole_gs = parent_gs.copy()
    whole_gs[:, graft:] = parent_gs[:, [graft]] * later / trunk_g[:, None]
    return (whole_gs / whole_gs.sum(0)).astype(np.float32)


def turning_points(n_branches: int, nested: bool) -> np.ndarray:
    """Return the pseudotime of each branch after which the cells of the branch are on no other branch."""
    point_b = np.full(n_branches, SPLIT)
    for branch in range(n_branches):
        if (parent := parent_of(branch, nested)) is not None:
            point_b[[branch, parent]] = NESTED_SPLIT
    return point_b
