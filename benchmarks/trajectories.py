"""Do trajectories agree with simulated truth, known mixtures and known biology, and how fast are they computed?

    python benchmarks/trajectories.py --scvi-python SCVI_ENV/bin/python [--parts simulated,mixtures,...]

The parts of the benchmark are in separate files, whose docstrings say what is measured:

1. simulated (`trajectories_simulated.py`): decoded trajectories are compared with the true expression between the same
   states. The error is the mean distance, over 60 points of the true curve, to the nearest point of the trajectory, in
   log-normalized expression. There are two baselines: the straight line between the populations' centroids in PCA (50
   components of log-normalized counts), and the line between the populations' mean proportions. The line between mean
   proportions is harder to beat, because it accounts for the noise of the counts.
2. mixtures (`trajectories_mixtures.py`): mixtures of RNA that were left out of the training, compared with PCA and
   scVI.
3. paul15 (`trajectories_paul15.py`): known order of populations, and index-sorted proteins, compared with dpt.
4. axes, density, holes (`trajectories_latent.py`): canonical axes, calibration of the density, and regions without
   cells. The effect of `train --flat` is measured by `flatness.py`.
5. detours (`trajectories_detours.py`): whether trajectories lead through cells of a fate that is not their end, on
   simulated trees and in the data set paul15.
6. speed: time of the whole process `scvae interpolate` on 5,000 simulated cells × 2,000 genes, with 50 steps, for one
   trajectory and for 100 trajectories.

Results are written to results/trajectories.json, part by part, and results/trajectories.md is the table of the results.
Parts that are not requested keep the results of earlier runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import torch
import trajectories_detours
import trajectories_latent
import trajectories_mixtures
import trajectories_paul15
import trajectories_simulated
from timed import describe_machine, run_json

import scvae_cli as scvae
from scvae_cli.data.h5ad_create import create_h5ad
from scvae_cli.data.simulation import simulate
from scvae_cli.data.simulation_config import SimulationConfig

HERE = Path(__file__).parent
SHARED_DATA = HERE.parents[1] / "shared" / "data"
SHAPES, DEPTHS = (1, 2, 3, 5), (700.0, 1500.0, 5000.0)
# The seeds differ from the seeds with which the method was developed (0 and 1).
TREE_SEEDS = (10, 11)
SPEED_CELLS, BUNDLE = 5000, 100


def simulated(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all trees."""
    rows = []
    for branches in SHAPES:
        for depth in DEPTHS:
            for seed in TREE_SEEDS:
                rows += trajectories_simulated.measure(branches, seed, depth, arguments)
                print(f"  {rows[-1]['tree']}: geodesic {rows[-1]['geodesic']:.2f}", file=sys.stderr)
    return rows


