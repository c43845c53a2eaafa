"""Parts of `differential_expression.py`: replicates, genes that the model lacks, and the order of the genes.

The part `replicates` simulates cells of several donors per group. The expression of every gene differs between donors
by random factors (normal in natural logs). The standard deviation of the donors' factors varies between genes, by a
factor of e^±0.4 around a value that is given for each scene. In paired scenes, each donor also has random factors
within each group, with half the standard deviation of the donors' factors. A donor has between 5 and 300 cells, 60 in
the median. A tenth of the genes changed between the groups (log2 normal, sd 1). The model is trained on the 500 most
variable of 1,000 genes, in 30 epochs.

The part `all_genes` uses the scenes of `differential_expression.py` with 1,000 genes, and models of the 300 most
variable genes.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

import scvae_cli as scvae
from scvae_cli.tools.de.result import DifferentialExpression

THRESHOLD = 0.25
RATES = (0.05, 0.1, 0.2)
N_TOP = 20
# The small simulated data sets need only this number of epochs.
EPOCHS = 30
SORTS = ("bound", "probability", "change")
# Names of truths and methods in the tables, if they differ from the names in the recorded results.
NAMES = {
    "beyond 0.25": "by more than 0.25",
    "Wilcoxon, and 0.25": "Wilcoxon, and change above 0.25",
    "decoded means": "denoised counts (state)",
    "cells' rates": "denoised counts (cell)",
    "de, cells": "de, without replicates",
}
DONOR_SCENES: dict[str, dict[str, Any]] = {
    "no donor effect, 4 + 4": {"sd": 0.0},
    "weak (0.15), 4 + 4": {"sd": 0.15},
    "middle (0.3), 4 + 4": {"sd": 0.3},
    "strong (0.6), 4 + 4": {"sd": 0.6},
    "strong (0.6), 10 + 10": {"sd": 0.6, "n_donors": 10},
    "middle (0.3), 2 + 2": {"sd": 0.3, "n_donors": 2},
    "paired, strong (0.6), 4": {"sd": 0.6, "paired": True},
    "paired, middle (0.3), 2": {"sd": 0.3, "n_donors": 2, "paired": True},
    "null, middle (0.3), 4 + 4": {"sd": 0.3, "share": 0.0},
}
ALL_GENE_SCENES = ("usual", "few", "batches", "unbalanced", "null")


def simulate_donors(
    seed: int, *, sd: float, n_donors: int = 4, paired: bool = False, share: float = 0.1, n_genes: int = 1000
) -> anndata.AnnData:
    """Simulate cells with obs["group"] (A or B), obs["donor"] and the true log2 changes from B to A, var["change"]."""
    rng = np.random.default_rng(3000 + seed)
    base_g = np.exp(rng.normal(0, 1.6, n_genes))
    change_g = np.where(rng.random(n_genes) < share, rng.normal(0, 1, n_genes), 0.0)
    program_g = rng.normal(0, 0.35, n_genes) * (rng.random(n_genes) < 0.3)
    sd_g = sd * np.exp(rng.normal(0, 0.4, n_genes))
    theta_g = np.exp(rng.normal(1.5, 0.9, n_genes)).clip(0.2, 100)
    own = {d: rng.normal(size=n_genes) * sd_g for d in range(2 * n_donors)}
    blocks, obs = [], []
    for side, group in enumerate("AB"):
        for d in range(n_donors):
            donor = d if paired else side * n_donors + d
            effect_g = own[donor] + (rng.normal(size=n_genes) * sd_g / 2 if paired else 0.0)
            n = int(np.clip(60 * np.exp(rng.normal(0, 0.6)), 5, 300))
            log_ng = effect_g + rng.normal(size=(n, 1)) * program_g + np.log(2) * change_g * (group == "A")
            rate_ng = base_g / base_g.sum() * np.exp(log_ng)
            library_n1 = 1500 * np.exp(rng.normal(0, 0.55, (n, 1)))
            blocks.append(rng.poisson(rate_ng * library_n1 * rng.gamma(theta_g, 1 / theta_g, (n, n_genes))))
            obs += [(group, f"donor_{donor}")] * n
    adata = anndata.AnnData(sp.csr_matrix(np.vstack(blocks).astype(np.float32)))
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(adata.n_obs)], [f"g{i}" for i in range(n_genes)]
    adata.obs["group"], adata.obs["donor"] = (pd.Categorical(values) for values in zip(*obs, strict=True))
    adata.var["change"] = change_g
    return adata[:, np.asarray((adata.X > 0).sum(0)).ravel() >= 10].copy()


def measure_donors(scene: str, seed: int, threads: int, deseq2_python: str | None) -> dict[str, Any]:
    """Evaluate one simulation of donors: false discoveries and power of every method."""
    adata = simulate_donors(seed, **DONOR_SCENES[scene])
    model = scvae.train(adata, n_top_genes=500, max_epochs=EPOCHS, seed=seed, threads=threads, device="cpu")
    rates: dict[tuple[str, str], np.ndarray] = {}
    for name, key in (("de --replicate-key donor", "donor"), ("de, cells", None)):
        for truth, threshold in (("beyond 0.25", THRESHOLD), ("at all", 0.0)):
            found = scvae.de(
                adata, model, groupby="group", group="A", reference="B", replicate_key=key, threshold=threshold,
                seed=seed, inplace=False,
            )  # fmt: skip
            rates[name, truth] = in_order(found, found.expected_fdr_g, adata)
    if deseq2_python is not None:
        paired = DONOR_SCENES[scene].get("paired", False)
        rates |= {("DESeq2, pseudobulk", truth): p_g for truth, p_g in deseq2(adata, deseq2_python, paired).items()}
    return {"scene": scene, "seed": seed, "rows": scored(rates, adata.var["change"].to_numpy())}


def deseq2(adata: anndata.AnnData, python: str, paired: bool) -> dict[str, np.ndarray]:
    """Compute adjusted p-values of DESeq2 on the sums of each donor's cells in each group, for both truths."""
    sample_n = adata.obs["group"].astype(str) + " " + adata.obs["donor"].astype(str)
    samples = sorted(set(sample_n))
    counts_sg = np.stack([np.asarray(adata.X[(sample_n == s).to_numpy()].sum(0)).ravel() for s in samples])
    group_s, replicate_s = (np.asarray([s.split(" ")[k] for s in samples]) for k in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder) / "given.npz", Path(folder) / "result.npz"
        np.savez(
            given, counts_sg=counts_sg, group_s=group_s, replicate_s=replicate_s, paired=paired, threshold=THRESHOLD
        )
        script = Path(__file__).with_name("differential_expression_deseq2.py")
        subprocess.run([python, str(script), str(given), str(result)], check=True, capture_output=True)
        adjusted = np.load(result)
        return {"at all": adjusted["at_all"], "beyond 0.25": adjusted["beyond"]}


