"""How much does `--flat` improve condition numbers and distances, and how much does it lower the held-out bound?

For every data set and weight of `--flat`, a model is trained with otherwise default settings. The model is evaluated by

- the held-out ELBO, compared with the better of two models without `--flat`: one with the default patience, and one
  with the patience of `--flat`, so that the gain of a longer training is not attributed to `--flat`;
- the mean condition number of the decoder's metric M at the posterior means of the held-out cells;
- Spearman's correlation, over pairs of cells, between latent distance and length of the geodesic. The geodesic is the
  path of least Fisher–Rao length among the straight line and splines that were optimized from it. Spearman's
  correlation is also given for the lengths of straight lines, and for shortest paths in the neighbor graph of the
  cells. The noise of a correlation is the standard deviation of the correlation if the start cells of the pairs are
  resampled.

    python benchmarks/flatness.py [DATA.h5ad ...] [--weights 0.3 1 3] [--seed 0] [--threads 1] [--results FILE.md]
        [--every 2]

Without DATA.h5ad, the benchmark uses a simulated tree and the data sets in shared/data. The benchmark writes
results/flatness.md and results/flatness.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import spearmanr
from timed import describe_machine
from torch import Tensor

import scvae_cli as scvae
from scvae_cli.data.counts import read_counts
from scvae_cli.data.formats import open_store
from scvae_cli.latent.neighbor_graph import cell_graph
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.bundle import Model
from scvae_cli.model.geometry import Geometry
from scvae_cli.tools.trajectory.curves import geodesics, step_lengths, straight

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))
DATA = [
    HERE.parents[1] / "shared" / "data" / name
    for name in ("paul15_3004.h5ad", "pbmc4k_top2000.h5ad", "kang_muscat_2donors.h5ad")
]
WEIGHTS = [0.3, 1.0, 3.0]
# Number of start cells of the pairs, and number of cells with which each start cell is paired.
SOURCES, TARGETS = 40, 10
BOOTSTRAPS = 300
MAX_HELDOUT = 400


@dataclass(frozen=True, kw_only=True)
class Row:
    """Results of one model: correlations between latent distance and length of paths, and seconds of the training."""

    data: str
    weight: float
    patience: int
    elbo: float
    kl: float
    condition: float
    median_condition: float
    geodesic: float
    noise: float
    line: float
    graph: float
    epochs: int
    seconds: float


class Everywhere:
    """A density without holes, so that geodesics depend on the metric alone."""

    def to(self, _device: torch.device) -> Everywhere:
        return self

    def nll_at(self, _quantile: float) -> float:
        return 0.0

    def log_prob(self, z_nk: Tensor) -> Tensor:
        return torch.zeros(len(z_nk), device=z_nk.device)


def main() -> None:
    """Train, evaluate, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", type=Path)
    parser.add_argument("--weights", nargs="+", type=float, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--every", type=int, default=2, help="compute geodesics, which take long, for only one in this number of pairs"
    )
    parser.add_argument(
        "--results", type=Path, default=HERE / "results" / "flatness.md", help="the figure is written beside it"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name, adata in data_sets(arguments.data):
        for weight, model in models(adata, arguments):
            rows.append(judged(name, weight, adata, model, arguments.every))
            print(rows[-1], flush=True)
    arguments.results.parent.mkdir(exist_ok=True)
    text = as_text(rows, arguments)
    arguments.results.write_text(text)
    draw(rows, arguments.results.with_suffix(".png"))
    print(text)


def models(adata: anndata.AnnData, arguments: argparse.Namespace) -> Iterator[tuple[float, Model]]:
    """Train without `--flat`, with each weight of `--flat`, and without `--flat` but with the patience of `--flat`."""
    patience = None
    for weight in [0.0, *sorted(arguments.weights), 0.0]:
        options = {"seed": arguments.seed, "threads": arguments.threads, "patience": None if weight else patience}
        model = scvae.train(adata, flat=weight, **options)
        patience = model.config.train.patience
        yield weight, model


def data_sets(paths: list[Path]) -> list[tuple[str, anndata.AnnData]]:
    """Return the given files; otherwise the simulated trees and the files of DATA that exist."""
    if paths:
        return [(path.stem, anndata.read_h5ad(path)) for path in paths]
    from simulated import tree

    trees = [("tree", tree(n_cells=3000, n_genes=2000, n_branches=2, seed=0))]
    return trees + [(path.stem, anndata.read_h5ad(path)) for path in DATA if path.exists()]


def judged(name: str, weight: float, adata: anndata.AnnData, model: Model, every: int) -> Row:
    geometry = Geometry(model.vae)
    counts = read_counts(open_store(adata[:, list(model.genes)]))
    z_nk = posteriors(model, counts).mean_nk
    heldout = np.flatnonzero(np.isin(adata.obs_names, model.heldout_cells))[:MAX_HELDOUT]
    value_nk = torch.linalg.eigvalsh(geometry.metric(z_nk[heldout]).double())
    # The smallest eigenvalue of a metric is accurate only to the precision of float32.
    condition_n = value_nk[:, -1] / value_nk[:, 0].clamp_min(1e-7 * value_nk[:, -1])

    rng = np.random.default_rng(0)
    sources = rng.choice(len(z_nk), min(SOURCES, len(z_nk)), replace=False)
    pairs = [(a, b) for a in sources for b in rng.choice(len(z_nk), TARGETS, replace=False) if a != b]
    distance = [float((z_nk[a] - z_nk[b]).norm()) for a, b in pairs]
    legs = [straight(z_nk[[a, b]].numpy(), 64) for a, b in pairs]
    line = np.array([step_lengths(geometry, leg).sum() for leg in legs])
    # Where the optimization of a spline has not reached a shorter path, the straight line is the shortest known path.
    solved = geodesics(geometry, Everywhere(), legs[::every])
    shortest = np.minimum(line[::every], [step_lengths(geometry, way).sum() for way in solved])
    graph = cell_graph(geometry, z_nk, always=np.unique(pairs))
    at = {cell: node for node, cell in enumerate(graph.cells)}
    pairs_of_nodes = [(at[a], at[b]) for a, b in pairs]
    along = graph.distances(sorted({a for a, _ in pairs_of_nodes}))
    row_of = {a: i for i, a in enumerate(sorted({a for a, _ in pairs_of_nodes}))}
    along_cells = [along[row_of[a], b] for a, b in pairs_of_nodes]
    return Row(
        data=name,
        weight=weight,
        patience=model.config.train.patience,
        elbo=model.facts["heldout_elbo"],
        kl=model.facts["heldout_kl"],
        condition=float(condition_n.mean()),
        median_condition=float(condition_n.median()),
        geodesic=spearmanr(distance[::every], shortest)[0],
        noise=noise(np.array([a for a, _ in pairs[::every]]), np.array(distance[::every]), shortest),
        line=spearmanr(distance, line)[0],
        graph=spearmanr(distance, along_cells)[0],
        epochs=model.facts["epochs"],
        seconds=model.facts["seconds"],
    )


def noise(source: np.ndarray, distance: np.ndarray, length: np.ndarray) -> float:
    """Compute the standard deviation of the correlation over resampled start cells.

    Start cells are resampled instead of pairs, because pairs with the same start cell are not independent.
    """
    rng = np.random.default_rng(0)
    of_source = [np.flatnonzero(source == one) for one in np.unique(source)]
    found = []
    for _ in range(BOOTSTRAPS):
        drawn = np.concatenate([of_source[i] for i in rng.integers(len(of_source), size=len(of_source))])
        found.append(spearmanr(distance[drawn], length[drawn])[0])
    return float(np.std(found))


def loss(row: Row, rows: list[Row]) -> float:
    """Compute the loss of held-out ELBO against the best model of the same data without `--flat`, in percent."""
    plain = max(other.elbo for other in rows if other.data == row.data and other.weight == 0)
    return 100 * (plain - row.elbo) / abs(plain)


def as_text(rows: list[Row], arguments: argparse.Namespace) -> str:
    n_pairs = SOURCES * TARGETS
    lines = [
        "# Models trained with `--flat`",
        "",
        f"Written by `benchmarks/flatness.py`: models trained by `scvae train --flat W` with seed {arguments.seed} and "
        "otherwise default options. W = 0 is a training without `--flat`, once with the default patience and once with "
        "the patience of `--flat`. The loss says by how many percent the held-out ELBO (in nats per cell) is lower "
        "than that of the better model with W = 0. The condition number is that of the decoder's metric M at the "
        "posterior means of the held-out cells: mean and median over these cells. ρ is Spearman's correlation, over "
        f"pairs of cells, between latent distance and length: of the geodesic ({n_pairs // arguments.every} pairs), of "
        f"the straight line, and of the shortest path in the neighbor graph ({n_pairs} pairs each).",
        "",
        f"Machine: {describe_machine(arguments.threads)}; torch {torch.__version__}. Other work ran on the "
        "machine, so the times are rough.",
        "",
        "| data | W | patience | held-out ELBO | loss, % | KL | condition number, mean | median | ρ, geodesic "
        "| ρ, straight line | ρ, neighbor graph | epochs | seconds per epoch |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.data} | {r.weight:g} | {r.patience} | {r.elbo:.2f} | {loss(r, rows):+.2f} | {r.kl:.1f} "
        f"| {r.condition:,.0f} | {r.median_condition:,.0f} | {r.geodesic:.3f} ± {r.noise:.3f} | {r.line:.3f} "
        f"| {r.graph:.3f} | {r.epochs} | {r.seconds / r.epochs:.2f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Draw the trade-off: one curve per data set, starting at W = 0, with points labeled by W."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for name in dict.fromkeys(row.data for row in rows):
        plain, flat = ([row for row in rows if row.data == name and (row.weight > 0) == on] for on in (False, True))
        mine = [max(plain, key=lambda row: row.elbo), *flat]
        cost = [loss(row, rows) for row in mine]
        for axis, value in zip(axes, ([np.log10(r.condition) for r in mine], [r.geodesic for r in mine]), strict=True):
            axis.plot(cost, value, "o-", ms=4, label=name)
            for row, x, y in zip(mine, cost, value, strict=True):
                axis.annotate(f"{row.weight:g}", (x, y), textcoords="offset points", xytext=(4, 3), fontsize=7)
    axes[0].set_ylabel("log10 mean condition number of M")
    axes[1].set_ylabel("Spearman, latent distance and geodesic length")
    axes[1].axhline(0.95, color="0.7", lw=0.8)
    for axis in axes:
        axis.set_xlabel("loss of held-out ELBO, %")
        axis.axvline(0.5, color="0.7", lw=0.8)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
