"""The part of the benchmarks on held-out cells that uses scVI. The benchmarks start each step in a separate process.

    python heldout_scvi.py train TRAIN.h5ad --contender scvi --seed 0 -m MODEL_DIR
    python heldout_scvi.py score TEST.h5ad -m MODEL_DIR --samples 100 -o scores.npz
    python heldout_scvi.py embed TRAIN.h5ad TEST.h5ad -m MODEL_DIR -o latent.npy

`train` fits `scvi.model.SCVI` to the raw counts in X, with the defaults of scvi-tools except for the settings in
CONTENDERS. As scVI does by default, `train` holds out 10% of the given cells, and keeps the weights of the last epoch.

`score` computes the following bounds for every cell x of a file that was not used for training, with K posterior
samples z_k ~ q(z|x),

    ELBO(x)  = mean_k log p(x|z_k) − KL(q(z|x) ‖ N(0, I))
    IWAE(x)  = logsumexp_k [log p(x|z_k) + log N(z_k; 0, I) − log q(z_k|x)] − log K

in nats, at the observed library size (scVI's default), in eval mode. As a check, the results of scVI's own
`get_marginal_ll` and `get_elbo`, which draw other samples, are printed too.

`embed` writes the mean latent position of every cell of the files, in the order of the files (.npy). Each step prints
one JSON object.

This script needs scvi-tools (1.4 at the time of writing), and no code of this project.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLES_PER_PASS = 20
CELLS_PER_PASS = 128


@dataclass(frozen=True, kw_only=True)
class ScviContender:
    """One way to use scVI: settings of the model and of its training that differ from the defaults."""

    label: str
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


CONTENDERS = {
    "scvi": ScviContender(label="scVI, defaults"),
    "scvi-es": ScviContender(label="scVI, early stopping", train={"early_stopping": True}),
    "scvi-2x30nb": ScviContender(
        label="scVI, 2 layers, 30 latent, nb, early stopping",
        model={"n_layers": 2, "n_latent": 30, "gene_likelihood": "nb"},
        train={"early_stopping": True},
    ),
}


def quiet_scvi(threads: int, seed: int) -> None:
    """Fix seed and thread count, and keep scVI, lightning and their progress bars silent."""
    warnings.filterwarnings("ignore")
    import scvi

    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    scvi.settings.verbosity = logging.ERROR
    scvi.settings.num_threads = threads
    scvi.settings.seed = seed


def train(data: Path, contender: str, model_dir: Path) -> dict[str, Any]:
    """Fit one scVI model and save it; `seconds` is the time of the call of `.train()` alone."""
    import anndata
    import scvi
    import torch
    from scvi.model import SCVI

    chosen = CONTENDERS[contender]
    adata = anndata.read_h5ad(data)
    SCVI.setup_anndata(adata)
    model = SCVI(adata, **chosen.model)
    start = time.perf_counter()
    model.train(**chosen.train, enable_progress_bar=False, enable_model_summary=False)
    seconds = time.perf_counter() - start
    model.save(str(model_dir), overwrite=True)
    return {
        "seconds": seconds,
        "epochs": len(model.history["elbo_train"]),
        "n_cells": adata.n_obs,
        "n_genes": adata.n_vars,
        "n_validation": len(model.validation_indices),
        "versions": {"scvi-tools": scvi.__version__, "torch": torch.__version__, "anndata": anndata.__version__},
    }


def score(data: Path, model_dir: Path, samples: int, output: Path) -> dict[str, Any]:
    """Write ELBO and IWAE of each cell to `output` (npz); return the mean of each bound, and scVI's own results."""
    import anndata
    import numpy as np
    import torch
    from scvi.model import SCVI

    adata = anndata.read_h5ad(data)
    model = SCVI.load(str(model_dir), adata=adata, accelerator="cpu")
    model.module.eval()
    elbo_n, iwae_n = [], []
    with torch.inference_mode():
        for batch in model._make_data_loader(adata=adata, batch_size=CELLS_PER_PASS):
            for rows, parts in zip(_bounds(model.module, batch, samples), (elbo_n, iwae_n), strict=True):
                parts.append(rows)
    elbo, iwae = torch.cat(elbo_n).numpy(), torch.cat(iwae_n).numpy()
    np.savez(output, elbo=elbo, iwae=iwae)
    own_iwae = model.get_marginal_ll(adata, n_mc_samples=samples, return_mean=False, batch_size=CELLS_PER_PASS)
    return {
        "n_cells": len(iwae),
        "mean_elbo": float(elbo.mean()),
        "mean_iwae": float(iwae.mean()),
        "scvi_marginal_ll": float(own_iwae.mean()),
        "scvi_elbo": float(model.get_elbo(adata)),
    }


