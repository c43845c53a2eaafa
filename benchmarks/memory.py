"""How much memory does a training need in addition to the counts? The limit is 1 GiB, including all libraries.

The benchmark simulates cells and trains on the simulated cells for one epoch in a separate process. The largest
resident memory of the training process is compared with the size of the same counts as CSR in memory (float32 values,
int32 columns, row pointers).

    python benchmarks/memory.py [--cells 200000] [--genes 2000] [--json]
    python benchmarks/memory.py --data FILE.h5ad

The benchmark writes results/memory.md, and the exit code is 1 if the memory exceeds the limit. The benchmark needs
Linux or macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
from timed import describe_machine

HERE = Path(__file__).parent
SCVAE = [sys.executable, "-m", "scvae_cli"]
BOUND = 1 << 30
MIB = 1 << 20


def main() -> None:
    """Simulate, train, measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--data", type=Path, help=".h5ad with raw counts as CSR in X, used instead of simulated ones")
    parser.add_argument("--max-epochs", type=int, default=1)
    parser.add_argument(
        "--choose-genes", action="store_true", help="let scvae choose the genes, instead of modeling all"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = arguments.data or simulated(Path(folder), arguments.cells, arguments.genes)
        options = ["--max-epochs", str(arguments.max_epochs), "--threads", str(arguments.threads), "--device", "cpu"]
        options += [] if arguments.choose_genes else ["--genes", "all"]
        peak = peak_bytes([*SCVAE, "train", str(data), "-m", f"{folder}/model.scvae", "--quiet", *options])
        measured = csr_of(data)
    excess = peak - measured["csr_bytes"]
    measured |= {
        "genes_modelled": "chosen by scvae" if arguments.choose_genes else "all",
        "epochs": arguments.max_epochs,
        "peak_rss_bytes": peak,
        "excess_mib": round(excess / MIB, 1),
        "within_1_gib": excess <= BOUND,
        "machine": describe_machine(arguments.threads),
    }
    text = as_text(measured)
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "memory.md").write_text(text)
    print(json.dumps(measured) if arguments.json else text)
    sys.exit(0 if measured["within_1_gib"] else 1)


def simulated(folder: Path, cells: int, genes: int) -> Path:
    """Simulate counts of a branching differentiation."""
    path = folder / "simulated.h5ad"
    command = [*SCVAE, "simulate", str(path), "--cells", str(cells), "--genes", str(genes), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def peak_bytes(command: list[str]) -> int:
    """Run a command, and return the largest resident memory of its process, in bytes."""
    # On Linux, a child process inherits the peak memory of its parent process, so the parent process must be small.
    to_null = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=to_null)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}\nended with {os.waitstatus_to_exitcode(status)}")
    # Linux reports the peak memory in KiB, macOS in bytes.
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024


def csr_of(data: Path) -> dict[str, int]:
    """Return the numbers of cells, genes and nonzero counts of a file, and their size as CSR in memory."""
    with h5py.File(data) as file:
        n_cells, n_genes = (int(n) for n in file["X"].attrs["shape"])
        stored = len(file["X/data"])
    csr = 8 * stored + 4 * (n_cells + 1)
    return {"n_cells": n_cells, "n_genes": n_genes, "nonzeros": stored, "csr_bytes": csr}


def as_text(measured: dict[str, int | float | str | bool]) -> str:
    """Format the result as text."""
    verdict = "within" if measured["within_1_gib"] else "**not** within"
    lines = [
        f"Written by `benchmarks/memory.py`: `scvae train` on {measured['n_cells']:,} cells × {measured['n_genes']:,} "
        f"genes ({measured['nonzeros']:,} counts above 0). Epochs: {measured['epochs']}; modeled genes: "
        f"{measured['genes_modelled']}.",
        "",
        f"Machine: {measured['machine']}.",
        "",
        "| size of the counts (CSR) | largest memory of the process | in addition to the counts |",
        "|---|---|---|",
        f"| {measured['csr_bytes'] / MIB:,.1f} MiB | {measured['peak_rss_bytes'] / MIB:,.1f} MiB "
        f"| {measured['excess_mib']:,.1f} MiB |",
        "",
        f"The additional memory, which includes Python and all libraries, is {verdict} the limit of 1 GiB.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
