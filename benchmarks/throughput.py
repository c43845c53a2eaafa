"""Training speed in cells per second: scvae and scvi-tools with the same network on the same counts.

    python benchmarks/throughput.py --scvi-python SCVI_ENV/bin/python [--gpu --genes 2000 --cells 1000000 --epochs 3]

`scvae simulate` writes one file for each number of genes (6,000 cells up to 4,000 genes, 3,000 cells above), at a depth
of 0.18 counts per gene. About 11% of the simulated counts are not zero, about as many as in public 10x data (PBMC 4k:
10%). Both tools train the same network (1 hidden layer of 128 units, 10 latent dimensions, ZINB: the defaults of
scvi-tools) with the same batch size. Both tools train on 90% of the cells for `--epochs` epochs, on the CPU with
`--threads` threads, or (`--gpu`) on the GPU that torch finds. Every training is a separate process, and the tools
alternate, `--rounds` times.

The speed of a training is the median of the speeds of all epochs except the first epoch. The speed of an epoch is the
number of cells between the end of the first step and the end of the last step, divided by the seconds in between. The
speed of an epoch includes the time for loading minibatches, but not validation and other work between epochs. scvae
gathers the cells of many minibatches at once, mostly before the first step. Therefore, the speed from the start of each
epoch ("whole epoch") is given, too. On a GPU, the times of scvae's steps are known only for some dozens of steps at a
time, so the speed of whole epochs is the relevant speed.

The ratio of speeds is the median over the rounds of the speed of scvae divided by that of scvi-tools. Results are
written to the file `--results` (JSON, with a table as .md) after every process. The table is printed too, or with
`--json` the JSON object.

scvi-tools may be in another environment (`--scvi-python`). Without scvi-tools, `--only scvae` measures scvae alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from heldout_table import OTHERS, table
from timed import describe_machine, run_json

HERE = Path(__file__).resolve().parent
COUNTS_PER_GENE = 0.18
MANY_GENES = 4000
# Number of simulated cells for up to MANY_GENES genes, and for more genes.
FEW_GENES_CELLS, MANY_GENES_CELLS = 6000, 3000
BATCH_SIZE = 128
TOOLS = ("scvae", "scvi")

INTRODUCTION = """\
# Training speed: scvae and scvi-tools

Written by `benchmarks/throughput.py`; its docstring says what is measured. The speeds are training cells per second;
higher is better. Both tools train the same network (1 hidden layer of 128 units, 10 latent dimensions, ZINB) on the
same simulated counts, in minibatches of {batch_size}. The ratio is the speed of scvae divided by that of scvi-tools.
"Whole epochs" include the time before the first step of each epoch. Medians over {rounds} rounds; the single rounds are
listed below.
"""


def main() -> None:
    """Simulate, run the tools alternately, write the results after every process, and print them."""
    args = parse_arguments()
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        for n_genes in args.genes:
            case: dict[str, Any] = {}
            for case in measured_case(n_genes, Path(folder) / f"{n_genes}.h5ad", args):
                result = save([*cases, case], args)
            cases.append(case)
    print(json.dumps(result) if args.json else render(result))


def save(cases: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """Write the measurements made so far, and return them."""
    flat = {f"{key}_{case['n_genes']}": case[key] for case in cases for key in ("ratio", "density", "cells_per_s")}
    result = flat | {
        "cases": cases,
        "batch_size": BATCH_SIZE,
        "epochs": args.epochs,
        "rounds": args.rounds,
        "threads": args.threads,
        "machine": describe_machine(args.threads, gpu=args.gpu),
        "versions": {run["tool"]: run["versions"] for run in cases[0]["runs"]},
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    args.results.parent.mkdir(parents=True, exist_ok=True)
    args.results.write_text(json.dumps(result, indent=1) + "\n")
    args.results.with_suffix(".md").write_text(render(result))
    return result


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; see the docstring of the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--scvi-python", default=sys.executable, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--scvae-python", default=sys.executable, help="interpreter of an environment with scvae-cli")
    parser.add_argument("--genes", type=lambda text: [int(n) for n in text.split(",")], default=[2000, 10000])
    parser.add_argument(
        "--cells", type=int, help="number of cells of every file (6,000 up to 4,000 genes, 3,000 above)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of processes of each tool (3)")
    parser.add_argument(
        "--epochs", type=int, default=8, help="number of epochs of a process; the first is left out (8)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each tool (2)")
    parser.add_argument("--gpu", action="store_true", help="let both tools use the GPU")
    parser.add_argument("--only", choices=TOOLS, help="measure one tool only; no ratio is computed")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "throughput.json")
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("--epochs: the first is left out, so 2 or more are needed")
    return args


def measured_case(n_genes: int, file: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run all rounds on one file; yield the results so far after every process."""
    n_cells = args.cells or (FEW_GENES_CELLS if n_genes <= MANY_GENES else MANY_GENES_CELLS)
    depth = COUNTS_PER_GENE * n_genes
    shape = ["--cells", str(n_cells), "--genes", str(n_genes), "--depth", str(depth)]
    simulate = [args.scvae_python, "-m", "scvae_cli", "simulate", str(file), *shape, "--seed", "0", "--json", "--quiet"]
    run_json(simulate, args.threads)
    density = density_of(file)
    print(f"{n_cells} cells x {n_genes} genes, {density:.1%} of the counts are not zero", file=sys.stderr)

    runs: list[dict[str, Any]] = []
    for round_ in range(args.rounds):
        for tool in [args.only] if args.only else TOOLS:
            run = measure(tool, file, args)
            if run["n_genes"] != n_genes:
                raise SystemExit(f"{tool} did not model the {n_genes} genes it was given")
            runs.append({"tool": tool, "round": round_ + 1, **run})
            print(f"  {tool}, round {round_ + 1}: {run['cells_per_s']:.0f} cells/s", file=sys.stderr)
            yield {
                "n_genes": n_genes,
                "n_cells": n_cells,
                "depth": depth,
                "density": round(density, 4),
                "cells_per_s": _speeds(runs, "cells_per_s"),
                "ratio": _ratio(runs, "cells_per_s"),
                "ratio_with_first_step": _ratio(runs, "with_first_step"),
                "runs": runs,
            }


