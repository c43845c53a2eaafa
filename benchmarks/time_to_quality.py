"""Seconds until scvae reaches the held-out likelihood of scvi-tools, and scvae's final held-out likelihood.

    python benchmarks/time_to_quality.py --scvi-python SCVI_ENV/bin/python --seeds 0,1,2

Data, split, test cells, genes and bounds are those of `heldout.py`: 10% test cells on which no tool is trained, one
file for training, and nats per test cell (importance bound, IWAE, with `--samples` posterior samples). In files with
more than 4,000 genes, the 2,000 genes that are most variable in the training cells are modeled.

scVI with early stopping and the larger scVI (2 layers, 30 latent dimensions, nb, early stopping) are trained first. For
each data set and seed, the scVI model with the higher mean bound on the test cells sets the target for scvae. The
target consists of this bound and of the wall time of the whole training process of scVI (start of Python, imports,
reading, training, saving).

scvae is trained with its defaults (`--genes all`), and the time of every epoch is measured from the start of the
process. The benchmark reports the first epoch whose averaged weights reach the bound of the target on the test cells
(`quality_scvae.py` describes how this epoch is found). The benchmark also reports the bound and the time of the
finished model. Both tools run on the CPU with `--threads` threads, or with `--gpu` on the GPU that torch finds, one
process at a time.

For data with labels in obs (cell_type, cell_line or bulk_labels), the mean latent positions of all training and test
cells are compared with the labels (`embedding_quality.py`). `--no-embedding` omits the comparison with labels, whose
time grows with the square of the number of cells.

scvi-tools may be in another environment (`--scvi-python`), and so may scvae (`--scvae-python`). Runs are written to the
file `--results` (JSON, one run per line, with a table as .md) as soon as they finish. `--only scvae` repeats the runs
of scvae and keeps the recorded runs of scVI. `--resume` runs only what is missing in the file of results, and repeats a
run of scvae if the target has changed. Without `--only` and `--resume`, the file of results starts empty.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import time_to_quality_table
from embedding_quality import embedding_quality, labels_of
from heldout_runs import (
    HERE,
    SHARED_DATA,
    Records,
    add_options,
    check_and_tell,
    describe_run,
    measure_scvi,
    per_cell,
    run_scvi,
)
from heldout_scvi import CONTENDERS as SCVI_CONTENDERS
from heldout_split import Split, split
from heldout_table import Run
from time_to_quality_table import SCVI, better_scvi, same_target
from timed import run_json

SETS = ("citeseq_eccite_500", "kang_muscat_2donors", "mixology_sc", "paul15_3004", "pbmc4k_top2000", "rnamix_celseq2")
DEFAULT_DATA = [
    *(SHARED_DATA / f"{name}.h5ad" for name in SETS),
    HERE.parent / "data_samples" / "pbmc68k_700.h5ad",
]
LABELS = {name: SCVI_CONTENDERS[name].label for name in SCVI} | {"scvae": "scvae, defaults"}


def main() -> None:
    """Run the requested steps, each in a separate process, and write the results after every run."""
    args = parse_arguments()
    chosen = [name for name in LABELS if args.only is None or name.startswith(args.only)]
    records = Records(args, chosen, LABELS, time_to_quality_table.render)

    with tempfile.TemporaryDirectory(prefix="time-to-quality-") as folder:
        for seed in args.seeds:
            for data in args.data:
                parts = split(
                    data,
                    Path(folder) / f"{data.stem}-{seed}",
                    seed=seed,
                    test_share=args.test_share,
                    samples=args.samples,
                )
                print(f"{data.stem}, seed {seed}: {parts.describe()}", file=sys.stderr)
                run_all(chosen, data, parts, records, args)
    records.save()
    print(args.results.with_suffix(".md").read_text())


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, data=DEFAULT_DATA, results="time_to_quality.json")
    parser.add_argument("--scvae-python", default=sys.executable, help="interpreter of an environment with scvae-cli")
    parser.add_argument("--no-embedding", action="store_true", help="do not compare embeddings with the known labels")
    return parser.parse_args()


def run_all(chosen: list[str], data: Path, parts: Split, records: Records, args: argparse.Namespace) -> None:
    """Measure what is missing on one split. The runs of scVI come first, because they set the target of scvae."""
    for name in SCVI:
        if name in chosen and name not in records.made_on(parts):
            records.add(measure(name, data, parts, None, args))
    found = records.made_on(parts)
    target = better_scvi(found)
    if "scvae" in chosen and not ("scvae" in found and same_target(found["scvae"], target)):
        if target is None:
            print("  no runs of scVI: scvae trains without a target", file=sys.stderr)
        records.add(measure("scvae", data, parts, target, args))


def measure(name: str, data: Path, parts: Split, target: Run | None, args: argparse.Namespace) -> Run:
    """Train, score and embed one tool on one split; return one record of the results file."""
    work = parts.trainer_file.parent / name
    work.mkdir()
    run = describe_run(name, LABELS[name], parts, args)
    if name == "scvae":
        run |= measure_scvae(parts, target, work, args)
    else:
        run |= measure_scvi(name, parts, work, args)
    run = check_and_tell(run, parts)
    if name == "scvae" and target is not None:
        reached = "not reached" if run["reached"] is None else f"reached after {run['reached']['seconds']:.1f} s"
        print(f"    target {run['target']:.2f} {reached}; scVI's took {target['process_s']:.0f} s", file=sys.stderr)
    labels = None if args.no_embedding else labels_of(data, cells_of(parts))
    if labels is not None:
        latent = work / "latent.npy"
        if name != "scvae":
            run_scvi(["embed", str(parts.trainer_file), str(parts.test_file), "-o", str(latent)], work, args)
        run["embedding"] = embedding_quality(np.load(latent), labels)
        print(f"    embedding: {run['embedding']}", file=sys.stderr)
    return run


def measure_scvae(parts: Split, target: Run | None, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run `quality_scvae.py`, timed from the moment at which it is started."""
    scores = work / "scores.npz"
    files = [str(parts.trainer_file), str(parts.test_file)]
    outputs = ["-m", str(work / "model.scvae"), "-o", str(scores)]
    outputs += [] if args.no_embedding else ["--latent", str(work / "latent.npy")]
    # The option is joined to its value by "=", because argparse would take a negative number for an option.
    options = [] if target is None else [f"--target={target['mean_iwae']!r}"]
    settings = ["--seed", str(parts.seed), "--samples", str(args.samples), *options]
    command = [args.scvae_python, str(HERE / "quality_scvae.py"), *files, *outputs, *settings]
    timed = run_json([*command, "--started", repr(time.time())], args.threads, gpu=args.gpu)
    measured = timed.result
    cells = np.load(scores)
    kept = ("process_s", "epochs", "best_epoch", "active_units", "target", "reached", "scored_epochs", "epoch_seconds")
    return {
        **{name: measured[name] for name in (*kept, "mean_iwae_density")},
        "training_s": measured["seconds"],
        "other_cores": timed.other_cores,
        "seen_genes": measured["n_genes"],
        "seen_cells": measured["n_cells"],
        "versions": measured["versions"],
        **per_cell(cells["elbo"], cells["iwae"], measured),
    }


def cells_of(parts: Split) -> list[str]:
    """Return the names of all cells, the training cells first."""
    import anndata

    files = (parts.trainer_file, parts.test_file)
    return [str(name) for file in files for name in anndata.read_h5ad(file, backed="r").obs_names]


if __name__ == "__main__":
    main()
