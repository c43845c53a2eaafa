"""Trajectories from pure RNA to an equal mixture of three, compared with mixtures that were left out of the training.

The RNA of three cell lines was mixed in known proportions and sequenced as if it came from single cells (Tian et al.
2019). The mixtures of 0.68/0.16/0.16 are left out of the training. Every trajectory from a pure cell line to the equal
mixture should pass near one of the mixtures that were left out.

The proportions of the cell lines are estimated by least squares, in proportions of all molecules. The lines do not
contain equal amounts of mRNA, so an equal mixture is estimated as about 0.40/0.27/0.33. A path through the center of
the mixtures that were left out would give the estimate for the mean of these mixtures. The estimate that is expected
for a proportion of 0.68 follows from the estimate for the equal mixture. The "line of means" is the straight line
between the mean proportions of the two end populations. Mixtures of RNA lie on the line of means, so the line of means
uses the knowledge that the cells are mixtures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from nearest_point import log_normalized, means_line, nearest_on, pca_line, to_polyline
from scipy.optimize import nnls
from timed import run_json

import scvae_cli as scvae

HERE = Path(__file__).parent
LINES = ("H2228", "H1975", "HCC827")
PURE = {"H2228": "1.0_0.0_0.0", "H1975": "0.0_1.0_0.0", "HCC827": "0.0_0.0_1.0"}
MEAN = "the left-out mean itself"
LEFT_OUT = {"H2228": "0.68_0.16_0.16", "H1975": "0.16_0.68_0.16", "HCC827": "0.16_0.16_0.68"}
EQUAL = "0.33_0.33_0.33"
NAMES = {MEAN: "mean of the left-out mixture", "scVI, 2 × 30, nb": "scVI, 2 layers, 30 latent dimensions, nb"}
SPECIFIC_GENES = 200
BOOTSTRAPS = 500


def measure(data: Path, work: Path, seed: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train without the left-out mixtures, and evaluate the trajectory from each cell line.

    The result has one row for each cell line and method.
    """
    adata = anndata.read_h5ad(data)
    adata = adata[:, ~adata.var["is_ercc"].astype(bool)].copy()
    mixture = adata.obs["mixture"].astype(str).to_numpy()
    seen = ~np.isin(mixture, list(LEFT_OUT.values()))
    training = adata[seen].copy()
    model = scvae.train(training, seed=seed, threads=arguments.threads, device="cpu")
    # All methods are evaluated on the genes that scvae models, and scVI and PCA get only these genes.
    genes = list(model.genes)
    training, adata = training[:, genes].copy(), adata[:, genes].copy()
    proportion = adata.X.toarray() / np.asarray(adata.X.sum(1))
    pure_lg = np.stack([proportion[mixture == PURE[line]].mean(0) for line in LINES])
    chosen = specific_genes(pure_lg)
    mixed = mixture[seen]
    ways: dict[str, dict[str, np.ndarray]] = {line: {} for line in LINES}
    for line in LINES:
        start, end = mixed == PURE[line], mixed == EQUAL
        ways[line][MEAN] = log_normalized(np.repeat(proportion[mixture == LEFT_OUT[line]].mean(0)[None], 2, axis=0))
        ways[line]["line of means"] = means_line(training, start, end)
        ways[line]["PCA, 50 components"] = pca_line(training, start, end)
        ways[line]["PCA, 10 components"] = pca_line(training, start, end, components=10)
        for kind in ("straight", "geodesic"):
            walk = scvae.interpolate(
                training, model, groupby="mixture", groups=[PURE[line], EQUAL], path=kind, inplace=False
            )
            assert walk is not None
            ways[line][f"scvae, {kind}"] = log_normalized(walk.mean_tg)
    if arguments.scvi_python is not None:
        for name, walks in scvi_ways(training, work, seed, arguments).items():
            for line in LINES:
                ways[line][name] = log_normalized(walks[line])
    equal_l = shares(proportion[mixture == EQUAL].mean(0), pure_lg, chosen)
    rows = []
    for line in LINES:
        # The estimated shares in the equal mixture are proportional to the amounts of mRNA of the cell lines.
        amount_l = equal_l * np.where(np.asarray(LINES) == line, 0.68, 0.16)
        expected = float(amount_l[LINES.index(line)] / amount_l.sum())
        judged = judge(ways[line], proportion[mixture == LEFT_OUT[line]], pure_lg, chosen, line, seed)
        rows += [row | {"expected": expected} for row in judged]
    return rows


def specific_genes(pure_lg: np.ndarray) -> np.ndarray:
    """Return the genes with the largest difference between the highest and the second-highest mean of a cell line."""
    ordered = np.sort(np.log1p(pure_lg * 1e4), axis=0)
    return np.argsort(ordered[-2] - ordered[-1], kind="stable")[:SPECIFIC_GENES]