def measure(tool: str, file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run one training in a separate process."""
    python = args.scvae_python if tool == "scvae" else args.scvi_python
    settings = {"--epochs": args.epochs, "--batch-size": BATCH_SIZE, "--threads": args.threads}
    options = [str(word) for setting in settings.items() for word in setting]
    timed = run_json([python, str(HERE / f"throughput_{tool}.py"), str(file), *options], args.threads, gpu=args.gpu)
    return {**timed.result, "other_cores": timed.other_cores}


def density_of(file: Path) -> float:
    """Compute the share of the counts that are not zero."""
    import anndata

    counts = anndata.read_h5ad(file).X
    return float(counts.count_nonzero() / (counts.shape[0] * counts.shape[1]))


def render(result: dict[str, Any]) -> str:
    """Make the markdown page with all speeds."""
    head = ["data set", "counts above 0", "scvae", "scvi-tools", "ratio", "ratio, whole epochs"]
    rows, singles = [], []
    for case in result["cases"]:
        name = f"{case['n_cells']:,} cells × {case['n_genes']:,} genes"
        speed = [f"{case['cells_per_s'][tool]:,.0f}" if tool in case["cells_per_s"] else "" for tool in TOOLS]
        ratios = ["" if case[key] is None else f"{case[key]:.2f}" for key in ("ratio", "ratio_with_first_step")]
        rows.append([name, f"{case['density']:.1%}", *speed, *ratios])
        for run in case["runs"]:
            others = "?" if run["other_cores"] is None else f"{run['other_cores']:.1f} cores"
            speeds = [f"{run[key]:,.0f}" for key in ("cells_per_s", "with_first_step")]
            singles.append([name, run["tool"], str(run["round"]), *speeds, str(run["steps_per_epoch"]), others])
    versions = [", ".join(f"{name} {v}" for name, v in found.items()) for found in result["versions"].values()]
    single_head = ["data set", "model", "round", "cells/s", "cells/s, whole epochs", "steps per epoch", OTHERS]
    return "\n".join(
        [
            INTRODUCTION.format(batch_size=result["batch_size"], rounds=result["rounds"]),
            table(head, rows),
            f"## Single rounds\n\n{table(single_head, singles)}",
            "## Machine and versions\n",
            f"- machine: {result['machine']}",
            f"- date: {result['date']}",
            *(f"- {found}" for found in versions),
            f'- "{OTHERS}": number of cores that other programs used meanwhile; speeds are reliable if it is about 0',
            "",
        ]
    )


def _speeds(runs: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Compute the median speed of each tool over the rounds."""
    return {tool: median(of_tool) for tool in TOOLS if (of_tool := [run[key] for run in runs if run["tool"] == tool])}


def _ratio(runs: list[dict[str, Any]], key: str) -> float | None:
    """Compute the speed of scvae divided by the speed of scvi-tools; None if one of the speeds is missing."""
    speed = _speeds(runs, key)
    return round(speed["scvae"] / speed["scvi"], 3) if len(speed) == len(TOOLS) else None


if __name__ == "__main__":
    main()
