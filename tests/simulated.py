"""Small simulated data sets that several tests share."""

from __future__ import annotations

import functools
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scvae_cli as scvae
from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.simulation import simulate, true_mean
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.data.zinb_draws import draw_zinb

# A network that trains in a second and still learns something.
TINY = {"n_hidden": 32, "n_latent": 4, "n_layers": 1, "max_epochs": 12, "batch_size": 32, "device": "cpu", "threads": 1}
# With so few hidden units and so short a training, less dropout is used than in the recipe.
TINY |= {"encoder_dropout": 0.3, "decoder_dropout": 0.2, "weight_decay": 0.3}


def tree(n_cells: int = 400, n_genes: int = 120, **options) -> anndata.AnnData:
    """Cells along a branching differentiation."""
    simulation = simulate(SimulationConfig(n_cells=n_cells, n_genes=n_genes, **options))
    matrix = sp.vstack(list(simulation.blocks()), format="csr")
    return anndata.AnnData(
        matrix, obs=simulation.obs, var=simulation.var, varm=dict(simulation.varm), uns=dict(simulation.uns)
    )


def converging_tree(n_cells: int = 900, n_genes: int = 150, seed: int = 0) -> anndata.AnnData:
    """Cells of two branches whose mature cells are similar; one cell in 17 is on the way to the first end."""
    drawn = simulate(SimulationConfig(n_cells=n_cells, n_genes=n_genes, n_branches=2, depth=3000, seed=seed))
    random = np.random.default_rng([seed, 7])
    names = ["true_rho_branch_1", "true_rho_branch_2"]
    grid_s = np.linspace(0, 1, drawn.varm[names[0]].shape[1])
    maturation_g = np.where(random.random(n_genes) < 0.25, random.normal(0, 1.5, n_genes), 0)
    log_gs = [
        np.log(drawn.varm[name]) + maturation_g[:, None] * np.clip((grid_s - 0.55) / 0.25, 0, 1) for name in names
    ]
    similarity_s = 0.5 * np.clip((grid_s - 0.6) / 0.3, 0, 1)
    log_gs[0] = log_gs[0] * (1 - similarity_s) + log_gs[1] * similarity_s
    rho = [(np.exp(log) / np.exp(log).sum(0)).astype(np.float32) for log in log_gs]
    varm = dict(drawn.varm) | dict(zip(names, rho, strict=True))
    # The groups are the trunk, two stages of the second branch, and two stages of the first branch.
    stage_n = random.choice(5, n_cells, p=[0.3, 0.25, 0.25, 0.06, 0.14])
    first, last = np.array([0, 0.4, 0.75, 0.4, 0.75]), np.array([0.4, 0.75, 1, 0.75, 1])
    time_n = random.uniform(first[stage_n], last[stage_n])
    branch_n = np.array(["trunk", "branch_2", "branch_2", "branch_1", "branch_1"])[stage_n]
    type_n = np.where(time_n < 0.2, "stem", np.where(time_n < 0.4, "progenitor", "intermediate_"))
    type_n = np.where(time_n >= 0.7, "mature_", type_n).astype(object)
    type_n += np.where(branch_n == "trunk", "", np.char.replace(branch_n, "branch_", "")).astype(object)
    obs = drawn.obs.assign(
        true_pseudotime=time_n, true_branch=pd.Categorical(branch_n), cell_type=pd.Categorical(type_n)
    )
    genes = drawn.var
    mean_ng = true_mean(obs, varm)
    matrix = draw_zinb(mean_ng, genes["true_theta"].to_numpy(), genes["true_zero_inflation"].to_numpy(), random)
    return anndata.AnnData(sp.csr_matrix(matrix), obs=obs, var=genes)


def counts_of(adata: anndata.AnnData, batch_key: str | None = None) -> Counts:
    """Return the cells of an AnnData as `Counts`."""
    return Counts(
        matrix=sp.csr_matrix(adata.X, dtype=np.float32),
        cell_names=np.asarray(adata.obs_names, dtype=object),
        gene_names=np.asarray(adata.var_names, dtype=object),
        source="X",
        batch=None if batch_key is None else np.asarray(adata.obs[batch_key].astype(str), dtype=object),
    )


def tiny_config(**options) -> RunConfig:
    """A configuration that trains in a second."""
    return RunConfig.of(TINY | options)


@functools.cache
def learned(n_branches: int = 2) -> tuple[anndata.AnnData, Any]:
    """Cells of a tree, and a model that separates its branches; copy the cells before changing them."""
    adata = tree(n_cells=800, n_genes=150, n_branches=n_branches, n_batches=2, depth=3000)
    # With the precision fp32, the model is the same on CPUs with and without units for bfloat16.
    options = {"n_hidden": 64, "max_epochs": 50 if n_branches > 1 else 30, "precision": "fp32"}
    return adata, scvae.train(adata, **TINY | options, batch_key="batch", genes="all")