def mixtures(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all seeds."""
    rows = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            data = SHARED_DATA / "rnamix_celseq2.h5ad"
            rows += trajectories_mixtures.measure(data, Path(folder), seed, arguments)
    return rows


def paul15(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all seeds."""
    data = SHARED_DATA / "paul15_3004.h5ad"
    return [trajectories_paul15.measure(data, seed, arguments) for seed in arguments.seeds]


def detours(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all trees, and all seeds of paul15."""
    rows = trajectories_detours.of_trees(arguments)
    for seed in arguments.seeds:
        rows += trajectories_detours.of_paul15(SHARED_DATA / "paul15_3004.h5ad", seed, arguments)
    return rows


def axes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all data sets."""
    return [trajectories_latent.axes_row(name, adata, arguments) for name, adata in data_sets().items()]


def density(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all data sets and seeds."""
    sets = data_sets()
    return [
        trajectories_latent.density_row(name, adata, seed, arguments)
        for name, adata in sets.items()
        for seed in arguments.seeds
    ]


def holes(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Test positions between five cell lines. Doublets are left out, because they do lie between two cell lines."""
    adata = anndata.read_h5ad(SHARED_DATA / "mixology_sc.h5ad")
    singlets = (adata.obs["demuxlet_class"] == "SNG").to_numpy()
    lines = adata[singlets, ~adata.var["is_ercc"].astype(bool)].copy()
    return [
        trajectories_latent.hole_row("mixology_sc, singlets", lines, "cell_line", seed, arguments)
        for seed in arguments.seeds
    ]


def speed(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure wall times, each as the median of three: of the trajectory alone, and of the whole command."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "cells.h5ad"
        simulation = simulate(SimulationConfig(n_cells=SPEED_CELLS, seed=10))
        create_h5ad(data, obs=simulation.obs, var=simulation.var, blocks=simulation.blocks())
        scvae.train(data, seed=0, genes="all", threads=arguments.threads, device="cpu").save(data.with_suffix(".scvae"))
        cells = anndata.read_h5ad(data)
        model = scvae.load(data.with_suffix(".scvae"))
        inside = []
        for _ in range(3):
            started = time.perf_counter()
            scvae.interpolate(cells, model, groupby="cell_type", groups=["stem", "mature_1"], inplace=False)
            inside.append(time.perf_counter() - started)
        rows.append(timed_row("one trajectory, 50 steps, in Python without the imports", inside, None))
        walk = [
            "-m",
            "scvae_cli",
            "interpolate",
            str(data),
            "--groupby",
            "cell_type",
            "--from",
            "stem",
            "--to",
            "mature_1",
        ]
        for name, more in (
            ("one trajectory, 50 steps", []),
            (f"{BUNDLE} trajectories, 50 steps", ["--couple", "ot", "--paths", str(BUNDLE), "--name", "bundle"]),
        ):
            runs = [run_json([sys.executable, *walk, *more, "--json"], arguments.threads) for _ in range(3)]
            others = max(run.other_cores or 0.0 for run in runs)
            rows.append(timed_row(f"`scvae interpolate`: {name}", [run.seconds for run in runs], others))
    return rows


def timed_row(what: str, seconds: list[float], others: float | None) -> dict[str, Any]:
    """Return the median and the range of three times."""
    least, median, most = sorted(seconds)
    return {"what": what, "seconds": median, "least": least, "most": most, "others": others}


def data_sets() -> dict[str, anndata.AnnData]:
    """Return real and simulated cells for questions that need no truth."""
    sets = {"simulated, 2 branches": trajectories_simulated.tree(2, TREE_SEEDS[0], 1500.0)}
    for name in ("paul15_3004", "pbmc4k_top2000", "kang_muscat_2donors"):
        sets[name] = anndata.read_h5ad(SHARED_DATA / f"{name}.h5ad")
    return sets


def speed_table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown."""
    lines = [
        "| computation | median of three times | shortest | longest | cores used by others |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        others = "" if r["others"] is None else f"{r['others']:.1f}"
        lines.append(f"| {r['what']} | {r['seconds']:.1f} s | {r['least']:.1f} s | {r['most']:.1f} s | {others} |")
    return lines


PARTS: dict[str, tuple[Callable[..., list[dict[str, Any]]], str, Callable[..., list[str]]]] = {
    "simulated": (simulated, "1. Simulated trees", trajectories_simulated.table),
    "mixtures": (mixtures, "2. Mixtures of RNA", trajectories_mixtures.table),
    "paul15": (paul15, "3. Myeloid progenitors (Paul et al. 2015)", trajectories_paul15.table),
    "axes": (axes, "4. Canonical axes of two seeds", trajectories_latent.axes_table),
    "density": (density, "5. Calibration of the density", trajectories_latent.density_table),
    "holes": (holes, "Regions without cells", trajectories_latent.hole_table),
    "detours": (detours, "6. Detours through other fates", trajectories_detours.table),
    "speed": (speed, f"7. Speed, {SPEED_CELLS:,} cells × 2,000 genes", speed_table),
}


def main() -> None:
    """Measure the requested parts and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="parts, separated by commas; all by default")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scvi-python", type=Path, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "trajectories.json")
    arguments = parser.parse_args()
    known = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for name in arguments.parts.split(","):
        print(name, file=sys.stderr)
        known[name] = {
            "rows": PARTS[name][0](arguments),
            "machine": describe_machine(arguments.threads),
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        }
        arguments.results.parent.mkdir(exist_ok=True)
        arguments.results.write_text(json.dumps(known, indent=1) + "\n")
        arguments.results.with_suffix(".md").write_text(text(known))
    print(text(known))


def text(known: dict[str, Any]) -> str:
    """Format the results as markdown."""
    lines = ["# Trajectories", "", "Written by `benchmarks/trajectories.py`; its docstring says what is measured.", ""]
    for name, (_, title, table) in PARTS.items():
        if name in known:
            part = known[name]
            lines += [f"## {title}", "", *table(part["rows"]), ""]
            lines += [f"({part['machine']}; torch {part['torch']}; {part['date']})", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
