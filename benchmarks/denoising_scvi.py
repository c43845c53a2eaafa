"""Expected counts of scVI for each cell, from counts of which a part was withheld; called by `denoising.py`.

    python denoising_scvi.py KEPT.h5ad -o expected.npz

This script writes three matrices of shape (cells, genes). Each matrix is a mean over posterior samples, at the observed
library size of each cell:

    rate      library size × px_scale, as `get_normalized_expression` computes it
    mean      mean of scVI's likelihood, including zero inflation
    own       expected counts given the cell's own counts, μ(x + θ)/(μ + θ); scVI itself does not compute them

This script needs scvi-tools, and no code of this project except heldout_scvi.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path

from heldout_scvi import CONTENDERS, quiet_scvi, train

CELLS_PER_PASS = 256


def main() -> None:
    """Train scVI, denoise and write the matrices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--contender", choices=list(CONTENDERS), default="scvi-es")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    quiet_scvi(args.threads, args.seed)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        training = train(args.data, args.contender, Path(folder) / "model")
        denoise(args.data, Path(folder) / "model", args.samples, args.seed, args.output)
    print(json.dumps(training))


def denoise(data: Path, model_dir: Path, samples: int, seed: int, output: Path) -> None:
    """Write the three matrices (npz, float32)."""
    import anndata
    import numpy as np
    import torch
    from scvi.model import SCVI

    adata = anndata.read_h5ad(data)
    model = SCVI.load(str(model_dir), adata=adata, accelerator="cpu")
    module = model.module.eval()
    torch.manual_seed(seed)
    parts: dict[str, list[np.ndarray]] = {"rate": [], "mean": [], "own": []}
    with torch.inference_mode():
        for batch in model._make_data_loader(adata=adata, batch_size=CELLS_PER_PASS):
            x_ng = batch["X"].to_dense() if batch["X"].is_sparse or batch["X"].is_sparse_csr else batch["X"]
            total = {name: torch.zeros_like(x_ng) for name in parts}
            for _ in range(samples):
                _, made = module(batch, compute_loss=False)
                px = made["px"]
                mu_ng, theta_ng = px.mu, px.theta
                own_ng = mu_ng * (x_ng + theta_ng) / (mu_ng + theta_ng)
                mean_ng = mu_ng
                if getattr(px, "zi_logits", None) is not None:
                    mean_ng = mu_ng * torch.sigmoid(-px.zi_logits)
                    log_zero_ng = -theta_ng * torch.log1p(mu_ng / theta_ng)
                    technical_ng = torch.sigmoid(px.zi_logits - log_zero_ng)
                    own_ng = torch.where(x_ng == 0, own_ng * (1 - technical_ng), own_ng)
                for name, value in (("rate", mu_ng), ("mean", mean_ng), ("own", own_ng)):
                    total[name] += value / samples
            for name, value in total.items():
                parts[name].append(value.numpy().astype(np.float32))
    np.savez(output, **{name: np.concatenate(blocks) for name, blocks in parts.items()})


if __name__ == "__main__":
    main()
