"""False discovery rate and power of `scvae de`, compared with a Wilcoxon test.

    python benchmarks/differential_expression.py [--data-folder FOLDER] [--parts cells,kang,all_genes,replicates]
        [--seeds 0,1,2,3,4] [--threads 2] [--deseq2-python PYTHON]

Parts that are not requested keep the results of earlier runs. `differential_expression_donors.py` describes the parts
`all_genes` (genes that the model lacks, and the order of genes) and `replicates` (donors). The part `replicates` is
also measured with DESeq2 if PYTHON has pydeseq2.

The part `cells` simulates 1,000 genes in two groups of one population and in 600 cells of two other populations. The
two groups differ in known genes by known factors (log2 normal, sd 1). Counts are negative binomial with varying library
sizes (median 1,500) and 2% additional zeros. All populations share two continuous gene programs. A model is trained on
all cells. The shares of unchanged genes stay constant, except in the scene "unbalanced". The scenes are:

- usual: 300 against 300 cells, 10% of the genes changed; few: 60 against 60 cells; unequal: 30 against 500 cells; many:
  30% of the genes changed; shallow: 400 counts per cell; null: no gene changed;
- batches: two batches; four fifths of the cells of one group are in the first batch, and four fifths of the other group
  are in the second batch; the model is trained with the batches;
- unbalanced: 20% of the genes changed. The changed genes rise by 1 (log2) on average and take up more of the counts, so
  the shares of the other genes fall.

Each method is evaluated at expected false discovery rates (for Wilcoxon: Benjamini–Hochberg) of 5%, 10% and 20%:

- `de` calls genes that changed by more than 0.25 (log2), and is compared with the genes that truly changed by more
  than 0.25. `de --threshold 0` calls genes that changed at all, and is compared with all genes that changed.
- Wilcoxon: scanpy's `rank_genes_groups` on log1p of counts normalized to 10,000. The Wilcoxon test has the null
  hypothesis of no change at all, ignores batches, and is compared with both sets of changed genes. "Wilcoxon, and
  change above 0.25" calls only genes whose log2 fold change also exceeds 0.25.
- "denoised counts (state)" and "denoised counts (cell)": results of `scvae denoise` (`--estimate state` and `cell`),
  averaged over the cells of each group within batches. The means and their standard errors are shrunk as in `de`. The
  denoised counts show what the decoder alone achieves.

The part `kang` compares real cells treated with interferon β with control cells, within three populations
(kang_muscat_2donors). The benchmark counts the known interferon targets among the rising genes that are most certain.
In addition, the control cells of one population are divided into two random halves, ten times. Genes that are called in
a comparison of two halves are false calls. The two donors are also used as replicates.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from differential_expression_donors import (
    ALL_GENE_SCENES,
    DONOR_SCENES,
    NAMES,
    SORTS,
    measure_all_genes,
    measure_donors,
    text_of_all_genes,
    text_of_donors,
)
from timed import describe_machine

import scvae_cli as scvae
from scvae_cli.model.bundle import Model
from scvae_cli.tools.de.result import DifferentialExpression
from scvae_cli.tools.de.shrinkage import expected_fdr, shrink

HERE = Path(__file__).parent
RATES, THRESHOLD = (0.05, 0.1, 0.2), 0.25
SCENES: dict[str, dict[str, Any]] = {
    "usual": {},
    "few": {"n_a": 60, "n_b": 60},
    "unequal": {"n_a": 30, "n_b": 500},
    "many": {"share": 0.3},
    "shallow": {"depth": 400.0},
    "batches": {"n_batches": 2},
    "unbalanced": {"share": 0.2, "rise": 1.0, "balanced": False},
    "null": {"share": 0.0},
}
BINS = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95, 1.0)
POPULATIONS = ("CD14+ Monocytes", "B cells", "CD4 T cells")
N_TOP, N_SPLITS = 20, 10
# Genes known to be induced by interferons; nearly all of them are in MSigDB's hallmark responses.
INTERFERON = """
    ADAR B2M BATF2 BST2 CASP1 CCL2 CCL8 CMPK2 CXCL10 CXCL11 DDX58 DDX60 DHX58 EIF2AK2 EPSTI1 GBP1
    GBP2 GBP4 GBP5 HERC5 HERC6 HLA-A HLA-B HLA-C HLA-E HLA-F IDO1 IFI16 IFI27 IFI30 IFI35 IFI44 IFI44L IFI6 IFIH1 IFIT1
    IFIT2 IFIT3 IFIT5 IFITM1 IFITM2 IFITM3 IRF1 IRF7 IRF8 IRF9 ISG15 ISG20 LAP3 LGALS3BP LY6E MT2A MX1 MX2
    NAMPT NMI OAS1 OAS2 OAS3 OASL PARP12 PARP14 PARP9 PLSCR1 PNPT1 PSMA2 PSMB8 PSMB9 PSME1 PSME2 RSAD2 RTP4
    SAMD9 SAMD9L SOCS1 SP100 SP110 STAT1 STAT2 TAP1 TDRD7 TNFSF10 TNFSF13B TRIM22 UBE2L6 USP18 WARS XAF1 ZBP1
