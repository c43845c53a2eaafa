"""How accurately does `scvae perturb` predict unobserved cells, and is its own estimate of the accuracy correct?

    python benchmarks/perturbation.py [--data-folder FOLDER] [--seeds 0,1,2] [--threads 2]
        [--parts kang,null,simulated] [--groups "B cells"]

The part `kang` uses PBMC with and without interferon β (Kang et al. 2018). The stimulated cells of one cell type at a
time are removed from the data, a model is trained on the other cells, and `perturb` predicts the removed cells. The
change of a gene is the difference of mean log(1 + 10⁴·count/library) between stimulated and control cells. The
benchmark reports the correlation (Pearson) of predicted and true changes, over all genes and over the 50 most
significant genes (Welch's t). The baselines are no change (0), the mean change of the other types, the mean change
weighted by similarity (the weights of `--method centroid`), and latent arithmetic (the decoded change alone, with both
methods). The accuracy that `perturb` itself estimates is the mean accuracy over the other types. The estimated accuracy
is given with `--retrain` (models trained without the cells that are left out) and without `--retrain`. Errors in the
size of the changes are measured by the root mean squared error and by slopes through zero, over all genes and over the
50 most significant genes. Slopes of predicted on observed changes (below 1: underestimated) and of observed on
predicted changes are given.

The part `null` measures how often the test by permuted labels detects a change. The test is applied to the cells of
Kang et al. with labels permuted within each type, and to simulated groups with gene programs of known size (0 for no
effect). In a part of the simulated groups, the treated cells were sequenced half as deeply as the control cells.

The part `simulated` combines two perturbations, B and C. Six groups have cells under B, under C, under both
perturbations and under neither; the cells of two groups under both perturbations are removed. The effects are gene
programs in log expression, of which the groups share four fifths. The joint effect is the sum in logs, the sum in
expression, a sum that saturates, or a sum with a third program that neither perturbation induces alone. Either the
other groups of cells have received both perturbations, or no group has received both perturbations.
"Additive" is the sum of the two single changes of the group itself.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from timed import describe_machine

import scvae_cli as scvae
from scvae_cli.api import PythonShell
from scvae_cli.data.counts import Counts
from scvae_cli.session import Session
from scvae_cli.tools.perturb.design import design
from scvae_cli.tools.perturb.label_permutation import permutation_test
from scvae_cli.tools.perturb.observed_change import Observed, accuracy
from scvae_cli.tools.perturb.options import PERTURB, PerturbOptions
from scvae_cli.tools.perturb.prediction import Predictor
from scvae_cli.tools.perturb.question import Perturb
from scvae_cli.tools.perturb.tested_change import LEVEL, Tested
from scvae_cli.verb import Request

HERE = Path(__file__).parent
N_GROUPS, N_GENES, N_CELLS, N_TRUE, DEPTH = 6, 400, 80, 400, 2000.0
# Number of data sets, for each kind and seed, to which the test for a change is applied.
N_NULL = 50
NAMES = {
    "mean change of the others": "mean change of the other groups",
    "that, weighted by similarity": "mean change of the other groups, weighted by similarity",
}
KINDS = ("sum in logs", "sum in expression", "saturating", "third program")


def question(session: Session, **asked: Any) -> Perturb:
    """Prepare `scvae perturb` for a session, without computing the prediction."""
    request = Request(verb=PERTURB, data=None, model=session.model, options=PerturbOptions(**asked))
    return Perturb(session, request, PythonShell(PERTURB))


# --- cell types left out ----------------------------------------------------------------------------------------------


def fit_of(change_g: np.ndarray, true_g: np.ndarray, top: np.ndarray) -> dict[str, float]:
    """Compute accuracy, and the slopes of predicted on observed changes and of observed on predicted changes."""

    def slope(of_g: np.ndarray, on_g: np.ndarray) -> float:
        return float(of_g @ on_g / max(on_g @ on_g, 1e-12))

    return accuracy(change_g, true_g, top)._asdict() | {
        "slope": slope(change_g, true_g),
        "inverse_slope": slope(true_g, change_g),
        "top_inverse_slope": slope(true_g[top], change_g[top]),
    }


def left_out_types(
    folder: Path, seeds: list[int], threads: int, groups: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Return a row for every cell type and seed."""
    adata = anndata.read_h5ad(folder / "kang_muscat_2donors.h5ad")
    type_n, condition_n = (adata.obs[key].astype(str).to_numpy() for key in ("cell_type", "condition"))
    for seed in seeds:
        for group in groups or sorted(set(type_n)):
            kept = ~((type_n == group) & (condition_n == "stim"))
            # The session `whole` contains all cells, and is used only to compute the true change.
            model = scvae.train(adata[kept].copy(), seed=seed, threads=threads, device="cpu")
            asked = {"perturbation_key": "condition", "control": "ctrl", "treated": "stim"}
            asked |= {"groupby": "cell_type", "group": group}
            session = Session.open(adata[kept].copy(), model, device="cpu")
            whole = Session.open(adata, model, device="cpu")
            full = question(whole, **asked).design
            truth = Observed(whole.counts)
            true_g, top = truth.change(full), truth.most_significant(full)
            row: dict[str, Any] = {"group": group, "seed": seed, "fits": {}, "promised": {}, "recipe": {}}
            for name, retrain in (("perturb", False), ("perturb --retrain", True)):
                asked_now = question(session, **asked, retrain=retrain)
                result = asked_now.answer()
                row["fits"][name] = fit_of(result.changes.change_g, true_g, top)
                expected = result.mean_accuracy()
                assert expected is not None
                row["promised"][name] = expected._asdict()
                recipe = result.recipe
                row["recipe"][name] = f"{recipe.method}, {recipe.mean_shift_share:g}, {recipe.scale:.2f}"
                row["checks"] = [check.as_dict() for check in result.checks]
            known, predictor = asked_now.design, Predictor.of(model, asked_now.counts, cells=session.cells)
            for method in ("centroid", "ot"):
                change_g = predictor.changes(known, method, (0.0,))[0]
                row["fits"][f"latent arithmetic, {method}"] = fit_of(change_g, true_g, top)
            sources = known.sources
            changes = np.stack([truth.change(replace(full, group=other)) for other in sources])
            weights_s = predictor.latent.weights(known, sources)
            row["fits"]["mean change of the others"] = fit_of(changes.mean(0), true_g, top)
            row["fits"]["that, weighted by similarity"] = fit_of(weights_s @ changes, true_g, top)
            row["fits"]["no change"] = fit_of(np.zeros_like(true_g), true_g, top)
            yield row