def shares(mean_g: np.ndarray, pure_lg: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Estimate the shares of the three cell lines in a mixture, by non-negative least squares over chosen genes."""
    share_l, _ = nnls(pure_lg[:, chosen].T, mean_g[chosen])
    found: np.ndarray = share_l / share_l.sum()
    return found


def judge(
    ways: dict[str, np.ndarray], left_out_ng: np.ndarray, pure_lg: np.ndarray, chosen: np.ndarray, line: str, seed: int
) -> list[dict[str, Any]]:
    """Compare each path with the mean of the left-out mixture.

    The result contains the distance of the path, the difference between the distances of the geodesic and of the path
    with its bootstrap noise, and the proportion at the nearest point.
    """
    random = np.random.default_rng(seed)
    target = log_normalized(left_out_ng.mean(0)[None])[:, chosen]
    resampled = [
        left_out_ng[random.integers(len(left_out_ng), size=len(left_out_ng))].mean(0) for _ in range(BOOTSTRAPS)
    ]
    resampled_bg = log_normalized(np.stack(resampled))[:, chosen]
    geodesic_b = to_polyline(resampled_bg, ways["scvae, geodesic"][:, chosen])
    rows = []
    for name, path in ways.items():
        point, distance = nearest_on(target, path[:, chosen])
        share_l, _ = nnls(pure_lg[:, chosen].T * 1e4, np.expm1(point[0]))
        excess_b = geodesic_b - to_polyline(resampled_bg, path[:, chosen])
        rows.append(
            {
                "line": line,
                "seed": seed,
                "way": name,
                "distance": float(distance[0]),
                "geodesic_minus_it": float(excess_b.mean()),
                "noise": float(excess_b.std()),
                "proportion": float(share_l[LINES.index(line)] / share_l.sum()),
            }
        )
    return rows


def scvi_ways(training: anndata.AnnData, work: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute straight lines between centroids in scVI's latent space, decoded by scVI, for two settings of scVI."""
    cells = work / "cells.h5ad"
    anndata.AnnData(training.X.copy(), obs=training.obs[["mixture"]], var=training.var[[]]).write_h5ad(cells)
    (work / "walks.json").write_text(json.dumps({line: [PURE[line], EQUAL] for line in LINES}))
    found = {}
    for contender, label in (("scvi-es", "scVI, early stopping"), ("scvi-2x30nb", "scVI, 2 × 30, nb")):
        side = [str(arguments.scvi_python), str(HERE / "trajectories_scvi.py"), str(cells), str(work / "walks.json")]
        out = work / f"{contender}.npz"
        options = ["--contender", contender, "--seed", str(seed), "--threads", str(arguments.threads), "-o", str(out)]
        run_json([*side, "--key", "mixture", *options], arguments.threads)
        found[label] = dict(np.load(out))
    print("    scVI walked", file=sys.stderr)
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Format the results as markdown, one row per cell line and method, with means over the seeds."""
    lines = [
        "Trajectories from a pure cell line to the equal mixture of three cell lines should pass near the mixture that "
        "was left out of the training and contains 0.68 of this cell line. The distance is that between the mean of "
        "this mixture and the nearest point of the trajectory, and is compared with the distance of scvae's geodesic "
        "(± bootstrap standard deviation; positive: the geodesic is farther away). The last column is the estimated "
        "proportion of the cell line at the nearest point, for each seed.",
        "",
        "| cell line | line or trajectory | distance to the left-out mixture | distance of the geodesic minus this "
        "distance | estimated proportion |",
        "|---|---|---|---|---|",
    ]
    for line in LINES:
        for way in dict.fromkeys(row["way"] for row in rows):
            mine = [row for row in rows if row["line"] == line and row["way"] == way]
            mean = {key: np.mean([row[key] for row in mine]) for key in ("distance", "geodesic_minus_it", "noise")}
            shares = ", ".join(f"{row['proportion']:.3f}" for row in mine)
            lines.append(
                f"| {line} | {NAMES.get(way, way)} | {mean['distance']:.3f} | {mean['geodesic_minus_it']:+.3f} ± "
                f"{mean['noise']:.3f} | {shares} |"
            )
    geodesic = [row for row in rows if row["way"] == "scvae, geodesic"]
    mean = {(row["line"], row["seed"]): row["proportion"] for row in rows if row["way"] == MEAN}
    from_nominal = max(abs(row["proportion"] - 0.68) for row in geodesic)
    from_mean = max(abs(row["proportion"] - mean[row["line"], row["seed"]]) for row in geodesic)
    expected = {line: [f"{row['expected']:.3f}" for row in geodesic if row["line"] == line] for line in LINES}
    should = "; ".join(f"{line} {', '.join(of_seeds)}" for line, of_seeds in expected.items())
    return [
        *lines,
        "",
        f"The estimated proportions on the geodesics differ from 0.68 by at most {from_nominal:.3f}, and from the "
        f"estimates for the left-out mixtures themselves by at most {from_mean:.3f}.",
        "",
        "The cell lines contain different amounts of mRNA, which are estimated from the equal mixture. With these "
        f"amounts, the following estimates are expected for a proportion of 0.68: {should}.",
    ]
