"""Palantir and CellRank for `fates.py`, in an environment with `palantir` and `cellrank`.

    python benchmarks/fates_peers.py FOLDER ROOT END [END…]

FOLDER/cells.h5ad holds X_pca and the groups of the cells, and ROOT is the index of the root cell. The results are
written to FOLDER/peers.npz.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import anndata
import cellrank as cr
import numpy as np
import palantir
import pandas as pd
import scanpy as sc

warnings.filterwarnings("ignore")


def palantir_of(adata: anndata.AnnData, root: int, ends: list[str], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute Palantir's pseudotime and fates. Each end is the cell of the group that lies farthest from the root."""
    cells = adata.copy()
    palantir.utils.run_diffusion_maps(cells, n_components=10)
    palantir.utils.determine_multiscale_space(cells)
    start = cells.obs_names[root]
    space_nd = np.asarray(cells.obsm["DM_EigenVectors_multiscaled"])
    far_n = np.linalg.norm(space_nd - space_nd[root], axis=1)
    groups = cells.obs[key].astype(str).to_numpy()
    tips = {cells.obs_names[np.where(groups == end, far_n, -1).argmax()]: end for end in ends}
    found = palantir.core.run_palantir(
        cells, start, terminal_states=pd.Series(tips), num_waypoints=500, use_early_cell_as_start=True, n_jobs=1
    )
    fates = found.branch_probs.reindex(columns=[*tips.values()] if ends[0] in found.branch_probs else [*tips])
    fates.columns = [*tips.values()]
    return found.pseudotime.to_numpy(), fates.reindex(columns=ends).fillna(0).to_numpy()


def cellrank_of(adata: anndata.AnnData, root: int, ends: list[str], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute CellRank's fates by the pseudotime kernel on diffusion pseudotime; an end is the 30 latest cells of a
    group.
    """
    cells = adata.copy()
    sc.pp.neighbors(cells, n_neighbors=30, use_rep="X_pca")
    sc.tl.diffmap(cells)
    cells.uns["iroot"] = root
    sc.tl.dpt(cells)
    time_n = cells.obs["dpt_pseudotime"].to_numpy()
    kernel = cr.kernels.PseudotimeKernel(cells, time_key="dpt_pseudotime").compute_transition_matrix()
    estimator = cr.estimators.GPCCA(kernel)
    groups = cells.obs[key].astype(str).to_numpy()
    latest = {end: np.flatnonzero(groups == end) for end in ends}
    names = {end: list(cells.obs_names[nodes[np.argsort(-time_n[nodes])[:30]]]) for end, nodes in latest.items()}
    estimator.set_terminal_states(names)
    estimator.compute_fate_probabilities(show_progress_bar=False)
    fates = estimator.fate_probabilities
    return time_n, np.column_stack([np.asarray(fates[end]).ravel() for end in ends])


def main() -> None:
    """Run Palantir and CellRank, with all labels and with half of the labels hidden."""
    folder, root, ends = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    read = anndata.read_h5ad(folder / "cells.h5ad")
    # CellRank reads the number type of X, but not the values, so X is a matrix of zeros.
    adata = anndata.AnnData(
        np.zeros((read.n_obs, 1), dtype=np.float32), obs=read.obs, obsm={"X_pca": read.obsm["X_pca"]}
    )
    results = {}
    for name, method in (("Palantir", palantir_of), ("CellRank", cellrank_of)):
        results[f"{name}_time"], results[f"{name}_fates"] = method(adata, root, ends, "cell_type")
        results[f"{name}_hidden"] = method(adata, root, ends, "partly_hidden")[1]
    np.savez(folder / "peers.npz", **results)


if __name__ == "__main__":
    main()