# --- no change --------------------------------------------------------------------------------------------------------


def tested(adata: anndata.AnnData, label_n: np.ndarray, group_n: np.ndarray, seed: int) -> Tested:
    """Apply the test by permuted labels to all groups."""
    names = (np.asarray(names, dtype=object) for names in (adata.obs_names, adata.var_names))
    matrix = sp.csr_matrix(adata.X, dtype=np.float32)
    counts = Counts(matrix=matrix, cell_names=next(names), gene_names=next(names), source="X", batch=None)
    groups = sorted(set(group_n))
    found = design(groups[0], "ctrl", "B", group_n=group_n, label_n=label_n, perturbation_key="label")
    return permutation_test(Observed(counts), found, "B", groups, batch_n=None, seed=seed)


def with_effect(size: float, seed: int, *, depth: float = 1.0) -> anndata.AnnData:
    """Simulate four groups of control and treated cells; a shared program of 40 genes has effects of a size in log
    expression.

    The depth of the treated cells is a multiple of that of the control cells.
    """
    rng = np.random.default_rng(seed)
    base_sg = rng.normal(0, 1.2, N_GENES) + rng.normal(0, 0.6, (4, N_GENES))
    effect_g = np.zeros(N_GENES)
    effect_g[rng.choice(N_GENES, 40, replace=False)] = rng.choice([-1, 1], 40) * size
    theta_g = rng.gamma(4, 1, N_GENES) + 0.5
    blocks, groups, labels = [], [], []
    for s in range(4):
        for label, log_g, factor in (("ctrl", base_sg[s], 1.0), ("B", base_sg[s] + effect_g, depth)):
            rate_g = np.exp(log_g) / np.exp(log_g).sum()
            depth_n1 = factor * DEPTH * rng.lognormal(0, 0.3, (N_CELLS, 1))
            blocks.append(rng.poisson(depth_n1 * rate_g * rng.gamma(theta_g, 1 / theta_g, (N_CELLS, N_GENES))))
            groups += [f"group {s + 1}"] * N_CELLS
            labels += [label] * N_CELLS
    obs = pd.DataFrame({"group": groups, "label": labels}, index=[f"c{i}" for i in range(len(groups))])
    return anndata.AnnData(sp.csr_matrix(np.concatenate(blocks), dtype=np.float32), obs=obs)


