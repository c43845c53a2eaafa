"""Held-out likelihood and training time of scvae and scVI on the same cells and genes.

    python benchmarks/heldout.py --scvi-python SCVI_ENV/bin/python --seeds 0,1,2 --also-2x30nb

For each seed, each data set is split into test cells (10%) and training cells. The test cells are written to a separate
file that no tool reads for training; all tools get the same file with the training cells. From the file with the
training cells, each tool sets aside its own validation cells, by its own default (10% for both tools). Genes that are
expressed in fewer than 3 of the training cells are removed from both files, so both tools model the same genes. There
is no batch key: the decoder gets only z and the library size of a cell. The seed determines the split and the training.

The compared tools are `scvae train` with its defaults (and `--genes all`), scVI with its defaults, scVI with early
stopping and, with `--also-2x30nb`, a larger scVI (2 layers, 30 latent dimensions, nb, early stopping).

On the test cells, the ELBO and the importance bound (IWAE, `--samples` posterior samples) are computed, in nats per
cell. Two times are reported: the wall time of the whole training process (start of Python, imports, reading, training,
saving), and the time that the tool reports for its training alone. Both tools run on the CPU with `--threads` threads.
The tools alternate within a seed and data set.

The script expects the command `scvae` in the folder of the running Python interpreter; scvi-tools may be in another
environment (`--scvi-python`). Runs are written to the file `--results` (JSON, with a table as .md) as soon as they
finish. `--only scvae` repeats the runs of scvae and keeps the recorded runs of scVI. `--resume` runs only what is
missing in the file of results. Without `--only` and `--resume`, the file of results starts empty.
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
    """Run the requested steps, each in a separate process, and write the results after every run."""
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
    """Parse the command line; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, data=DEFAULT_DATA, results="heldout.json")
    parser.add_argument("--also-2x30nb", action="store_true", help="also run a larger scVI")
    parser.add_argument("--scvae", default=str(Path(sys.executable).with_name("scvae")), help="the scvae command")
    return parser.parse_args()


def measure(name: str, parts: Split, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one tool on one split; return one record of the results file."""
    work.mkdir()
    run = describe_run(name, LABELS[name], parts, args)
    run |= measure_scvae(parts, work, args) if name == "scvae" else measure_scvi(name, parts, work, args)
    return check_and_tell(run, parts)


def measure_scvae(parts: Split, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run `scvae train` and `scvae score`, as a user types them."""
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
    """Read the ELBO and the importance bound of each cell, which `scvae score` writes."""
    import h5py

    with h5py.File(scored) as file:
        return file["obs/scvae_elbo"][:], file["obs/scvae_iwae"][:]


if __name__ == "__main__":
    main()
