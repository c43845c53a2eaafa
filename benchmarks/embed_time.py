"""How much longer does the embedding in expression space take than the latent positions alone?

    python benchmarks/embed_time.py [--cells 100000] [--genes 2000] [--threads 2] [--rounds 3]

The benchmark simulates cells, trains a model for two epochs on some of the cells, and then runs `scvae embed --space
latent` and `scvae embed --space expression` alternately, each in a separate process. The times are those of whole
commands, including start-up, reading and writing. The result is written to results/embed_time.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from timed import describe_machine, run_json

RESULTS = Path(__file__).parent / "results" / "embed_time.json"


def main() -> None:
    """Time both spaces alternately, and print the ratio of their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    scvae = [sys.executable, "-m", "scvae_cli"]
    seconds: dict[str, list[float]] = {"latent": [], "expression": []}
    busy = []
    with tempfile.TemporaryDirectory() as folder:
        many, few, model = (str(Path(folder) / name) for name in ("many.h5ad", "few.h5ad", "model.scvae"))
        for path, cells in ((many, arguments.cells), (few, 3000)):
            size = ["--cells", str(cells), "--genes", str(arguments.genes)]
            subprocess.run([*scvae, "simulate", path, *size, "--quiet"], check=True, capture_output=True)
        train = [*scvae, "train", few, "-m", model, "--genes", "all", "--max-epochs", "2", "--quiet"]
        subprocess.run(train, check=True, capture_output=True)
        for round_ in range(arguments.rounds):
            for space, found in seconds.items():
                output = str(Path(folder) / f"{space}_{round_}.h5ad")
                options = ["embed", many, "-m", model, "-o", output, "--space", space, "--device", "cpu", "--json"]
                timed = run_json([*scvae, *options], arguments.threads)
                found.append(round(timed.seconds, 2))
                busy.append(timed.other_cores)
                Path(output).unlink()
    ratio = statistics.median(seconds["expression"]) / statistics.median(seconds["latent"])
    result = {
        "cells": arguments.cells,
        "genes": arguments.genes,
        "seconds": seconds,
        "ratio": round(ratio, 2),
        "other_cores_busy": busy,
        "hardware": describe_machine(arguments.threads),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
