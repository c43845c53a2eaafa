"""Do denoised markers appear in cell types that lack them, with scvae, scVI, principal components, MAGIC or raw counts?

    python benchmarks/leakage.py --scvi-python SCVI_ENV/bin/python --magic-python MAGIC_ENV/bin/python [SET ...]

Denoised counts must meet two requirements at once. First, denoised counts must predict withheld molecules. A tenth of
every cell's molecules is withheld, each method learns from the other molecules, and the Poisson loss of the withheld
molecules is measured (as in `denoising.py`). Second, a marker that is absent from a type must stay absent. A marker is
a gene that occurs in at least a fifth of the cells of some type with 30 cells or more. A marker is absent from a type
if fewer than 1% of the cells of this type have counts of the marker. Three measures are computed over all pairs of a
type and a marker that is absent from the type:

    leakage               by how much the denoised mean exceeds the raw mean, in percent of the raw mean in the type
                          with the highest mean; averaged over all pairs (a part of the leakage is sampling error of
                          the raw mean)
    above the interval    share of pairs whose denoised mean lies above the 95% interval (Poisson) of the raw mean
    leakage, small type   leakage in the small type alone

One type of each data set is reduced to 50 cells: the largest type with seed 0, the next type with seed 1, and so on.
The data set pbmc68k_700 already has small types. The simulation has eight types, one of them with 50 cells. Each type
has 30 markers, which are absent from all other types. In the simulation, the true means are known, and leakage is also
measured against the true means.

For scvae, three results are shown: the expected counts of states (the default), the expected counts of cells, and
expected counts without zero inflation, averaged over ten posterior samples (the default up to version 0.2). For scVI,
two results are shown: `get_normalized_expression` times the library size, and the mean of scVI's likelihood, including
zero inflation. For PCA and MAGIC, there are two variants, with and without square roots of the counts. The variant with
the better Poisson loss is used, which favors PCA and MAGIC.

Results are written to results/leakage.json and .md; results of sets and seeds that are not requested are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import denoising
import numpy as np
import scipy.sparse as sp
import torch
from scipy.stats import gamma
from timed import describe_machine, run_json

import scvae_cli
from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.pca_model import PcaModel
from scvae_cli.evaluation.thinning import thin
from scvae_cli.latent.expected_counts import expected_counts
from scvae_cli.training.fit import fit_to_end

HERE = Path(__file__).parent
SHARED_DATA = HERE.parents[1] / "shared" / "data"
SIMULATED = "simulated types"
# Column with the types of each data set, and whether one type is reduced.
SETS = {
    "pbmc4k_top2000": (SHARED_DATA, "cell_type", True),
    "kang_muscat_2donors": (SHARED_DATA, "cell_type", True),
    "mixology_sc": (SHARED_DATA, "cell_line", True),
    "paul15_3004": (SHARED_DATA, "cell_type", True),
    "pbmc68k_700": (HERE.parent / "data_samples", "bulk_labels", False),
}
SMALL, LEAST_CELLS, MARKER, ABSENT = 50, 30, 0.2, 0.01
FIGURES = ("loss", "leakage", "beyond", "small", "leakage_true")
NAMES = {"scvae up to 0.2 (no zero inflation)": "scvae, default up to version 0.2 (without zero inflation)"}


def load(name: str, seed: int) -> tuple[anndata.AnnData, str]:
    """Return a data set in which one cell type is small, and the name of the column with the cell types."""
    if name == SIMULATED:
        return simulated(seed), "cell_type"
    folder, key, cut = SETS[name]
    _, adata = denoising.load(str(folder / f"{name}.h5ad"))
    if cut:
        label_n = adata.obs[key].astype(str).to_numpy()
        # Of types with equal sizes, the first type in the file is chosen.
        chosen = adata.obs[key].astype(str).value_counts(sort=True).index[seed]
        mine = np.random.default_rng(seed).permutation(np.flatnonzero(label_n == chosen))
        adata = adata[np.setdiff1d(np.arange(adata.n_obs), mine[SMALL:])].copy()
    return adata, key


def simulated(seed: int, *, n_cells: int = 3000, n_genes: int = 1500, markers: int = 30) -> anndata.AnnData:
    """Simulate negative binomial counts of eight cell types, without zero inflation.

    Genes vary slightly between types, and with four factors that all types share. The log rate of a marker in types
    that lack it is −9; the mean log rate of an ordinary gene is 0.
    """
    random = np.random.default_rng(seed)
    share_p = np.asarray([0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05])
    n_types = len(share_p) + 1
    log_pg = random.normal(0, 1.5, n_genes) + random.normal(0, 0.3, (n_types, n_genes))
    for p, mine in enumerate(random.permutation(n_genes)[: n_types * markers].reshape(n_types, markers)):
        log_pg[:, mine] = -9
        log_pg[p, mine] = random.normal(1.5, 1, markers)
    type_n = np.append(random.choice(n_types - 1, n_cells - SMALL, p=share_p), np.full(SMALL, n_types - 1))
    factor_nf, loading_fg = random.normal(0, 1, (n_cells, 4)), random.normal(0, 0.2, (4, n_genes))
    rate_ng = np.exp(log_pg[type_n] + factor_nf @ loading_fg)
    library_n1 = np.exp(random.normal(np.log(1500), 0.4, (n_cells, 1)))
    mean_ng = library_n1 * rate_ng / rate_ng.sum(1, keepdims=True)
    theta_g = np.exp(random.normal(1, 0.5, n_genes))
    x_ng = random.poisson(mean_ng * random.gamma(theta_g, 1 / theta_g, mean_ng.shape))
    adata = anndata.AnnData(sp.csr_matrix(x_ng.astype(np.float32)), layers={"true_mean": mean_ng.astype(np.float32)})
    adata.obs_names = [f"cell{n}" for n in range(n_cells)]
    adata.obs["cell_type"] = [f"type{p}" for p in type_n]
    return adata


class Judge:
    """The withheld counts, the types, and the markers that are absent from each type."""

    def __init__(self, adata: anndata.AnnData, key: str, seed: int) -> None:
        self.thinned = thin(denoising.chosen(adata), seed=seed)
        self.kept: Counts = self.thinned.kept
        used = adata[list(self.kept.cell_names), list(self.kept.gene_names)]
        self.label_n = used.obs[key].astype(str).to_numpy()
        names, size = np.unique(self.label_n, return_counts=True)
        self.types, self.size_p = names[size >= LEAST_CELLS], size[size >= LEAST_CELLS]
        x_ng = self.kept.matrix.toarray()
        self.raw_pg = self.means(x_ng)
        share_pg = self.means(x_ng > 0)
        self.absent_pg = (share_pg < ABSENT) & (share_pg.max(0) >= MARKER)
        total_pg = self.raw_pg * self.size_p[:, None]
        self.upper_pg = gamma.ppf(0.975, total_pg + 1) / self.size_p[:, None]
        truth = used.layers.get("true_mean")
        self.true_pg = None if truth is None else self.means(self.thinned.share * np.asarray(truth))

    def means(self, values_ng: np.ndarray) -> np.ndarray:
        """Compute the means of each type, shape (types, genes)."""
        return np.stack([values_ng[self.label_n == name].mean(0, dtype=np.float64) for name in self.types])

    def scores(self, mean_ng: np.ndarray) -> dict[str, float | None]:
        """Compute the Poisson loss, nats per cell up to a constant, and the measures of leakage, percent."""
        denoised_pg = self.means(mean_ng)
        small = int(np.argmin(self.size_p))

        def leakage(expected_pg: np.ndarray, among_pg: np.ndarray) -> float | None:
            excess_pg = np.maximum(denoised_pg - expected_pg, 0) / np.maximum(self.raw_pg.max(0), 1e-12)
            return 100 * float(excess_pg[among_pg].mean()) if among_pg.any() else None

        in_small_pg = self.absent_pg & (np.arange(len(self.types)) == small)[:, None]
        return {
            "loss": float(self.thinned.poisson_loss([mean_ng]).mean()),
            "leakage": leakage(self.raw_pg, self.absent_pg),
            "beyond": 100 * float((denoised_pg > self.upper_pg)[self.absent_pg].mean()),
            "small": leakage(self.raw_pg, in_small_pg),
            "leakage_true": None if self.true_pg is None else leakage(self.true_pg, self.absent_pg),
        }


def measure(name: str, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every method."""
    judge = Judge(*load(name, seed), seed)
    kept = judge.kept
    about = {"data": name, "seed": seed, "n_absent": int(judge.absent_pg.sum()), "small_cells": int(judge.size_p.min())}
    rows: list[dict[str, Any]] = []

    def add(contender: str, candidates: Iterable[np.ndarray]) -> None:
        scores = min(map(judge.scores, candidates), key=lambda figures: figures["loss"])
        rows.append(about | {"contender": contender} | scores)

    settings = {"genes": "all", "seed": seed, "threads": arguments.threads, "device": "cpu"}
    model = fit_to_end(kept, RunConfig.of(settings))

    def from_scvae(**options: Any) -> list[np.ndarray]:
        return [np.concatenate(list(expected_counts(model, kept, **options)))]

    add("scvae", from_scvae())
    add("scvae, `--samples 10`", from_scvae(n_samples=10))
    add("scvae, `--estimate cell`", from_scvae(estimate="cell"))
    add("scvae up to 0.2 (no zero inflation)", from_scvae(n_samples=10, with_zero_inflation=False))
    if arguments.scvi_python is not None:
        expected = denoising.from_scvi(kept, seed, arguments)
        add("scVI, normalized expression", [expected["rate"]])
        add("scVI, mean of its likelihood", [expected["mean"]])
    pca = PcaModel(kept)
    add("PCA", (np.concatenate(list(pca.expected(c))) for c in pca.components))
    if arguments.magic_python is not None:
        add("MAGIC", from_magic(kept, seed, arguments))
    add("raw counts", [kept.matrix.toarray()])
    return rows


