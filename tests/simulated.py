"""Small simulated data sets that several tests share."""

from __future__ import annotations

import functools
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp

import scvae_cli as scvae
from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.simulation import simulate
from scvae_cli.data.simulation_config import SimulationConfig

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


def counts_of(adata: anndata.AnnData, batch_key: str | None = None) -> Counts:
    """Return the same cells as `Counts`."""
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
    # A single precision gives the same model on CPUs with and without units for bfloat16.
    options = {"n_hidden": 64, "max_epochs": 50 if n_branches > 1 else 30, "precision": "fp32"}
    return adata, scvae.train(adata, **TINY | options, batch_key="batch", genes="all")