def in_order(found: DifferentialExpression, values_g: np.ndarray, adata: anndata.AnnData) -> np.ndarray:
    """Return values of the genes in the order of the data; genes that were not tested get the value 1."""
    return np.nan_to_num(pd.Series(values_g, index=list(found.genes)).loc[adata.var_names].to_numpy(), nan=1)


def scored(rates: dict[tuple[str, str], np.ndarray], change_g: np.ndarray) -> list[dict[str, Any]]:
    """Return for each method, truth and rate: the called genes, the false calls, and the power."""
    truths = {"beyond 0.25": np.abs(change_g) > THRESHOLD, "at all": change_g != 0}
    rows = []
    for (method, truth), rate_g in rates.items():
        for rate in RATES:
            called_g, true_g = rate_g <= rate, truths[truth]
            row = {"method": method, "truth": truth, "rate": rate, "called": int(called_g.sum())}
            row |= {"false": int((called_g & ~true_g).sum())}
            rows.append(row | {"power": float(called_g[true_g].mean()) if true_g.any() else None})
    return rows


def measure_all_genes(
    scene: str, seed: int, threads: int, adata: anndata.AnnData, wilcoxon_g: np.ndarray
) -> dict[str, Any]:
    """Evaluate one simulation with a model of few genes: both kinds of genes, and the first genes of every order.

    `wilcoxon_g` are the adjusted p-values of scanpy's test.
    """
    batch_key = "batch" if scene == "batches" else None
    model = scvae.train(
        adata, n_top_genes=300, max_epochs=EPOCHS, seed=seed, threads=threads, device="cpu", batch_key=batch_key
    )
    change_g, first = adata.var["change"].to_numpy(), {}
    for sort in SORTS:
        found = scvae.de(
            adata, model, groupby="group", group="A", reference="B", seed=seed, sort=sort, inplace=False
        )  # fmt: skip
        size_g = pd.Series(np.abs(change_g), index=adata.var_names)
        top = size_g.loc[[found.genes[g] for g in found.ranked[:N_TOP]]].to_numpy()
        best = np.sort(np.abs(change_g))[-N_TOP:].mean()
        first[sort] = {"mean": float(top.mean()), "best": float(best), "false": int((top <= THRESHOLD).sum())}
    rate_g = in_order(found, found.expected_fdr_g, adata)
    modeled_g = np.isin(adata.var_names, model.genes)
    rows = []
    for kind, mask_g in (("modeled genes", modeled_g), ("other genes", ~modeled_g), ("all genes", modeled_g | True)):
        rates = {("de", "beyond 0.25"): rate_g[mask_g], ("Wilcoxon", "beyond 0.25"): wilcoxon_g[mask_g]}
        rows += [row | {"genes": kind, "n": int(mask_g.sum())} for row in scored(rates, change_g[mask_g])]
    return {"scene": scene, "seed": seed, "rows": rows, "first": first}


