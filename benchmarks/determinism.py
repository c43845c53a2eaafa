"""Do two trainings with `--deterministic` give identical weights?

    python benchmarks/determinism.py [--device cuda] [--cells 20000] [--genes 2000] [--max-epochs 5] [--results FILE.md]

The benchmark simulates cells, trains on them twice with the same seed, each time in a separate process, and compares
the SHA-256 of the two weight files. On a GPU with Triton, two further trainings with `--compile` are compared. The file
`--results` is written after every pair of trainings. The exit code is 1 if the weights of a pair differ.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import tempfile
from pathlib import Path

import torch
from timed import describe_machine, run_json

HERE = Path(__file__).parent
SCVAE = [sys.executable, "-m", "scvae_cli"]


def main() -> None:
    """Simulate, train in pairs, compare the weights and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--max-epochs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (2)")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "determinism.md")
    args = parser.parse_args()
    gpu = args.device.startswith("cuda")
    ways = {"--no-compile": "recorded on a GPU, one by one on a CPU"}
    if gpu and importlib.util.find_spec("triton") is not None:
        ways["--compile"] = "compiled"
    lines = [
        f"Written by `benchmarks/determinism.py`: pairs of trainings with `--deterministic`, {args.cells:,} simulated "
        f"cells × {args.genes:,} genes, at most {args.max_epochs} epochs. The weights are compared by their SHA-256.",
        "",
        f"Machine: {describe_machine(args.threads, gpu=gpu)}; torch {torch.__version__}.",
        "",
        "| steps of the training | SHA-256, first training | second training | identical |",
        "|---|---|---|---|",
    ]
    args.results.parent.mkdir(parents=True, exist_ok=True)
    all_same = True
    with tempfile.TemporaryDirectory(prefix="determinism-") as folder:
        data = Path(folder) / "simulated.h5ad"
        shape = ["--cells", str(args.cells), "--genes", str(args.genes)]
        run_json([*SCVAE, "simulate", str(data), *shape, "--json", "--quiet"], args.threads)
        for way, kind in ways.items():
            first, second = (trained(data, Path(folder) / f"{n}{way}.scvae", way, args) for n in (1, 2))
            all_same &= first == second
            lines.append(f"| {kind} | `{first[:16]}` | `{second[:16]}` | {'yes' if first == second else '**no**'} |")
            args.results.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sys.exit(0 if all_same else 1)


def trained(data: Path, model: Path, way: str, args: argparse.Namespace) -> str:
    """Compute the SHA-256 of the weights of one training."""
    options = ["--deterministic", "--device", args.device, "--max-epochs", str(args.max_epochs), way]
    options += ["--threads", str(args.threads), "--seed", "0", "--json", "--quiet"]
    run_json([*SCVAE, "train", str(data), "-m", str(model), *options], args.threads, gpu=args.device.startswith("cuda"))
    return hashlib.sha256((model / "weights.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