"""


def simulate(
    seed: int,
    *,
    n_a: int = 300,
    n_b: int = 300,
    n_other: int = 600,
    n_genes: int = 1000,
    share: float = 0.1,
    rise: float = 0.0,
    balanced: bool = True,
    depth: float = 1500.0,
    n_batches: int = 1,
) -> anndata.AnnData:
    """Simulate cells with obs["group"], obs["batch"] and the true log2 changes from B to A, var["change"]."""
    rng = np.random.default_rng(1000 + seed)
    n, n_ab, g = n_a + n_b + n_other, n_a + n_b, n_genes
    kind_n = np.repeat([0, 1, 2], [n_ab, n_other // 2, n_other - n_other // 2])
    kind_3g = np.vstack([np.zeros(g), rng.normal(0, 1, (2, g)) * (rng.random((2, g)) < 0.3)])
    program_2g = rng.normal(0, 0.35, (2, g)) * (rng.random((2, g)) < 0.3)
    rate_ng = np.exp(rng.normal(0, 1.6, g) + kind_3g[kind_n] + rng.normal(size=(n, 2)) @ program_2g)
    rate_ng /= rate_ng.sum(1, keepdims=True)
    changed_g = rng.random(g) < share
    change_g = np.where(changed_g, rng.normal(rise, 1.0, g), 0.0)
    mean_g = rate_ng[:n_ab].mean(0)
    if balanced and changed_g.any():
        change_g[changed_g] -= np.log2((mean_g * 2**change_g)[changed_g].sum() / mean_g[changed_g].sum())
    rate_ng[:n_a] *= 2**change_g
    batch_n = np.zeros(n, dtype=np.int64)
    if n_batches > 1:
        batch_n = rng.integers(0, n_batches, n)
        batch_n[:n_a], batch_n[n_a:n_ab] = rng.random(n_a) < 0.2, rng.random(n_b) < 0.8
        rate_ng *= np.exp(rng.normal(0, 0.3, (n_batches, g)))[batch_n]
    if not balanced:
        # The library size of a cell depends on the sequencing, and not on the expression of the genes.
        rate_ng /= rate_ng.sum(1, keepdims=True)
    log_mean_g = (np.log(mean_g) - np.log(mean_g).mean()) / np.log(mean_g).std()
    theta_g = np.exp(1.5 + 0.33 * log_mean_g + math.sqrt(1 - 0.33**2) * rng.normal(size=g)).clip(0.2, 100)
    library_n = depth * np.exp(rng.normal(0, 0.55, n))
    x_ng = rng.poisson(rate_ng * library_n[:, None] * rng.gamma(theta_g, 1 / theta_g, (n, g)))
    x_ng[rng.random((n, g)) < 0.04 * rng.random(g)] = 0
    adata = anndata.AnnData(sp.csr_matrix(x_ng.astype(np.float32)))
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(n)], [f"g{i}" for i in range(g)]
    adata.obs["group"] = pd.Categorical(np.repeat(["A", "B", "other"], [n_a, n_b, n_other]))
    adata.obs["batch"] = pd.Categorical([f"batch_{b}" for b in batch_n])
    adata.var["change"] = change_g
    return adata[:, np.asarray((adata.X > 0).sum(0)).ravel() >= 10].copy()


def measure(scene: str, seed: int, threads: int) -> dict[str, Any]:
    """Evaluate one simulation: for every method, rate and truth, the called genes, the false calls, and the power."""
    adata = simulate(seed, **SCENES[scene])
    batch_key = "batch" if scene == "batches" else None
    model = scvae.train(adata, genes="all", seed=seed, threads=threads, device="cpu", batch_key=batch_key)
    asked = {"groupby": "group", "group": "A", "reference": "B", "seed": seed, "inplace": False}
    beyond, at_all = (scvae.de(adata, model, threshold=t, **asked) for t in (THRESHOLD, 0.0))
    assert beyond is not None
    assert at_all is not None
    change_g = adata.var["change"].to_numpy()
    truths = {"beyond 0.25": np.abs(change_g) > THRESHOLD, "at all": change_g != 0}
    wilcoxon = tested_by_wilcoxon(adata)
    large_g = np.abs(wilcoxon["logfoldchanges"].to_numpy()) > THRESHOLD
    p_g = wilcoxon["pvals_adj"].to_numpy()
    rates = {
        ("de", "beyond 0.25"): np.nan_to_num(beyond.expected_fdr_g, nan=1),
        ("de --threshold 0", "at all"): np.nan_to_num(at_all.expected_fdr_g, nan=1),
        ("Wilcoxon", "beyond 0.25"): p_g,
        ("Wilcoxon", "at all"): p_g,
        ("Wilcoxon, and 0.25", "beyond 0.25"): np.where(large_g, p_g, 1),
    }
    for name, estimate in (("decoded means", "state"), ("cells' rates", "cell")):
        rates[name, "beyond 0.25"] = decoded_alone(adata, model, estimate)
    rows = []
    for (method, truth), rate_g in rates.items():
        for rate in RATES:
            called_g, true_g = rate_g <= rate, truths[truth]
            n_false = int((called_g & ~true_g).sum())
            row = {"method": method, "truth": truth, "rate": rate, "called": int(called_g.sum()), "false": n_false}
            rows.append(row | {"power": float(called_g[true_g].mean()) if true_g.any() else None})
    error_g = (beyond.change_g - change_g)[beyond.tested]
    return {
        "scene": scene,
        "seed": seed,
        "rows": rows,
        "calibration": calibration(beyond, truths["beyond 0.25"]),
        "inside": float(((change_g >= beyond.low_g) & (change_g <= beyond.high_g))[beyond.tested].mean()),
        "rmse": {"de": rms(error_g), "raw": rms((beyond.raw_g - change_g)[np.isfinite(beyond.raw_g)])},
        "shift": beyond.common_change,
        "centre": beyond.centre,
    }


def rms(value: np.ndarray) -> float:
    """Compute the root mean square."""
    return float(np.sqrt(np.mean(value**2)))


def calibration(result: DifferentialExpression, true_g: np.ndarray) -> list[list[float]]:
    """Compute for bins of the probability: number of genes, sum of their probabilities, and number of changed genes."""
    p, true = result.probability_g[result.tested], true_g[result.tested]
    bin_t = np.clip(np.searchsorted(BINS, p, side="right") - 1, 0, len(BINS) - 2)
    return [[float(f) for f in (len(p[bin_t == b]), p[bin_t == b].sum(), true[bin_t == b].sum())] for b in range(6)]


def tested_by_wilcoxon(adata: anndata.AnnData) -> pd.DataFrame:
    """Run scanpy's test of A against B; one row per gene, in the order of the genes."""
    both = adata[adata.obs["group"].isin(["A", "B"])].copy()
    sc.pp.normalize_total(both, target_sum=1e4)
    sc.pp.log1p(both)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(both, "group", groups=["A"], reference="B", method="wilcoxon")
    return sc.get.rank_genes_groups_df(both, "A").set_index("names").loc[adata.var_names]