def text_of_donors(runs: list[dict[str, Any]]) -> list[str]:
    """Format the table of the replicates."""
    lines = ["", "## Replicates", ""]
    lines += [f"`benchmarks/differential_expression_donors.py` says how cells of donors are simulated. {_seeds(runs)}"]
    lines += ["The standard deviation between donors is given in natural logs.", ""]
    return lines + _table(runs, ("scene", "truth", "method"))


def text_of_all_genes(runs: list[dict[str, Any]]) -> list[str]:
    """Format the tables of the genes that the model lacks, and of the order of genes."""
    lines = ["", "## Genes that the model lacks", ""]
    lines += [
        "The models contain only the 300 most variable genes. A gene counts as changed if it changed by more than "
        f"{THRESHOLD} (log2). Genes are called at a false discovery rate among all genes. {_seeds(runs)}"
    ]
    lines += ["", *_table(runs, ("scene", "genes", "method"))]
    lines += ["", f"## Order of the genes: the first {N_TOP}", ""]
    lines += [
        f"Mean size of the true changes (log2) of the first {N_TOP} genes, and number of genes among them that changed "
        f"by {THRESHOLD} or less, for each order of `--sort`. For comparison: the {N_TOP} genes with the largest true "
        "changes.",
        "",
    ]
    lines += ["| scene | largest changes | " + " | ".join(f"--sort {sort} | false" for sort in SORTS) + " |"]
    lines += ["|---|---|" + "---|---|" * len(SORTS)]
    for scene in dict.fromkeys(run["scene"] for run in runs if run["scene"] != "null"):
        same = [run["first"] for run in runs if run["scene"] == scene]
        cells = [f"{np.mean([first[SORTS[0]]['best'] for first in same]):.2f}"]
        for sort in SORTS:
            mean, false = (np.mean([first[sort][key] for first in same]) for key in ("mean", "false"))
            cells += [f"{mean:.2f}", f"{false:.1f}"]
        lines.append(f"| {scene} | {' | '.join(cells)} |")
    return lines


def _seeds(runs: list[dict[str, Any]]) -> str:
    return f"Seeds: {', '.join(str(seed) for seed in sorted({run['seed'] for run in runs}))}."


def _table(runs: list[dict[str, Any]], columns: tuple[str, ...]) -> list[str]:
    """Compute false discovery proportions (false calls of all seeds divided by all calls) and mean power."""
    rates = " | ".join(f"FDP at {rate:.0%} | power" for rate in RATES)
    heads = {"truth": "changed"}
    lines = [f"| {' | '.join(heads.get(column, column) for column in columns)} | {rates} | called genes at 5% |"]
    lines += ["|---|" + "---|" * (len(columns) + 2 * len(RATES))]
    rows = [row | {"scene": run["scene"]} for run in runs for row in run["rows"]]
    for key in dict.fromkeys(tuple(row[column] for column in columns) for row in rows):
        cells = []
        for rate in RATES:
            same = [row for row in rows if tuple(row[c] for c in columns) == key and row["rate"] == rate]
            called, false = (sum(row[name] for row in same) for name in ("called", "false"))
            powers = [row["power"] for row in same if row["power"] is not None]
            cells += [f"{false / called:.1%}" if called else "–", f"{np.mean(powers):.1%}" if powers else "–"]
            if rate == RATES[0]:
                mean_called = f"{called / len(same):.1f}"
        row_names = [NAMES.get(value, value) for value in key]
        lines.append(f"| {' | '.join(row_names)} | {' | '.join(cells)} | {mean_called} |")
    return lines