def verdicts(folder: Path, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Return a row for every data set: the p-value, and whether a change is detected."""
    adata = anndata.read_h5ad(folder / "kang_muscat_2donors.h5ad")
    type_n, condition_n = (adata.obs[key].astype(str).to_numpy().astype(object) for key in ("cell_type", "condition"))
    label_n = np.where(condition_n == "stim", "B", "ctrl").astype(object)
    for seed in seeds:
        rng = np.random.default_rng(seed)

        def row(data: str, found: Tested, seed: int = seed) -> dict[str, Any]:
            return {"data": data, "seed": seed, "p": found.p, "n_changed": found.n_changed}

        yield row("Kang et al., labels as observed", tested(adata, label_n, type_n, seed))
        for i in range(N_NULL):
            permuted_n = label_n.copy()
            for group in set(type_n):
                cells = np.flatnonzero(type_n == group)
                permuted_n[cells] = rng.permutation(permuted_n[cells])
            yield row("Kang et al., labels permuted within each type", tested(adata, permuted_n, type_n, i))
        for size, depth in ((0.0, 1.0), (0.0, 0.5), (0.1, 1.0), (0.2, 1.0), (0.4, 1.0)):
            name = f"simulated, effect {size:g}" + (", treated cells half as deep" if depth < 1 else "")
            for i in range(N_NULL):
                cells_i = with_effect(size, 1000 * seed + i, depth=depth)
                sides = (cells_i.obs[key].to_numpy().astype(object) for key in ("label", "group"))
                yield row(name, tested(cells_i, *sides, seed=i))


# --- simulated combinations -------------------------------------------------------------------------------------------


def rates(kind: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Compute expression proportions of every group, by label; each array has the shape (groups, genes)."""
    base_sg = rng.normal(0, 1.2, N_GENES) + rng.normal(0, 0.6, (N_GROUPS, N_GENES))

    def program(n_genes: int) -> np.ndarray:
        effect_g = np.zeros(N_GENES)
        effect_g[rng.choice(N_GENES, n_genes, replace=False)] = rng.normal(0.1, 0.8, n_genes)
        return effect_g * rng.normal(1, 0.2, (N_GROUPS, N_GENES))

    b_sg, c_sg, third_sg = program(80), program(80), program(60)
    # Half of the genes that C changes are also changed by B, so that the two effects can saturate.
    shared = rng.permutation(np.flatnonzero(b_sg[0]))[:40]
    c_sg[:, shared] = b_sg[:, shared] * rng.uniform(0.6, 1.4, 40)

    def saturated(effect_sg: np.ndarray) -> np.ndarray:
        return np.tanh(effect_sg) if kind == "saturating" else effect_sg

    def proportions(log_sg: np.ndarray) -> np.ndarray:
        return np.exp(log_sg) / np.exp(log_sg).sum(1, keepdims=True)

    result = {"ctrl": proportions(base_sg)}
    result["B"], result["C"] = (proportions(base_sg + saturated(effect)) for effect in (b_sg, c_sg))
    both_sg = base_sg + saturated(b_sg + c_sg) + (third_sg if kind == "third program" else 0)
    result["B+C"] = proportions(both_sg)
    if kind == "sum in expression":
        sum_sg = np.maximum(result["B"] + result["C"] - result["ctrl"], 0.05 * result["ctrl"])
        result["B+C"] = sum_sg / sum_sg.sum(1, keepdims=True)
    return result


def simulated_cells(kind: str, seed: int) -> anndata.AnnData:
    """Simulate cells of every group with every label.

    In the first two groups, many cells have the label B+C, so that the true change is precise.
    """
    rng = np.random.default_rng(seed)
    blocks, groups, labels = [], [], []
    theta_g = rng.gamma(4, 1, N_GENES) + 0.5
    for label, rate_sg in rates(kind, rng).items():
        for s in range(N_GROUPS):
            n = N_TRUE if label == "B+C" and s < 2 else N_CELLS
            depth_n1 = DEPTH * rng.lognormal(0, 0.3, (n, 1))
            blocks.append(
                sp.csr_matrix(rng.poisson(depth_n1 * rate_sg[s] * rng.gamma(theta_g, 1 / theta_g, (n, N_GENES))))
            )
            groups += [f"group {s + 1}"] * n
            labels += [label] * n
    matrix = sp.vstack(blocks, format="csr").astype(np.float32)
    obs = pd.DataFrame({"group": groups, "label": labels}, index=[f"c{i}" for i in range(len(groups))])
    return anndata.AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


def combinations(seeds: list[int], threads: int) -> Iterator[dict[str, Any]]:
    """Return a row for every kind of combination (observed in other groups or not), group and seed."""
    for kind in KINDS:
        for seed in seeds:
            adata = simulated_cells(kind, seed)
            both_n = (adata.obs["label"] == "B+C").to_numpy()
            target_n = adata.obs["group"].isin(["group 1", "group 2"]).to_numpy()
            for seen in (True, False):
                known = adata[~(both_n & (target_n if seen else True))].copy()
                model = scvae.train(known, seed=seed, threads=threads, device="cpu", genes="all")
                session, whole = (Session.open(cells, model, device="cpu") for cells in (known, adata))
                for group in ("group 1", "group 2"):
                    yield combination(kind, seed, group, seen, session, whole)


def combination(kind: str, seed: int, group: str, seen: bool, session: Session, whole: Session) -> dict[str, Any]:
    """Compare one group's prediction with the truth."""
    asked: dict[str, Any] = {"perturbation_key": "label", "control": "ctrl", "treated": "B+C"}
    asked |= {"groupby": "group", "group": group}
    full, truth = question(whole, **asked).design, Observed(whole.counts)
    true_g, top = truth.change(full), truth.most_significant(full)
    asked_now = question(session, **asked)
    result, predictor = asked_now.answer(), Predictor.of(session.model, asked_now.counts, cells=session.cells)
    fits = {"perturb": result.changes.change_g, "additive": result.changes.additive_g}
    if seen:
        fits["mean change of the others"] = result.changes.mean_change_g
    for method in ("centroid", "ot"):
        for share in (0.0, 0.25, 1.0):
            fits[f"{method}, {share:g}"] = predictor.changes(asked_now.design, method, (share,))[0]
    return {
        "kind": kind,
        "seed": seed,
        "group": group,
        "seen": seen,
        "recipe": f"{result.recipe.method}, {result.recipe.mean_shift_share:g}",
        "fits": {name: fit_of(change_g, true_g, top) for name, change_g in fits.items()},
    }


# --- tables -----------------------------------------------------------------------------------------------------------


def mean_of(rows: list[dict[str, Any]], name: str, part: str, where: str = "fits") -> float:
    return float(np.mean([row[where][name][part] for row in rows]))


def kang_text(rows: list[dict[str, Any]]) -> list[str]:
    groups = sorted({row["group"] for row in rows})
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    lines = [
        "## Cell types left out",
        "",
        "Correlation of predicted and true changes, over all genes / over the 50 most significant genes. Means over "
        f"the seeds {seeds}.",
        "",
    ]
    lines += [f"| prediction | {' | '.join(groups)} | mean |", "|---|" + "---|" * (len(groups) + 1)]
    order = ["perturb --retrain", "perturb", "mean change of the others", "that, weighted by similarity"]
    order += ["latent arithmetic, centroid", "latent arithmetic, ot", "no change"]

    def cells(name: str, where: str) -> str:
        parts = [[row for row in rows if row["group"] == group] for group in groups] + [rows]
        pairs = ((mean_of(p, name, "correlation", where), mean_of(p, name, "top_correlation", where)) for p in parts)
        return " | ".join(f"{a:.3f} / {b:.3f}" for a, b in pairs)

    lines += [f"| {NAMES.get(name, name)} | {cells(name, 'fits')} |" for name in order]
    lines += [
        f"| accuracy estimated by {name} | {cells(name, 'promised')} |" for name in ("perturb --retrain", "perturb")
    ]

    def miss(name: str) -> float:
        pairs = [[row[where][name]["correlation"] for where in ("promised", "fits")] for row in rows]
        return float(np.abs(np.diff(pairs)).mean())

    lines += [
        "",
        "Size of the changes: slopes (1 if the size is correct), root mean squared error (RMSE) and explained share of "
        "the squared changes. Means over groups and seeds; in brackets, the smallest and the largest mean of a group.",
        "",
    ]
    measures = {
        "slope": "slope of predicted on observed, all genes",
        "inverse_slope": "observed on predicted, all genes",
        "top_slope": "predicted on observed, top 50",
        "top_inverse_slope": "observed on predicted, top 50",
        "rmse": "RMSE, all genes",
        "explained": "explained, all genes",
    }
    lines += [f"| prediction | {' | '.join(measures.values())} |", "|---|" + "---|" * len(measures)]

    # Rows of earlier versions have no slopes.
    sized = [row for row in rows if "slope" in row["fits"]["perturb"]]

    def sizes(name: str, part: str) -> str:
        there = [[row for row in sized if row["group"] == group] for group in groups]
        by_group = [mean_of(some, name, part) for some in there if some]
        return f"{mean_of(sized, name, part):.2f} ({min(by_group):.2f}–{max(by_group):.2f})"

    for name in order[:-1] if sized else ():
        lines.append(f"| {NAMES.get(name, name)} | {' | '.join(sizes(name, part) for part in measures)} |")
    summary = "The estimated and the true accuracy (correlation over all genes) differ on average by "
    summary += f"{miss('perturb --retrain'):.3f} with `--retrain`, and by {miss('perturb'):.3f} without."
    chosen = sorted({row["recipe"]["perturb --retrain"] for row in rows})
    settings = "Settings that `--retrain` chose (method, share of the mean shift, scale): "
    return [*lines, "", summary, f"{settings}{'; '.join(chosen)}.", ""]


def null_text(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["## Tests for a change", "", f"Share of the data sets in which a change is detected (p ≤ {LEVEL:g}).", ""]
    lines += [
        "| data | number of data sets | change detected | p ≤ 0.05 | median number of changed genes |",
        "|---|---|---|---|---|",
    ]
    for data in dict.fromkeys(row["data"] for row in rows):
        some = [row for row in rows if row["data"] == data]
        p = np.asarray([row["p"] for row in some])
        genes = np.median([row["n_changed"] for row in some])
        lines.append(f"| {data} | {len(some)} | {(p <= LEVEL).mean():.1%} | {(p <= 0.05).mean():.1%} | {genes:g} |")
    return [*lines, ""]


def combination_text(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["## Simulated combinations", ""]
    lines += [
        "Correlation of predicted and true changes, over all genes / over the 50 most significant genes, and explained "
        "share of the squared changes. Means over seeds and groups. *Additive* is the sum of the two single changes. A "
        "method with a number, such as `ot, 0`, is `perturb` with this method and this share of the mean shift: 0 is "
        "latent arithmetic, and 1 uses only the log ratios of the other groups.",
        "",
    ]
    names = ["perturb", "additive", "mean change of the others", "centroid, 0", "ot, 0", "ot, 1"]
    head = " | ".join(NAMES.get(name, name) for name in names)
    lines += [f"| joint effect | other groups with both | {head} |", "|---|---|" + "---|" * len(names)]
    for seen in (True, False):
        for kind in dict.fromkeys(row["kind"] for row in rows):
            some = [row for row in rows if row["kind"] == kind and row["seen"] == seen]
            cells = []
            for name in names:
                if name not in some[0]["fits"]:
                    cells.append("–")
                    continue
                parts = [mean_of(some, name, part) for part in ("correlation", "top_correlation", "explained")]
                cells.append(f"{parts[0]:.3f} / {parts[1]:.3f}, {parts[2]:.2f}")
            lines.append(f"| {kind} | {'yes' if seen else 'no'} | {' | '.join(cells)} |")
    return [*lines, ""]


def text(rows: dict[str, list[dict[str, Any]]], threads: int) -> str:
    """Format the results as markdown."""
    lines = ["# Perturbations", "", "Written by `benchmarks/perturbation.py`; its docstring says what is measured.", ""]
    lines += kang_text(rows["kang"]) if rows.get("kang") else []
    lines += null_text(rows["null"]) if rows.get("null") else []
    lines += combination_text(rows["simulated"]) if rows.get("simulated") else []
    return "\n".join(
        [*lines, f"({describe_machine(threads)}; torch {torch.__version__}; {date.today().isoformat()})", ""]
    )


def main() -> None:
    """Measure and write the results; parts that are not requested keep their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-folder", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", default="kang,null,simulated", help="parts, separated by commas; all by default")
    parser.add_argument("--groups", type=lambda text: text.split(","), help="cell types to leave out; all by default")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "perturbation.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore", scvae.ScvaeWarning)
    recorded = arguments.results.with_suffix(".json")
    rows = json.loads(recorded.read_text()) if recorded.exists() else {}
    kept = ("kind", "data", "group", "seed", "seen")
    for part in arguments.parts.split(","):
        found: Iterator[dict[str, Any]]
        if part == "kang":
            found = left_out_types(arguments.data_folder, arguments.seeds, arguments.threads, arguments.groups)
        elif part == "null":
            found = verdicts(arguments.data_folder, arguments.seeds)
        else:
            found = combinations(arguments.seeds, arguments.threads)
        # Rows of other seeds and groups stay.
        groups = arguments.groups if part == "kang" else None
        rows[part] = [
            row
            for row in rows.get(part, [])
            if row["seed"] not in arguments.seeds or (groups and row["group"] not in groups)
        ]
        for row in found:
            rows[part].append(row)
            print(
                {name: value for name, value in row.items() if name in (*kept, "recipe", "p")},
                flush=True,
            )
    recorded.write_text(json.dumps(rows, indent=1))
    arguments.results.write_text(text(rows, arguments.threads))
    print(text(rows, arguments.threads))


if __name__ == "__main__":
    main()