def decoded_alone(adata: anndata.AnnData, model: Model, estimate: str) -> np.ndarray:
    """Compute expected false discovery rates from means of denoised cells, shape (g,)."""
    denoised = scvae.denoise(adata, model, estimate=estimate, library="median", inplace=False)
    assert denoised is not None
    rate_ng = denoised.rows.whole().astype(np.float64)
    group_n, batch_n = adata.obs["group"].to_numpy(), adata.obs["batch"].to_numpy()
    pairs = [[rate_ng[(group_n == group) & (batch_n == b)] for group in "AB"] for b in np.unique(batch_n)]
    share_s = np.asarray([len(a) * len(b) / (len(a) + len(b)) for a, b in pairs])
    share_s /= share_s.sum()
    log_mean, variance_g = [], np.zeros(adata.n_vars)
    for side in (0, 1):
        mean_g = sum(share * pair[side].mean(0) for share, pair in zip(share_s, pairs, strict=True))
        of_mean = (share**2 * pair[side].var(0) / len(pair[side]) for share, pair in zip(share_s, pairs, strict=True))
        variance_g = variance_g + sum(of_mean) / mean_g**2
        log_mean.append(np.log2(mean_g))
    error_g = np.maximum(np.sqrt(variance_g) / math.log(2), 1e-6)
    return expected_fdr(shrink(log_mean[0] - log_mean[1], error_g).log_probability_within(THRESHOLD))


