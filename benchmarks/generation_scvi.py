"""Sample cells with scVI: decode z ~ N(0, I), and draw counts from scVI's likelihood; called by `generation.py`.

    python generation_scvi.py CELLS.h5ad -n 1000 -o made.npz

Library sizes are drawn at random from those of the training cells. This script needs scvi-tools, and no code of this
project except heldout_scvi.py.
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
    """Train, sample and write the cells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-n", type=int, required=True)
    parser.add_argument("--contender", choices=list(CONTENDERS), default="scvi-es")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    quiet_scvi(args.threads, args.seed)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        facts = train(args.data, args.contender, Path(folder) / "model")
        sample(args.data, Path(folder) / "model", args.n, args.seed, args.output)
    print(json.dumps(facts))


def sample(data: Path, model_dir: Path, n: int, seed: int, output: Path) -> None:
    """Write n cells as a CSR matrix (npz)."""
    import anndata
    import numpy as np
    import scipy.sparse as sp
    import torch
    from scvi.model import SCVI

    adata = anndata.read_h5ad(data)
    model = SCVI.load(str(model_dir), adata=adata, accelerator="cpu")
    model.module.eval()
    library_n = np.asarray(adata.X.sum(1)).ravel()
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    parts = []
    with torch.inference_mode():
        for start in range(0, n, CELLS_PER_PASS):
            m = min(CELLS_PER_PASS, n - start)
            z = torch.randn(m, model.module.n_latent)
            library = torch.as_tensor(np.log(random.choice(library_n, m)), dtype=torch.float32)[:, None]
            batch = torch.zeros(m, 1, dtype=torch.int64)
            made = model.module.generative(z=z, library=library, batch_index=batch)
            parts.append(sp.csr_matrix(made["px"].sample().numpy()))
    sp.save_npz(output, sp.vstack(parts, format="csr").astype(np.float32))


if __name__ == "__main__":
    main()
