"""The part of `mapping.py` that needs scvi-tools: scVI trained on the reference, and scArches' surgery for the query.

    python mapping_scvi.py REFERENCE.h5ad QUERY.h5ad --batch-key KEY --seed 0 -o latent.npz

scVI is trained on the reference with early stopping and with the settings that scvi-tools recommends for surgery (layer
normalization, batches in the encoder, two layers, dropout 0.2). The genes are the 4,000 genes of highest variance
(scanpy's seurat_v3), or all genes if there are no more than 4,000. Surgery consists of `SCVI.load_query_data` and 200
epochs without weight decay, as in the tutorial of scvi-tools. The script writes the latent means of the reference
cells, followed by those of the query cells, and the seconds of the two trainings.

This script needs scvi-tools and scikit-misc, and no code of this project.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings

import numpy as np

MAX_GENES, SURGERY_EPOCHS = 4000, 200


def main() -> None:
    """Train, map and write the latent means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("query")
    parser.add_argument("--batch-key", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    import anndata
    import scanpy as sc
    import scvi
    import torch

    torch.set_num_threads(arguments.threads)
    scvi.settings.verbosity = 40
    scvi.settings.seed = arguments.seed
    reference, query = (anndata.read_h5ad(path) for path in (arguments.reference, arguments.query))
    if reference.n_vars > MAX_GENES:
        sc.pp.highly_variable_genes(reference, n_top_genes=MAX_GENES, flavor="seurat_v3")
        reference = reference[:, reference.var["highly_variable"]].copy()
    query = query[:, reference.var_names].copy()
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "logger": None}
    start = time.perf_counter()
    scvi.model.SCVI.setup_anndata(reference, batch_key=arguments.batch_key)
    recommended = {"use_layer_norm": "both", "use_batch_norm": "none", "encode_covariates": True}
    model = scvi.model.SCVI(reference, n_layers=2, dropout_rate=0.2, **recommended)
    model.train(early_stopping=True, **quiet)
    trained = time.perf_counter()
    mapped = scvi.model.SCVI.load_query_data(query, model)
    mapped.train(max_epochs=SURGERY_EPOCHS, plan_kwargs={"weight_decay": 0.0}, **quiet)
    seconds = {"train_seconds": trained - start, "map_seconds": time.perf_counter() - trained}
    latent = np.concatenate([model.get_latent_representation(), mapped.get_latent_representation(query)])
    np.savez(arguments.output, latent=latent, **seconds)


if __name__ == "__main__":
    main()
