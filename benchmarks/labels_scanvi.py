"""The part of `labels.py` that needs scvi-tools: one scVI model per data set, and one SCANVI model per task.

    python labels_scanvi.py DATA.h5ad TASKS.npz --seed 0 -o PROBABILITIES.npz [--batch-key KEY]

DATA holds the genes to use. TASKS holds an array of labels for each task; "Unknown" means that a cell has no label.
scVI is trained with early stopping and otherwise with its defaults. SCANVI starts from scVI and is trained with its
defaults. For each task, the result holds the labels and their probabilities. A task that is already in the result is
not repeated.

This script needs scvi-tools, and no code of this project.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import scvi
import torch


def main() -> None:
    """Train all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-epochs", type=int, help="largest number of epochs of scVI; by default, that of scVI")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-key")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    scvi.settings.verbosity = 40
    scvi.settings.seed = arguments.seed
    adata = anndata.read_h5ad(arguments.data)
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "logger": None}
    with np.load(arguments.tasks, allow_pickle=True) as stored:
        tasks = {name: stored[name] for name in stored.files}
    folder = arguments.output.with_suffix(".scvi")
    found = dict(np.load(arguments.output, allow_pickle=True)) if arguments.output.exists() else {}
    base = "scanvi_label"
    adata.obs[base] = "Unknown"
    scvi.model.SCVI.setup_anndata(adata, batch_key=arguments.batch_key)
    if folder.exists():
        unlabeled = scvi.model.SCVI.load(str(folder), adata=adata, accelerator="cpu")
    else:
        start = time.perf_counter()
        unlabeled = scvi.model.SCVI(adata)
        unlabeled.train(max_epochs=arguments.max_epochs, early_stopping=True, **trainer)
        unlabeled.save(str(folder), overwrite=True)
        found["scvi_seconds"] = np.asarray(time.perf_counter() - start)
        np.savez(arguments.output, **found)
    for name, label_n in tasks.items():
        if f"{name}_p" in found:
            continue
        adata.obs[base] = label_n.astype(str)
        adata.obs[base] = adata.obs[base].astype("category")
        start = time.perf_counter()
        model = scvi.model.SCANVI.from_scvi_model(unlabeled, "Unknown", labels_key=base, adata=adata)
        model.train(**trainer)
        table = model.predict(soft=True)
        found[f"{name}_p"], found[f"{name}_labels"] = table.to_numpy(), np.asarray(table.columns, dtype=str)
        found[f"{name}_seconds"] = np.asarray(time.perf_counter() - start)
        np.savez(arguments.output, **found)
    print(json.dumps({"version": scvi.__version__}))


if __name__ == "__main__":
    main()
