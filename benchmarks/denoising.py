"""Which method predicts withheld molecules best: scvae, scVI, principal components, averages, or the counts alone?

   python benchmarks/denoising.py --scvi-python SCVI_ENV/bin/python [DATA.h5ad ...]

A tenth of every cell's molecules, drawn at random, is withheld (`scvae_cli.evaluation.thinning`). Each method learns
from the other molecules and predicts the withheld molecules; the Poisson loss measures the error. Two predictions are
compared: the expected counts of a cell's state, and the expected counts of the cell itself, which also use the cell's
own counts. Expected counts of the cell itself are computed only for methods with a dispersion. For principal
components, the best of five numbers of components is used. The number of components is chosen on the withheld counts,
which favors principal components. For scVI (early stopping), the better of scVI's rate and the mean of scVI's
likelihood is used. scVI itself does not use the cell's own counts. The benchmark also computes the prediction that scVI
would give with the cell's own counts.

On simulated trees, the true mean of every count is known, so the mean squared error to the true mean is reported, too.

The genes are those that `scvae train` chooses; spike-ins (`var["is_ercc"]`) are removed. The numbers are means over
seeds, which also decide which molecules are withheld. Results are written to results/denoising.json and .md; results of
data sets that are not requested are kept. Without `--scvi-python`, the results of scVI from an earlier run are kept;
they remain comparable, because a seed always withholds the same molecules.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch
import trajectories_simulated
from timed import describe_machine, run_json

import scvae_cli
from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts, read_counts
from scvae_cli.data.formats import open_store
from scvae_cli.data.gene_selection import select_genes
from scvae_cli.evaluation.mean_model import MeanModel
from scvae_cli.evaluation.pca_model import PcaModel
from scvae_cli.evaluation.thinning import Thinned, predicted, thin
from scvae_cli.latent.expected_counts import CELL, STATE
from scvae_cli.training.fit import fit_to_end

HERE = Path(__file__).parent
SHARED_DATA = HERE.parents[1] / "shared" / "data"
REAL = ("pbmc4k_top2000", "paul15_3004", "mixology_sc", "kang_muscat_2donors")
NAMES = {"PCA": "principal components", "mean model": "mean of all cells", "no denoising": "raw counts"}
TREES = {"simulated tree": (2, 10, 1500.0), "simulated line": (1, 11, 5000.0)}


def load(name: str) -> tuple[str, anndata.AnnData]:
    """Read a data set by path, or make a simulated data set by name; spike-ins are removed."""
    if name in TREES:
        return name, trajectories_simulated.tree(*TREES[name])
    adata = anndata.read_h5ad(name)
    if "is_ercc" in adata.var:
        adata = adata[:, ~adata.var["is_ercc"].to_numpy(dtype=bool)].copy()
    return Path(name).stem, adata


def chosen(adata: anndata.AnnData) -> Counts:
    """Return the counts of the genes that scvae would model."""
    counts = read_counts(open_store(adata))
    columns, _ = select_genes(counts, np.arange(counts.n_cells), RunConfig().data)
    return counts.genes(columns).filled_cells()


def measure(name: str, adata: anndata.AnnData, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every method and estimate."""
    counts = chosen(adata)
    thinned = thin(counts, seed=seed)
    judge = Judge(thinned, truth_of(adata, thinned.kept) if name in TREES else None)
    settings = {"genes": "all", "seed": seed, "threads": arguments.threads, "device": "cpu"}
    rows: list[dict[str, Any]] = []

    def add(contender: str, estimate: str, candidates: Iterable[Iterable[np.ndarray]]) -> None:
        scores = min((judge.scores(blocks) for blocks in candidates), key=lambda figures: figures["loss"])
        rows.append({"data": name, "seed": seed, "contender": contender, "estimate": estimate} | scores)

    kept = thinned.kept
    for decoder, label in (("mlp", "scvae"), ("linear", "scvae, linear decoder")):
        model = fit_to_end(kept, RunConfig.of(settings | {"decoder": decoder}))
        for estimate in (STATE, CELL):
            add(label, estimate, [predicted(model, kept, estimate)])
    if arguments.scvi_python is not None:
        expected = from_scvi(kept, seed, arguments)
        add("scVI", STATE, ([expected["rate"]], [expected["mean"]]))
        add("scVI", CELL, [[expected["own"]]])
    pca = PcaModel(kept)
    add("PCA", STATE, (pca.expected(c) for c in pca.components))
    add("PCA", CELL, (pca.expected_of_cells(c) for c in pca.components))
    mean = MeanModel(kept, None, RunConfig.of(settings), torch.device("cpu"))
    add("mean model", STATE, [mean.expected(kept, of_cell=False)])
    add("mean model", CELL, [mean.expected(kept, of_cell=True)])
    add("no denoising", STATE, [blocks_of(kept)])
    return rows


