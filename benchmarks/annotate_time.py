"""How long does `annotate` take for 100,000 cells, and are the probabilities and prediction sets of the cells correct?

    python benchmarks/annotate_time.py [--cells 100000] [--genes 2000] [--labeled 6000] [--threads 2]

The benchmark simulates cells along a tree and trains a model for one epoch. `annotate` then gets the labels of some
random cells and predicts the labels of all cells. The measured time is that of the whole command, with start-up,
reading and writing. The wall time and the processor time are reported, because the wall time is not reliable on a
machine with other work. A second run under Python's profiler divides the processor time among the parts of the command.
The part "imports" overlaps with the other parts, which import libraries when they need them.

The labeled cells are a random sample, so the cells without a label have the same distribution. There are so many cells
without a label that the calibration error by chance is almost 0. The result is written to results/annotate_time.json.

With `--data FILE --model FOLDER`, the benchmark uses existing cells, which need labels in obs["cell_type"], and an
existing model.
"""

from __future__ import annotations

import argparse
import json
import pstats
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata
import numpy as np
from timed import describe_machine, run_json

from scvae_cli.tools.annotate.quality import reliability

RESULTS = Path(__file__).parent / "results" / "annotate_time.json"
_DRAWS = 50
# File and function of each part of the command, from which its processor time is read.
PARTS = {
    "imports": ("<frozen importlib._bootstrap>", "_find_and_load"),
    "reading": ("scvae_cli/session.py", "open"),
    "encoding": ("scvae_cli/latent/posteriors.py", "posteriors"),
    "embedding": ("scvae_cli/latent/expression.py", "positions_and_states"),
    "log-normalization": ("scvae_cli/evaluation/log_pca.py", "log_normalized"),
    "training of the classifiers": ("scvae_cli/tools/annotate/learning.py", "learn"),
    "prediction": ("scvae_cli/tools/annotate/annotation.py", "_predict"),
    "comparison with labeled cells": ("scvae_cli/tools/annotate/annotation.py", "_difference"),
    "writing": ("scvae_cli/session.py", "write"),
}
# Program that runs the command under the profiler; its first argument is the file for the profile.
_PROFILED = """
import cProfile, sys, time
place = sys.argv.pop(1)
profile = cProfile.Profile(time.process_time)
profile.enable()
from scvae_cli.cli.start import main
try:
    main()
finally:
    profile.dump_stats(place)
"""


def seconds_by_part(command: list[str], threads: int, place: Path) -> dict[str, float]:
    """Run a command of scvae under the profiler, and return the processor seconds of its parts and of the whole."""
    run_json([sys.executable, "-c", _PROFILED, str(place), *command], threads)
    stats = pstats.Stats(str(place))
    found = {"whole, with the profiler": stats.total_tt}  # type: ignore[attr-defined]  # not declared
    for part, (file, function) in PARTS.items():
        found[part] = sum(
            values[3]
            for (where, _, name), values in stats.stats.items()  # type: ignore[attr-defined]  # not declared
            if name == function and where.replace("\\", "/").endswith(file)
        )
    return {part: round(seconds, 1) for part, seconds in found.items()}


def main() -> None:
    """Measure the time of the command, and compare predicted labels with the true labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--labeled", type=int, default=6000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    scvae = [sys.executable, "-m", "scvae_cli"]
    with tempfile.TemporaryDirectory() as folder:
        cells = arguments.data or str(Path(folder) / "cells.h5ad")
        model = arguments.model or str(Path(folder) / "model.scvae")
        if not arguments.data:
            size = ["--cells", str(arguments.cells), "--genes", str(arguments.genes), "--branches", "3"]
            subprocess.run([*scvae, "simulate", cells, *size, "--quiet"], check=True, capture_output=True)
        if not arguments.model:
            train = [*scvae, "train", cells, "-m", model, "--max-epochs", "1", "--quiet"]
            subprocess.run(train, check=True, capture_output=True)
        adata = anndata.read_h5ad(cells)
        label_n = adata.obs["cell_type"].astype(str).to_numpy()
        given_n = np.zeros(adata.n_obs, dtype=bool)
        given_n[np.random.default_rng(0).choice(adata.n_obs, arguments.labeled, replace=False)] = True
        adata.obs["known"] = adata.obs["cell_type"].astype(str).where(given_n)
        some = Path(folder) / "some.h5ad"
        anndata.AnnData(adata.X, obs=adata.obs[["known"]], var=adata.var[[]]).write_h5ad(some)
        del adata
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = ["annotate", str(some), "-m", model, "--labels-key", "known", "--device", "cpu", "--json"]
        timed = run_json([*scvae, *command], arguments.threads)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = anndata.read_h5ad(some, backed="r")
        names = np.asarray(found.uns["scvae"]["label_names"], dtype=object)
        p_nc = np.asarray(found.obsm["scvae_label_probabilities"], dtype=float)[~given_n]
        sets = found.obs["scvae_label_set"].astype(str).to_numpy()[~given_n]
        unknown_n = (found.obs["scvae_label"] == "unknown").to_numpy()[~given_n]
        found.file.close()
        parts = seconds_by_part(command, arguments.threads, Path(folder) / "profile")
    true_n, top_n, one_n = label_n[~given_n], p_nc.max(1), np.ones(len(p_nc))
    right_n, random = names[p_nc.argmax(1)] == true_n, np.random.default_rng(0)
    chance = [reliability(top_n, random.random(len(top_n)) < top_n, one_n).error for _ in range(_DRAWS)]
    inside = [true in text.split(" | ") for true, text in zip(true_n, sets, strict=True)]
    result = {
        "cells": len(label_n),
        "labeled": arguments.labeled,
        "seconds": round(timed.seconds, 1),
        "processor_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "processor_seconds_by_part": parts,
        "other_cores_busy": timed.other_cores,
        "accuracy": round(float(right_n.mean()), 4),
        "calibration_error": round(reliability(top_n, right_n, one_n).error, 4),
        "calibration_error_by_chance": round(float(np.mean(chance)), 4),
        "coverage_of_sets_at_90%": round(float(np.mean(inside)), 4),
        "unknown_at_1%": round(float(unknown_n.mean()), 4),
        "hardware": describe_machine(arguments.threads),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
