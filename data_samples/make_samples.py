"""Make the two sample files in the folder of this script; every run gives the same files.

python data_samples/make_samples.py
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

from scvae_cli.data.h5ad_create import create_h5ad
from scvae_cli.data.simulation import simulate
from scvae_cli.data.simulation_config import SimulationConfig

HERE = Path(__file__).resolve().parent
# The largest allowed deviation of a recovered count from a whole number. The observed one is 0.11; 0.5 would be
# ambiguous.
TOLERANCE = 0.15

PBMC_SOURCE = (
    "Peripheral blood mononuclear cells of a healthy donor, 10x Genomics Chromium, 68k PBMC set of Zheng et al. "
    "2017 (doi:10.1038/ncomms14049); 700 cells and 765 genes of it as shipped with scanpy "
    "(scanpy.datasets.pbmc68k_reduced), with the labels of Zheng et al. in bulk_labels. Its raw.X holds log1p of "
    "counts times one factor a cell. expm1, division by the cell's smallest positive value and rounding give the "
    "counts back (the smallest positive count of a cell is taken to be 1)."
)


def make_pbmc(path: Path) -> None:
    """Recover the counts of scanpy's small PBMC set and write them, without results computed from them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of the file inside scanpy
        adata = sc.datasets.pbmc68k_reduced()
    scaled_ng = np.expm1(adata.raw.X.toarray().astype(np.float64))
    smallest_n = np.where(scaled_ng > 0, scaled_ng, np.inf).min(1)
    exact_ng = scaled_ng / smallest_n[:, None]
    counts_ng = np.round(exact_ng)
    deviation = np.abs(exact_ng - counts_ng).max()
    if deviation > TOLERANCE:
        raise SystemExit(f"raw.X is not scaled counts: a value lies {deviation:.2f} from a whole number")
    print(f"{path.name}: largest deviation {deviation:.3f}, median counts a cell {np.median(counts_ng.sum(1)):.0f}")
    create_h5ad(
        path,
        obs=pd.DataFrame({"bulk_labels": adata.obs["bulk_labels"]}, index=pd.Index(adata.obs_names, dtype=object)),
        var=pd.DataFrame(index=pd.Index(adata.raw.var_names, dtype=object)),
        uns={"source": PBMC_SOURCE},
        blocks=[sp.csr_matrix(counts_ng.astype(np.float32))],
        force=True,
    )


def make_differentiation(path: Path) -> None:
    """Simulate a small tree with two branches and two batches."""
    config = SimulationConfig(n_cells=1000, n_genes=400, n_branches=2, n_batches=2, depth=450, seed=0)
    simulation = simulate(config)
    create_h5ad(
        path,
        obs=simulation.obs,
        var=simulation.var,
        uns=simulation.uns,
        varm=simulation.varm,
        blocks=simulation.blocks(),
        force=True,
    )
    print(f"{path.name}: {config.n_cells} cells × {config.n_genes} genes")


if __name__ == "__main__":
    make_pbmc(HERE / "pbmc68k_700.h5ad")
    make_differentiation(HERE / "differentiation.h5ad")
