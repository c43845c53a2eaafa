"""The part of `covariates.py` that needs scvi-tools: train scVI with covariates and write the latent means.

    python covariates_scvi.py DATA.h5ad --seed 0 -o latent.npz --categorical donor --categorical lane --continuous age

This script needs scvi-tools, and no code of this project.
"""

from __future__ import annotations

import argparse

import anndata
import numpy as np


def main() -> None:
    """Train scVI with its defaults and early stopping."""
    import scvi
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--categorical", action="append")
    parser.add_argument("--continuous", action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    scvi.settings.verbosity = 40
    scvi.settings.seed = arguments.seed
    adata = anndata.read_h5ad(arguments.data)
    scvi.model.SCVI.setup_anndata(
        adata,
        categorical_covariate_keys=arguments.categorical,
        continuous_covariate_keys=arguments.continuous,
    )
    model = scvi.model.SCVI(adata)
    model.train(early_stopping=True, accelerator="cpu", enable_progress_bar=False, logger=None)
    np.savez(arguments.output, z=model.get_latent_representation())


if __name__ == "__main__":
    main()