def from_magic(kept: Counts, seed: int, arguments: argparse.Namespace) -> list[np.ndarray]:
    """Compute counts denoised by MAGIC, at the library size of each cell."""
    with tempfile.TemporaryDirectory() as folder:
        cells, out = Path(folder) / "kept.npz", Path(folder) / "magic.npz"
        sp.save_npz(cells, kept.matrix)
        side = [str(arguments.magic_python), str(HERE / "leakage_magic.py"), str(cells), "-o", str(out)]
        run_json([*side, "--seed", str(seed), "--threads", str(arguments.threads)], arguments.threads)
        with np.load(out) as arrays:
            return [arrays[name] for name in arrays.files]


def text(known: dict[str, Any]) -> str:
    """Format the results as markdown."""
    lines = ["# Leakage", "", "Written by `benchmarks/leakage.py`; its docstring says what is measured.", ""]
    lines += [
        "The loss is the Poisson loss of withheld molecules in nats per cell, minus that of scvae; lower is better. "
        "Leakage is by how much the denoised mean of an absent marker exceeds the raw mean, in percent of the raw mean "
        "in the type with the highest mean: over all types, in the small type alone, and compared with the true mean "
        'instead of the raw mean. "Above the interval" is the percentage of pairs of a type and an absent marker whose '
        "denoised mean lies above the 95% interval of the raw mean. Means over the seeds ± standard deviation.",
        "",
        "| data | method | loss | leakage | above the interval | leakage, small type | leakage, true mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in known.items():
        rows = [row for run in runs.values() for row in run["rows"]]
        for contender in dict.fromkeys(row["contender"] for row in rows):
            figures = " | ".join(_shown(rows, contender, figure) for figure in FIGURES)
            lines.append(f"| {name} | {NAMES.get(contender, contender)} | {figures} |")
    lines.append("")
    for name, runs in known.items():
        for seed, run in runs.items():
            row = run["rows"][0]
            lines.append(
                f"{name}, seed {seed}: {row['n_absent']} pairs of a type and an absent marker, {row['small_cells']} "
                f"cells in the small type; {run['machine']}; scvae {run['scvae']}; {run['date']}.  "
            )
    return "\n".join(lines) + "\n"


def _shown(rows: list[dict[str, Any]], contender: str, figure: str) -> str:
    ours = {row["seed"]: row["loss"] for row in rows if row["contender"] == "scvae"}
    mine = [row for row in rows if row["contender"] == contender and row[figure] is not None]
    if not mine:
        return "–"
    values = [row[figure] - (ours[row["seed"]] if figure == "loss" else 0) for row in mine]
    shown = f"{np.mean(values):{'+' if figure == 'loss' else ''}.2f} ± {np.std(values):.2f}"
    return shown if len(mine) == len(ours) else f"{shown} ({len(mine)} of {len(ours)} seeds)"


def main() -> None:
    """Measure the requested data sets and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", default=[*SETS, SIMULATED], help=f"{', '.join(SETS)} or {SIMULATED!r}")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scvi-python", type=Path, help="interpreter of an environment with scvi-tools")
    parser.add_argument("--magic-python", type=Path, help="interpreter of an environment with magic-impute")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "leakage.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.data:
        for seed in arguments.seeds:
            rows = measure(name, seed, arguments)
            print(f"  {name}, seed {seed}", file=sys.stderr)
            known = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
            known.setdefault(name, {})[str(seed)] = {
                "rows": rows,
                "machine": describe_machine(arguments.threads),
                "scvae": scvae_cli.__version__,
                "date": date.today().isoformat(),
            }
            arguments.results.write_text(json.dumps(known, indent=1) + "\n")
            arguments.results.with_suffix(".md").write_text(text(known))
    print(text(known))


if __name__ == "__main__":
    main()