class Judge:
    """The withheld counts with which predictions are compared, and the true means if the data are simulated.

    Parameters
    ----------
    thinned
        Both parts of the counts.
    truth_ng
        True mean of the kept part of every count.
    """

    def __init__(self, thinned: Thinned, truth_ng: np.ndarray | None) -> None:
        self._thinned, self._truth_ng = thinned, truth_ng

    def scores(self, blocks: Iterable[np.ndarray]) -> dict[str, float | None]:
        """Compute the Poisson loss, nats per cell up to a constant, and the mean squared error to the truth."""
        mean_ng = np.concatenate(list(blocks))
        error = None if self._truth_ng is None else float(((mean_ng - self._truth_ng) ** 2).mean())
        return {"loss": float(self._thinned.poisson_loss([mean_ng]).mean()), "error": error}


def truth_of(adata: anndata.AnnData, kept: Counts) -> np.ndarray:
    """Compute the true mean of the kept part of simulated counts, including zero inflation."""
    from scvae_cli.data.simulation import true_mean

    cells = adata[list(kept.cell_names), list(kept.gene_names)]
    mean_ng = true_mean(cells.obs, cells.varm) * (1 - cells.var["true_zero_inflation"].to_numpy())
    return 0.9 * np.asarray(mean_ng)


def blocks_of(counts: Counts) -> Iterator[np.ndarray]:
    yield counts.matrix.toarray()


def from_scvi(kept: Counts, seed: int, arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    """Compute the expected counts of scVI."""
    with tempfile.TemporaryDirectory() as folder:
        cells, out = Path(folder) / "kept.h5ad", Path(folder) / "expected.npz"
        adata = anndata.AnnData(kept.matrix)
        adata.obs_names, adata.var_names = list(kept.cell_names), list(kept.gene_names)
        adata.write_h5ad(cells)
        side = [str(arguments.scvi_python), str(HERE / "denoising_scvi.py"), str(cells), "-o", str(out)]
        run_json([*side, "--seed", str(seed), "--threads", str(arguments.threads)], arguments.threads)
        with np.load(out) as arrays:
            return {name: arrays[name] for name in arrays.files}


def text(known: dict[str, Any]) -> str:
    """Format the results as markdown."""
    lines = ["# Denoising", "", "Written by `benchmarks/denoising.py`; its docstring says what is measured.", ""]
    lines += [
        "Each method predicts a withheld tenth of every cell's molecules from the other molecules. The loss is the "
        "Poisson loss of the withheld molecules in nats per cell, minus the smaller of the two losses of scvae; lower "
        "is better. For simulations, the error is the mean squared error to the true mean, divided by the smaller of "
        'the two errors of scvae. Columns with "state" evaluate the expected counts of a cell\'s state. Columns with '
        '"cell" evaluate the expected counts of the cell itself, which also use its own counts. Means over the seeds ± '
        "standard deviation.",
        "",
        "| data | method | loss, state | loss, cell | error, state | error, cell |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in known.items():
        rows = part["rows"]
        for contender in dict.fromkeys(row["contender"] for row in rows):
            numbers = [_shown(rows, contender, e, figure) for figure in ("loss", "error") for e in (STATE, CELL)]
            lines.append(f"| {name} | {NAMES.get(contender, contender)} | {' | '.join(numbers)} |")
    lines.append("")
    for name, part in known.items():
        lines.append(f"{name}: seeds {part['seeds']}; {part['machine']}; scvae {part['scvae']}; {part['date']}.  ")
    return "\n".join(lines) + "\n"


def _shown(rows: list[dict[str, Any]], contender: str, estimate: str, figure: str) -> str:
    mine = [row for row in rows if (row["contender"], row["estimate"]) == (contender, estimate)]
    if not mine or mine[0][figure] is None:
        return "–"

    def ours(seed: int) -> float:
        return min(row[figure] for row in rows if row["contender"] == "scvae" and row["seed"] == seed)

    if figure == "error":
        return f"{np.mean([row[figure] / ours(row['seed']) for row in mine]):.2f}"
    behind = [row[figure] - ours(row["seed"]) for row in mine]
    return f"{np.mean(behind):+.2f} ± {np.std(behind):.2f}"


def main() -> None:
    """Measure the requested data sets and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"files, or {' or '.join(repr(name) for name in TREES)}")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scvi-python", type=Path, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "denoising.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    known = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for data in arguments.data or [*(str(SHARED_DATA / f"{name}.h5ad") for name in REAL), *TREES]:
        name, adata = load(data)
        rows = []
        for seed in arguments.seeds:
            rows += measure(name, adata, seed, arguments)
            print(f"  {name}, seed {seed}", file=sys.stderr)
        if arguments.scvi_python is None and name in known:
            of_scvi = [row for row in known[name]["rows"] if row["contender"] == "scVI"]
            rows += [row for row in of_scvi if row["seed"] in arguments.seeds]
        known[name] = {
            "rows": rows,
            "seeds": arguments.seeds,
            "machine": describe_machine(arguments.threads),
            "scvae": scvae_cli.__version__,
            "date": date.today().isoformat(),
        }
        arguments.results.write_text(json.dumps(known, indent=1) + "\n")
        arguments.results.with_suffix(".md").write_text(text(known))
    print(text(known))


if __name__ == "__main__":
    main()
