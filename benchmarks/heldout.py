"""Held-out likelihood: scvae against scVI on the same cells and genes, quality beside time.

    python benchmarks/heldout.py --scvi-python SCVI_ENV/bin/python --seeds 0,1,2 --also-2x30nb

What is measured. Each data set is split per seed into test cells (10%), which go to a file of their own that no
trainer sees, and the rest, which every contender gets as one file. From that file each contender sets aside its own
validation cells, at its own default (10% for both tools). Genes expressed in fewer than 3 of the trainers' cells are
left out of both files, so both tools model the same genes. There is no batch key: the decoder sees a cell only through
z and its library size. The seed drives the split and the training.

Contenders: `scvae train` as it comes (with `--genes all`), scVI as it comes, scVI with early stopping, and with
`--also-2x30nb` a larger scVI (2 layers, 30 latent dimensions, nb, early stopping).

On the test cells: ELBO and importance bound (IWAE, `--samples` posterior samples), nats per cell. Times: the wall time
of the whole training process (start of Python, imports, reading, training, saving), and beside it what the tool says
of its training alone. Both tools run on CPU with `--threads` threads; the contenders take turns within a seed and data
set.

`scvae` is looked for beside the running interpreter; scvi-tools may live in another environment (`--scvi-python`). Runs
are written to `--results` (JSON, and a table as .md beside it) as they finish. `--only scvae` measures scvae anew and
keeps the scVI runs already in that file; `--resume` measures only what is missing from it; without either the file is
started afresh.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import heldout_table
import numpy as np
from heldout_runs import (
    SHARED_DATA,
    Records,
    add_options,
    check_and_tell,
    describe_run,
    measure_scvi,
    per_cell,
    times,
)
from heldout_scvi import CONTENDERS as SCVI_CONTENDERS
from heldout_split import Split, split
from timed import run_json

DEFAULT_DATA = [SHARED_DATA / name for name in ("pbmc4k_top2000.h5ad", "paul15_3004.h5ad")]
LABELS = {"scvae": "scvae, defaults"} | {name: chosen.label for name, chosen in SCVI_CONTENDERS.items()}


def main() -> None:
    """Run what is asked for, one process a step, and write the results after every run."""
    args = parse_arguments()
    contenders = [name for name in LABELS if name != "scvi-2x30nb" or args.also_2x30nb]
    chosen = [name for name in contenders if args.only is None or name.startswith(args.only)]
    records = Records(args, chosen, LABELS, heldout_table.render)

    with tempfile.TemporaryDirectory(prefix="heldout-") as folder:
        for seed in args.seeds:
            for data in args.data:
                work = Path(folder) / f"{data.stem}-{seed}"
                parts = split(data, work, seed=seed, test_share=args.test_share, samples=args.samples)
                print(f"{data.stem}, seed {seed}: {parts.describe()}", file=sys.stderr)
                finished = records.made_on(parts)
                for name in chosen:
                    if name not in finished:
                        records.add(measure(name, parts, work / name, args))
    records.save()
    print(args.results.with_suffix(".md").read_text())


def parse_arguments() -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, data=DEFAULT_DATA, results="heldout.json")
    parser.add_argument("--also-2x30nb", action="store_true", help="a larger scVI as a further contender")
    parser.add_argument("--scvae", default=str(Path(sys.executable).with_name("scvae")), help="the scvae command")
    return parser.parse_args()


def measure(name: str, parts: Split, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one contender on one split; the result is one record of the results file."""
    work.mkdir()
    run = describe_run(name, LABELS[name], parts, args)
    run |= measure_scvae(parts, work, args) if name == "scvae" else measure_scvi(name, parts, work, args)
    return check_and_tell(run, parts)


def measure_scvae(parts: Split, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`scvae train` and `scvae score`, as a user types them."""
    model, scored = work / "model.scvae", work / "scored.h5ad"
    train = ["train", str(parts.trainer_file), "-m", str(model), "--genes", "all", "--seed", str(parts.seed), "--json"]
    score = ["score", str(parts.test_file), "-m", str(model), "--samples", str(args.samples), "--json"]
    scvae = shlex.split(args.scvae)
    trained = run_json([*scvae, *train], args.threads, gpu=args.gpu)
    summary = run_json([*scvae, *score, "-o", str(scored)], args.threads, gpu=args.gpu)
    return {
        **times(trained, summary),
        "active_units": trained.result["active_units"],
        "versions": {name: importlib.metadata.version(name) for name in ("scvae-cli", "torch", "anndata")},
        **per_cell(*read_scores(scored), summary.result),
    }


def read_scores(scored: Path) -> tuple[np.ndarray, np.ndarray]:
    """Per-cell ELBO and importance bound, where `scvae score` writes them."""
    import h5py

    with h5py.File(scored) as file:
        return file["obs/scvae_elbo"][:], file["obs/scvae_iwae"][:]


if __name__ == "__main__":
    main()