def measure_kang(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate the real cells: most certain rising genes of three populations, and calls between halves of control
    cells.
    """
    adata = anndata.read_h5ad(arguments.data_folder / "kang_muscat_2donors.h5ad")
    model = scvae.train(adata, genes="all", seed=0, threads=arguments.threads, device="cpu", batch_key="donor")
    kang: dict[str, Any] = {"populations": {}, "splits": []}
    for population in POPULATIONS:
        found = scvae.de(
            adata, model, groupby="condition", group="stim", reference="ctrl", within={"cell_type": population},
            inplace=False,
        )  # fmt: skip
        assert found is not None
        # The most certain genes come first, regardless of the order of the results.
        rising = [found.genes[g] for g in found.order if found.change_g[g] > 0]
        known = [gene.split("_ENSG")[0] in INTERFERON.split() for gene in rising]
        donors = scvae.de(
            adata, model, groupby="condition", group="stim", reference="ctrl", within={"cell_type": population},
            replicate_key="donor", inplace=False,
        )  # fmt: skip
        assert donors is not None
        kang["populations"][population] = {
            "between_donors": {"called": int(donors.called.sum()), "known_called": known_among(donors)},
            "first_by": {sort: known_first(found, sort) for sort in SORTS},
            "cells": [found.n_group, found.n_reference],
            "called": int(found.called.sum()),
            "shift": found.common_change,
            "centre": found.centre,
            "top": rising[:N_TOP],
            "known_of_top": int(sum(known[:N_TOP])),
            "known_in_data": int(sum(gene.split("_ENSG")[0] in INTERFERON.split() for gene in found.genes)),
            "known_called": int(
                sum(k and found.called[found.genes.index(g)] for g, k in zip(rising, known, strict=True))
            ),
        }
    for population, called, wilcoxon in split_controls(adata, model):
        kang["splits"].append({"population": population, "de": called, "Wilcoxon": wilcoxon})
    return kang


def is_known(gene: str) -> bool:
    """Whether a gene is known to be induced by interferons."""
    return gene.split("_ENSG")[0] in INTERFERON.split()


def known_among(found: DifferentialExpression) -> int:
    """Return the known genes among those that are called as rising."""
    rising_g = found.called & (found.change_g > 0)
    return sum(is_known(found.genes[g]) for g in np.flatnonzero(rising_g))


def known_first(found: DifferentialExpression, sort: Any) -> int:
    """Return the known genes among the first rising genes of an order."""
    sorted_by = replace(found, options=replace(found.options, sort=sort))
    return sum(is_known(found.genes[g]) for g in [g for g in sorted_by.ranked if found.change_g[g] > 0][:N_TOP])


def split_controls(adata: anndata.AnnData, model: Model) -> Iterator[tuple[str, int, int]]:
    """Divide control cells of a population into two random halves, and count the genes called at 5% by both methods."""
    rng = np.random.default_rng(0)
    for split in range(N_SPLITS):
        population = POPULATIONS[split % len(POPULATIONS)]
        inside = (adata.obs["cell_type"] == population) & (adata.obs["condition"] == "ctrl")
        half = adata[inside.to_numpy()].copy()
        half.obs["group"] = pd.Categorical(rng.permutation(np.resize(["A", "B"], half.n_obs)))
        found = scvae.de(half, model, groupby="group", group="A", reference="B", inplace=False)
        assert found is not None
        p_g = tested_by_wilcoxon(half)["pvals_adj"].to_numpy()
        yield population, int(found.called.sum()), int((p_g <= found.options.fdr).sum())


def text(results: dict[str, Any]) -> str:
    """Format the results as markdown."""
    lines = ["# Differential expression", "", "Written by `benchmarks/differential_expression.py`; its docstring says"]
    lines += ["what is measured."]
    lines += text_of_cells(results["runs"]) if results["runs"] else []
    lines += text_of_all_genes(results["all_genes"]) if results.get("all_genes") else []
    lines += text_of_donors(results["replicates"]) if results.get("replicates") else []
    lines += text_of_kang(results["kang"]) if results.get("kang") else []
    lines += ["", *(f"{part}: {machine}" for part, machine in results["machines"].items())]
    return "\n".join([*lines, ""])


def text_of_cells(runs: list[dict[str, Any]]) -> list[str]:
    """Format the part of the simulated cells without donors."""
    seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in runs}))
    lines = [
        "",
        "## False discovery proportion and power",
        "",
        "FDP is the share of the called genes that did not change, at expected false discovery rates of 5%, 10% and "
        '20%. The column "changed" says which genes count as changed (log2). Power is the share of the changed genes '
        "that are called. The docstring describes scenes and methods. Means over the "
        f"seeds {seeds}.",
        "",
    ]
    rates = " | ".join(f"FDP at {rate:.0%} | power" for rate in RATES)
    lines += [f"| scene | changed | method | {rates} |", "|---|---|---|" + "---|" * (2 * len(RATES))]
    scenes = list(dict.fromkeys(run["scene"] for run in runs))
    for scene in scenes:
        rows = [row for run in runs if run["scene"] == scene for row in run["rows"]]
        kinds = sorted(
            {(row["truth"], row["method"]) for row in rows}, key=lambda kind: (kind[0] != "beyond 0.25", kind[1])
        )
        for truth, method in kinds:
            cells = []
            for rate in RATES:
                same = [r for r in rows if (r["truth"], r["method"], r["rate"]) == (truth, method, rate)]
                cells.append(f"{np.mean([r['false'] / max(r['called'], 1) for r in same]):.1%}")
                powers = [r["power"] for r in same if r["power"] is not None]
                cells.append(f"{np.mean(powers):.1%}" if powers else "–")
            lines.append(f"| {scene} | {NAMES.get(truth, truth)} | {NAMES.get(method, method)} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Probabilities",
        "",
        f"Genes of all scenes and seeds, by the probability that `de` gives to a change by more than {THRESHOLD} "
        "(log2). If the probabilities are calibrated, the share of changed genes equals the mean probability.",
    ]
    lines += ["", "| probability | genes | mean probability | changed genes |", "|---|---|---|---|"]
    for b, (n, p, true) in enumerate(np.sum([run["calibration"] for run in runs], axis=0)):
        shares = f"{p / n:.1%} | {true / n:.1%}" if n else "– | –"
        lines.append(f"| {BINS[b]:g} to {BINS[b + 1]:g} | {n:,.0f} | {shares} |")
    lines += [
        "",
        "Root mean squared errors (RMSE) of the log2 changes, and the change that most genes share.",
        "",
        "| scene | true changes inside the 90% interval | RMSE of `de` | RMSE of the raw ratio | shared change |",
    ]
    lines += ["|---|---|---|---|---|"]
    for scene in scenes:
        same = [run for run in runs if run["scene"] == scene]
        errors = " | ".join(f"{np.mean([run['rmse'][kind] for run in same]):.3f}" for kind in ("de", "raw"))
        inside, shift = (np.mean([run[key] for run in same]) for key in ("inside", "shift"))
        lines.append(f"| {scene} | {inside:.1%} | {errors} | {shift:+.3f} |")
    return lines


def text_of_kang(kang: dict[str, Any]) -> list[str]:
    """Format the part of the real cells."""
    lines = ["", "## Interferon β against control (kang_muscat_2donors)", ""]
    lines += [
        "Genes that `de` calls at 5%, the change that most genes share (log2), and the known interferon targets among "
        f"the {N_TOP} rising genes with the highest probability and among all called genes.",
        "",
        f"| population | cells | called genes | shared change | known targets among the first {N_TOP} "
        f"| known targets called | the first {N_TOP} |",
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    fate = {"bulk": "subtracted", "none": "not subtracted"}
    for name, found in kang["populations"].items():
        cells = " + ".join(str(n) for n in found["cells"])
        shift = f"{found['shift']:+.2f}, {fate[found['centre']]}"
        lines.append(
            f"| {name} | {cells} | {found['called']} | {shift} | {found['known_of_top']} | {found['known_called']} "
            f"of {found['known_in_data']} | {', '.join(found['top'])} |"
        )
    lines += ["", f"False calls at 5% between random halves of control cells ({len(kang['splits'])} divisions): "]
    lines[-1] += "; ".join(f"{kind} {', '.join(str(s[kind]) for s in kang['splits'])}" for kind in ("de", "Wilcoxon"))
    lines[-1] += "."
    if not all("between_donors" in found for found in kang["populations"].values()):
        return lines
    lines += [
        "",
        "Genes called at 5% if the cells, or the two donors (`--replicate-key donor`), are the replicates. Both donors "
        f"are in both conditions. The last columns count the known targets among the first {N_TOP} rising genes for "
        "each order of `--sort`.",
        "",
        "| population | called genes, cells | called genes, donors | known targets called, cells "
        "| known targets called, donors | " + " | ".join(f"--sort {sort}" for sort in SORTS) + " |",
    ]
    lines += ["|---|---|---|---|---|" + "---|" * len(SORTS)]
    for name, found in kang["populations"].items():
        donors = found["between_donors"]
        numbers = [found["called"], donors["called"], found["known_called"], donors["known_called"]]
        lines.append(f"| {name} | {' | '.join(map(str, [*numbers, *found['first_by'].values()]))} |")
    return lines


def main() -> None:
    """Measure everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument(
        "--parts",
        default="cells,kang,all_genes,replicates",
        help="parts, separated by commas; if empty, only the tables are made",
    )
    parser.add_argument("--scenes", help="simulated scenes, separated by commas; all by default")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--deseq2-python", help="a Python with pydeseq2")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "differential_expression.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stored = arguments.results.with_suffix(".json")
    results: dict[str, Any] = json.loads(stored.read_text()) if stored.exists() else {"runs": [], "kang": None}
    parts = [part for part in arguments.parts.split(",") if part]
    asked = arguments.scenes.split(",") if arguments.scenes else None
    for part, key, scenes in (
        ("cells", "runs", SCENES), ("all_genes", "all_genes", ALL_GENE_SCENES),
        ("replicates", "replicates", DONOR_SCENES),
    ):  # fmt: skip
        if part not in parts:
            continue
        for scene in scenes if asked is None else asked:
            for seed in arguments.seeds:
                before = [run for run in results.get(key, []) if (run["scene"], run["seed"]) != (scene, seed)]
                results[key] = [*before, measure_part(part, scene, seed, arguments)]
                # Results so far are kept if the run is stopped.
                stored.write_text(json.dumps(results) + "\n")
                print(part, scene, seed, flush=True)
    if "kang" in parts and (arguments.data_folder / "kang_muscat_2donors.h5ad").exists():
        results["kang"] = measure_kang(arguments)
    machine = f"{describe_machine(arguments.threads)}; torch {torch.__version__}; {date.today().isoformat()}"
    results["machines"] = results.get("machines", {}) | dict.fromkeys(parts, machine)
    arguments.results.write_text(text(results))
    stored.write_text(json.dumps(results) + "\n")
    print(text(results))


def measure_part(part: str, scene: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Do one run of a simulated part."""
    if part == "cells":
        return measure(scene, seed, arguments.threads)
    if part == "replicates":
        return measure_donors(scene, seed, arguments.threads, arguments.deseq2_python)
    adata = simulate(seed, **SCENES[scene])
    return measure_all_genes(scene, seed, arguments.threads, adata, tested_by_wilcoxon(adata)["pvals_adj"].to_numpy())


if __name__ == "__main__":
    main()
