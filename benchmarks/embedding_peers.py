"""The part of `embedding.py` that needs scvi-tools: train scVI, and score embeddings with scib-metrics and Harmony.

    python embedding_peers.py train DATA.h5ad --seed 0 -o latent.npz [--batch-key KEY]
    python embedding_peers.py score DATA.h5ad EMBEDDINGS.npz --labels KEY --batch-key KEY

`train` fits `scvi.model.SCVI` with its defaults and early stopping to the counts of the 4,000 genes of highest variance
(scanpy's seurat_v3; all genes if there are no more than 4,000). `train` writes the latent means and the seconds of the
training. `score` adds Harmony on the embedding called "pca", and prints the scIB scores of all embeddings as one JSON
object.

This script needs scvi-tools, scib-metrics, harmonypy and scikit-misc, and no code of this project.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from typing import Any

import numpy as np

MAX_GENES = 4000


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train scVI and write the latent means of all cells."""
    import anndata
    import scanpy as sc
    import scvi
    import torch

    torch.set_num_threads(arguments.threads)
    scvi.settings.verbosity = 40
    scvi.settings.seed = arguments.seed
    adata = anndata.read_h5ad(arguments.data)
    if adata.n_vars > MAX_GENES:
        sc.pp.highly_variable_genes(adata, n_top_genes=MAX_GENES, flavor="seurat_v3")
        adata = adata[:, adata.var["highly_variable"]].copy()
    start = time.perf_counter()
    scvi.model.SCVI.setup_anndata(adata, batch_key=arguments.batch_key)
    model = scvi.model.SCVI(adata)
    model.train(early_stopping=True, accelerator="cpu", enable_progress_bar=False, logger=None)
    seconds = time.perf_counter() - start
    np.savez(arguments.output, z=model.get_latent_representation(), seconds=seconds)
    return {"seconds": seconds, "version": scvi.__version__}


def score(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute scIB's total, bio conservation and batch correction of each embedding, and all of their parts."""
    import anndata
    import harmonypy
    from scib_metrics.benchmark import Benchmarker

    obs = anndata.read_h5ad(arguments.data, backed="r").obs[[arguments.labels, arguments.batch_key]]
    known = obs[arguments.labels].notna().to_numpy()
    obs = obs[known].astype(str).astype("category")
    adata = anndata.AnnData(np.zeros((len(obs), 1), dtype=np.float32), obs=obs)
    with np.load(arguments.embeddings) as embeddings:
        for name in embeddings.files:
            adata.obsm[name] = np.asarray(embeddings[name], dtype=np.float32)[known]
    start = time.perf_counter()
    harmonized = harmonypy.run_harmony(adata.obsm["pca"].astype(float), adata.obs, arguments.batch_key, verbose=False)
    seconds = time.perf_counter() - start
    corrected = np.asarray(harmonized.Z_corr, dtype=np.float32)
    adata.obsm["harmony"] = corrected if len(corrected) == adata.n_obs else corrected.T
    names = list(adata.obsm)
    benchmarker = Benchmarker(
        adata,
        batch_key=arguments.batch_key,
        label_key=arguments.labels,
        embedding_obsm_keys=names,
        pre_integrated_embedding_obsm_key="pca",
        n_jobs=1,
        progress_bar=False,
    )
    benchmarker.benchmark()
    table = benchmarker.get_results(min_max_scale=False, clean_names=True)
    columns = {"Total": "total", "Bio conservation": "bio", "Batch correction": "batch"}
    found = {
        name: {columns.get(column, column): round(float(table.loc[name, column]), 4) for column in table.columns}
        for name in names
    }
    return {"scores": found, "harmony_seconds": seconds}


def main() -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    trained = steps.add_parser("train")
    trained.add_argument("data")
    trained.add_argument("--seed", type=int, default=0)
    trained.add_argument("--threads", type=int, default=2)
    trained.add_argument("--batch-key")
    trained.add_argument("-o", "--output", required=True)
    trained.set_defaults(step=train)
    scored = steps.add_parser("score")
    scored.add_argument("data")
    scored.add_argument("embeddings")
    scored.add_argument("--labels", required=True)
    scored.add_argument("--batch-key", required=True)
    scored.set_defaults(step=score)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    print(json.dumps(arguments.step(arguments)))


if __name__ == "__main__":
    main()
