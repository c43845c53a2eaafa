"""Can sampled cells be distinguished from real cells? Cells decoded by scvi-tools are evaluated too.

    python benchmarks/generation.py --scvi-python SCVI_ENV/bin/python [DATA.h5ad ...]

Half of the cells are used to train the models and to compute the principal components. A quarter of the cells serves as
the real cells. The real cells are compared with equally many cells of four kinds:

- the last quarter of the cells (the baseline: real cells against real cells),
- cells that scvae samples from the density of the cells,
- cells that scvae samples from the prior,
- cells that scVI decodes from the prior, with zero inflation and library sizes of training cells.

No compared cell was used to train a model or to compute the components. `generation_scores.py` describes the scores.
The numbers are means over seeds, which also choose the cells.

There are two simulated data sets. The cells of a simulated tree (`scvae simulate`) have ZINB counts, but no model of
scvae can represent the states of the tree exactly. The other simulated data set is sampled from a model that was
trained on the tree; the sampled cells then serve as the real cells.

Results are written to results/generation.json and .md; results of data sets that are not requested are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import scipy.sparse as sp
import torch
import trajectories_simulated
from generation_scores import Judge
from timed import describe_machine, run_json

import scvae_cli as scvae

HERE = Path(__file__).parent
SHARED_DATA = HERE.parents[1] / "shared" / "data"
REAL = ("paul15_3004", "pbmc4k_top2000", "kang_muscat_2donors")
TREE, CLASS = "simulated tree", "simulated, of the model class"
FLOOR = "real cells (floor)"
DATA_NAMES = {CLASS: "simulated by a model of scvae"}
CELL_NAMES = {
    FLOOR: "other real cells",
    "scvae, density": "scvae, density of the cells",
    "scvae, prior": "scvae, prior",
    "scVI, prior": "scVI, prior",
}
FIGURES = {"boosting": "AUC, boosting", "logistic": "AUC, logistic", "energy": "energy distance"}


def data_sets(asked: list[str]) -> dict[str, anndata.AnnData]:
    """Return the requested data sets: paths, or the names of simulated ones."""
    sets = {}
    for name in asked or [TREE, CLASS, *(str(SHARED_DATA / f"{name}.h5ad") for name in REAL)]:
        if name in (TREE, CLASS):
            sets[name] = trajectories_simulated.tree(2, 10, 1500.0)
        else:
            sets[Path(name).stem] = anndata.read_h5ad(name)
    if CLASS in sets:
        model = scvae.train(sets[CLASS], threads=1, device="cpu", seed=100)
        made = scvae.sample(sets[CLASS], model, 2 * sets[CLASS].n_obs, source="density", seed=100, device="cpu")
        made.obs_names = [f"cell_{i}" for i in range(made.n_obs)]
        sets[CLASS] = anndata.AnnData(made.X, obs=made.obs[[]], var=made.var)
    return sets


def measure(name: str, adata: anndata.AnnData, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every source of cells."""
    adata = adata[:, np.asarray((adata.X > 0).sum(0)).ravel() >= 3].copy()
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    training, test_a, test_b = np.split(order, [adata.n_obs // 2, adata.n_obs // 2 + adata.n_obs // 4])
    n = len(test_a)
    known = adata[np.sort(training)].copy()
    model = scvae.train(known, seed=seed, threads=arguments.threads, device="cpu", genes="all", drop_empty=True)
    judge = Judge(counts(known), counts(adata[test_b[:n]]), seed)
    cells = {FLOOR: counts(adata[test_a])}
    for source in ("density", "prior"):
        made = scvae.sample(known, model, n, source=source, seed=seed, device="cpu", drop_empty=True)
        cells[f"scvae, {source}"] = counts(made[:, adata.var_names])
    if arguments.scvi_python is not None:
        cells["scVI, prior"] = from_scvi(known, n, seed, arguments)
    return [{"data": name, "seed": seed, "n": n, "cells": of} | judge.scores(x) for of, x in cells.items()]


def counts(adata: anndata.AnnData) -> sp.csr_matrix:
    return sp.csr_matrix(adata.X, dtype=np.float32)


def from_scvi(known: anndata.AnnData, n: int, seed: int, arguments: argparse.Namespace) -> sp.csr_matrix:
    """Draw cells from the prior with an scVI that was trained with early stopping."""
    with tempfile.TemporaryDirectory() as folder:
        cells, out = Path(folder) / "cells.h5ad", Path(folder) / "made.npz"
        anndata.AnnData(counts(known), obs=known.obs[[]], var=known.var[[]]).write_h5ad(cells)
        side = [str(arguments.scvi_python), str(HERE / "generation_scvi.py"), str(cells), "-n", str(n)]
        options = ["--seed", str(seed), "--threads", str(arguments.threads), "-o", str(out)]
        run_json([*side, *options], arguments.threads)
        return sp.load_npz(out)


def text(known: dict[str, Any]) -> str:
    """Format the results as markdown."""
    lines = ["# Sampled cells", "", "Written by `benchmarks/generation.py`; its docstring says what is measured.", ""]
    lines += [
        "Cells that were sampled from the density of the cells or from the prior of a model are compared with real "
        "cells. The best values that can be expected are those of other real cells. AUC says how well a classifier "
        "(gradient boosting or logistic regression) distinguishes the compared cells from the real cells; 0.5 means "
        "that the cells cannot be distinguished. The energy distance is 0 for equal distributions.",
        "",
        f"| data | compared cells | seeds × cells | {' | '.join(FIGURES.values())} |",
        f"|---|---|---|{'---|' * len(FIGURES)}",
    ]
    for name, part in known.items():
        for of in dict.fromkeys(row["cells"] for row in part["rows"]):
            mine = [row for row in part["rows"] if row["cells"] == of]
            figures = " | ".join(f"{np.mean([row[figure] for row in mine]):.3f}" for figure in FIGURES)
            data, cells = DATA_NAMES.get(name, name), CELL_NAMES[of]
            lines.append(f"| {data} | {cells} | {len(mine)} × {mine[0]['n']} | {figures} |")
    lines.append("")
    for name, part in known.items():
        machine = f"{part['machine']}; torch {part['torch']}; {part['date']}"
        lines.append(f"{DATA_NAMES.get(name, name)}: {machine}.  ")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the requested data sets and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"files, {TREE!r} or {CLASS!r}; by default both and three real sets")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scvi-python", type=Path, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "generation.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for name, adata in data_sets(arguments.data).items():
        rows = []
        for seed in arguments.seeds:
            rows += measure(name, adata, seed, arguments)
            print(f"  {name}, seed {seed}", file=sys.stderr)
        machine = describe_machine(arguments.threads)
        known[name] = {
            "rows": rows,
            "machine": machine,
            "torch": torch.__version__,
            "date": date.today().isoformat(),
        }
        arguments.results.parent.mkdir(exist_ok=True)
        arguments.results.write_text(json.dumps(known, indent=1) + "\n")
        arguments.results.with_suffix(".md").write_text(text(known))
    print(text(known))


if __name__ == "__main__":
    main()
