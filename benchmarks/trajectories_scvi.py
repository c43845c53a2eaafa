"""Straight lines between centroids in scVI's latent space, decoded by scVI; called by `trajectories_mixtures.py`.

    python trajectories_scvi.py CELLS.h5ad WALKS.json --key mixture --contender scvi-es -o walks.npz

WALKS.json names the two groups of each trajectory. This script needs scvi-tools, and no code of this project except
heldout_scvi.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

from heldout_scvi import CONTENDERS, quiet_scvi, train

STEPS = 50


def main() -> None:
    """Train, compute the trajectories and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("walks", type=Path)
    parser.add_argument("--key", required=True)
    parser.add_argument("--contender", choices=list(CONTENDERS), default="scvi-es")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    quiet_scvi(args.threads, args.seed)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        training = train(args.data, args.contender, Path(folder) / "model")
        walk(args.data, Path(folder) / "model", json.loads(args.walks.read_text()), args.key, args.output)
    print(json.dumps(training))


def walk(data: Path, model_dir: Path, walks: dict[str, list[str]], key: str, output: Path) -> None:
    """Decode the proportions along every trajectory; `output` (npz) has an array (steps, genes) for each."""
    import anndata
    import numpy as np
    import torch
    from scvi.model import SCVI

    adata = anndata.read_h5ad(data)
    model = SCVI.load(str(model_dir), adata=adata, accelerator="cpu")
    model.module.eval()
    latent = model.get_latent_representation()
    groups = adata.obs[key].astype(str).to_numpy()
    decoded = {}
    for name, (start, end) in walks.items():
        a, b = (latent[groups == group].mean(0) for group in (start, end))
        z = torch.as_tensor(a + np.linspace(0, 1, STEPS)[:, None] * (b - a), dtype=torch.float32)
        library = torch.full((STEPS, 1), float(np.log(1e4)))
        with torch.inference_mode():
            made = model.module.generative(z=z, library=library, batch_index=torch.zeros(STEPS, 1, dtype=torch.int64))
        decoded[name] = made["px"].scale.numpy()
    np.savez(output, **decoded)


if __name__ == "__main__":
    main()