def embed(files: list[Path], model_dir: Path, output: Path) -> dict[str, Any]:
    """Write the mean latent positions of the cells of the files, one file after the other, to `output` (npy)."""
    import anndata
    import numpy as np
    from scvi.model import SCVI

    parts = []
    for file in files:
        adata = anndata.read_h5ad(file)
        parts.append(SCVI.load(str(model_dir), adata=adata, accelerator="cpu").get_latent_representation())
    latent = np.concatenate(parts)
    np.save(output, latent)
    return {"n_cells": len(latent), "n_latent": latent.shape[1]}


def _bounds(module: Any, batch: dict[str, Any], samples: int) -> tuple[Any, Any]:
    """Compute the ELBO and the importance bound of the cells of one minibatch, float64.

    Letters in array shapes: s samples, n cells, g genes, k latent dimensions.
    """
    import torch
    from torch.distributions import Normal, kl_divergence

    if not module.use_observed_lib_size:
        raise SystemExit("the bounds here hold for the observed library size only")
    x_ng = batch["X"]
    log_likelihood, log_weight = [], []
    for first in range(0, samples, SAMPLES_PER_PASS):
        n_samples = min(SAMPLES_PER_PASS, samples - first)
        inferred = module.inference(**module._get_inference_input(batch), n_samples=n_samples)
        generated = module.generative(**module._get_generative_input(batch, inferred))
        posterior, z_snk = inferred["qz"], inferred["z"].reshape(n_samples, len(x_ng), -1)
        log_p_x_sn = generated["px"].log_prob(x_ng).reshape(n_samples, *x_ng.shape).double().sum(-1)
        prior = Normal(torch.zeros_like(posterior.loc), torch.ones_like(posterior.scale))
        log_ratio_sn = (prior.log_prob(z_snk) - posterior.log_prob(z_snk)).double().sum(-1)
        log_likelihood.append(log_p_x_sn)
        log_weight.append(log_p_x_sn + log_ratio_sn)
    kl_n = kl_divergence(posterior, prior).double().sum(-1)
    elbo_n = torch.cat(log_likelihood).mean(0) - kl_n
    iwae_n = torch.logsumexp(torch.cat(log_weight), dim=0) - math.log(samples)
    return elbo_n, iwae_n


def main() -> None:
    """Parse the command line, run one step, and print its JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["train", "score", "embed"])
    parser.add_argument("data", nargs="+", type=Path, help="one file; embed takes several")
    parser.add_argument("-m", "--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("-o", "--output", type=Path, help="score, embed: file for the values of the cells (.npz, .npy)")
    parser.add_argument("--contender", choices=list(CONTENDERS), default="scvi")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.step != "train" and args.output is None:
        parser.error(f"{args.step} needs -o")
    if args.step != "embed" and len(args.data) > 1:
        parser.error(f"{args.step} takes one file")
    quiet_scvi(args.threads, args.seed)
    # scVI reports an early stop on stdout, which must contain only the JSON object.
    with contextlib.redirect_stdout(sys.stderr):
        if args.step == "train":
            result = train(args.data[0], args.contender, args.model)
        elif args.step == "score":
            result = score(args.data[0], args.model, args.samples, args.output)
        else:
            result = embed(args.data, args.model, args.output)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
