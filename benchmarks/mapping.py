"""Is mapping a query onto a trained model as accurate as a training on all cells, and how much faster is the mapping?

    python benchmarks/mapping.py --scvi-python SCVI_ENV/bin/python [--seeds 0] [--sets NAME,NAME] [--no-scvi]

In every data set, some batches are the reference and the other batches are the query:

- mixology: CEL-seq2 is the reference and Drop-seq the query, or the other way round;
- kang by condition: control cells are the reference and stimulated cells the query, or the other way round; kang by
  donor: one of the two donors is the reference and the other donor the query;
- trees: cells simulated along three branches (`scvae simulate`); two batches are the reference and the third batch is
  the query, with batch effects of 0.3 and 0.6 (standard deviation of the log factors of the genes).

Embeddings of all cells are compared by scIB scores (total, bio conservation, batch correction; scib-metrics), and by
the accuracy with which the 15 nearest neighbors in the reference predict the labels of the query. The compared methods
are:

- `mapped`: a model of the reference, onto which the query was mapped (`scvae map`),
- `scratch`: a model of all cells,
- `unmapped`: the model of the reference, used without a change for all cells,
- `surgery`: scVI and scArches' surgery (described in `mapping_scvi.py`), if `--scvi-python` names an interpreter with
  scvi-tools.

Each method is evaluated for X_scvae and for the latent means. `unchanged` says whether the reference cells have an
identical embedding in the model of the reference and in the model with the query.

`--controls` measures which share of the cells is reported to have no counterpart at 5% false alarms, and whether `map`
warns of another tissue. In each data set, these cells are mapped: the query (cells of types that the reference has, and
cells of other types), the reference itself with a new name for each batch, the reference with one new name for all its
batches (if there are several), 20 cells of the query, and the query with its genes in a random order, which stands for
another tissue.

`--leave-out N` trains the reference without one type of cells, for each of the first N types with at least 15 cells in
the query. With `--leave-out`, the benchmark measures how well `counterpart_p` finds query cells of types that the
reference lacks (AUROC), and which shares of these cells and of the other query cells are reported.

The recorded results have seed 0. scArches' surgery was run only for kang from control to stimulated cells. Other work
ran on the machine, so the times are rough. The embeddings were scored before the p-values were changed; the p-values
do not influence the embeddings.

Results are added to `results/mapping.json` after every step; `results/mapping.md` is a table of the results. Trained
models are kept in `--cache`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from embedding import SHARED, peer
from embedding import pca as pca_of

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "mapping.json"
NEIGHBORS = 15
# Smallest number of query cells of a type that is left out of the reference.
LEAST_LEFT_OUT = 15
KINDS = {"scratch": "trained on all", "unmapped": "not mapped", "latent": "scvae_latent"}
MAPPED_CELLS = {
    "reference again": "reference, with new names of its batches",
    "reference again, as one batch": "reference, as one new batch",
    "other genes": "query with its genes in random order",
}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Cells with labels, the column of their batches, and the batches of the reference.

    `simulated` is the standard deviation of a simulated batch effect, in natural-log units.
    """

    file: str = ""
    batch_key: str
    labels: str
    reference: tuple[str, ...]
    simulated: float | None = None


MIXOLOGY = {"file": "mixology_sc.h5ad", "batch_key": "protocol", "labels": "cell_line"}
KANG = {"file": "kang_muscat_2donors.h5ad", "labels": "cell_type"}
TREE = {"batch_key": "batch", "labels": "cell_type", "reference": ("batch_1", "batch_2")}
SETS = {
    "mixology, CEL-seq2 → Drop-seq": DataSet(**MIXOLOGY, reference=("celseq2",)),
    "mixology, Drop-seq → CEL-seq2": DataSet(**MIXOLOGY, reference=("dropseq",)),
    "mixology, three plates → two other runs": DataSet(
        file="mixology_sc.h5ad",
        labels="cell_line",
        batch_key="batch",
        reference=("sc_celseq2_5cl_p1", "sc_celseq2_5cl_p2", "sc_celseq2_5cl_p3"),
    ),
    "kang, control → stimulated": DataSet(**KANG, batch_key="condition", reference=("ctrl",)),
    "kang, stimulated → control": DataSet(**KANG, batch_key="condition", reference=("stim",)),
    "kang, donor → donor": DataSet(**KANG, batch_key="donor", reference=("d101",)),
    "tree, batch effect 0.3": DataSet(**TREE, simulated=0.3),
    "tree, batch effect 0.6": DataSet(**TREE, simulated=0.6),
    "tree, batch effect 1.0": DataSet(**TREE, simulated=1.0),
    "paul15, sequencing run": DataSet(
        file="paul15_3004.h5ad", batch_key="Seq_batch_ID", labels="cell_type", reference=("SB19",)
    ),
}


def cells_of(name: str) -> tuple[anndata.AnnData, np.ndarray]:
    """Return all cells, with the cells of the reference first, and a mask of the cells of the reference."""
    chosen = SETS[name]
    if chosen.simulated is None:
        adata = anndata.read_h5ad(SHARED / chosen.file)
    else:
        import scipy.sparse as sp

        from scvae_cli.data.simulation import simulate
        from scvae_cli.data.simulation_config import SimulationConfig

        seed = round(100 * chosen.simulated)
        settings = {"n_cells": 2000, "n_branches": 3, "n_batches": 3, "batch_sd": chosen.simulated, "seed": seed}
        made = simulate(SimulationConfig(**settings))
        adata = anndata.AnnData(sp.vstack(list(made.blocks()), format="csr"), obs=made.obs, var=made.var)
    adata.obs[chosen.batch_key] = adata.obs[chosen.batch_key].astype(str)
    of_reference = adata.obs[chosen.batch_key].isin(chosen.reference).to_numpy()
    order = np.argsort(~of_reference, kind="stable")
    return adata[order].copy(), of_reference[order]


def trained(adata: anndata.AnnData, folder: Path, seed: int, threads: int, batch_key: str) -> tuple[Any, float]:
    """Train a model with the defaults, or read the model from the cache; return model and seconds of the training."""
    import scvae_cli as scvae

    note = folder.with_suffix(".json")
    if not (folder.exists() and note.exists()):
        key = batch_key if adata.obs[batch_key].nunique() > 1 else None
        start = time.perf_counter()
        model = scvae.train(adata, seed=seed, threads=threads, device="cpu", batch_key=key)
        seconds = time.perf_counter() - start
        model.save(folder, force=True)
        note.write_text(json.dumps({"seconds": seconds}))
    return scvae.load(folder), json.loads(note.read_text())["seconds"]


def transfer(position_nj: np.ndarray, label_n: np.ndarray, of_reference: np.ndarray) -> float:
    """Compute the accuracy of nearest neighbors among the cells of the reference for the labels of the query."""
    from sklearn.neighbors import KNeighborsClassifier

    neighbors = KNeighborsClassifier(NEIGHBORS).fit(position_nj[of_reference], label_n[of_reference])
    return float(neighbors.score(position_nj[~of_reference], label_n[~of_reference]))


def run(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare the embeddings of one data set and seed."""
    import scvae_cli as scvae

    chosen, cache = SETS[name], arguments.cache
    adata, of_reference = cells_of(name)
    label_n = adata.obs[chosen.labels].astype(str).to_numpy()
    stem = "".join(letter if letter.isalnum() else "_" for letter in name)
    reference, query = adata[of_reference].copy(), adata[~of_reference].copy()

    def model_of(cells: anndata.AnnData, kind: str) -> tuple[Any, float]:
        return trained(cells, cache / f"{stem}_{kind}_{seed}.scvae", seed, arguments.threads, chosen.batch_key)

    def embedded(cells: anndata.AnnData, model: Any) -> tuple[np.ndarray, np.ndarray]:
        found = scvae.embed(cells, model, inplace=False)
        return found.position_nj, found.mean_nk

    old, seconds_reference = model_of(reference, "reference")
    whole, seconds_scratch = model_of(adata, "scratch")
    start = time.perf_counter()
    options = {"batch_key": chosen.batch_key, "reference_batch": chosen.reference[0]}
    new = scvae.map(query, old, **options)
    seconds_map = time.perf_counter() - start
    before, after = embedded(reference, old), embedded(reference, new)
    pairs = {
        "mapped": [np.concatenate(parts) for parts in zip(after, embedded(query, new), strict=True)],
        "scratch": embedded(adata, whole),
        "unmapped": [np.concatenate(parts) for parts in zip(before, embedded(query, old), strict=True)],
    }
    embeddings = {}
    for kind, (position_nj, mean_nk) in pairs.items():
        embeddings |= {f"{kind}, X_scvae": position_nj, f"{kind}, latent": mean_nk}
    found: dict[str, Any] = {
        "cells": [int(of_reference.sum()), int((~of_reference).sum())],
        "unchanged": bool(all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))),
        "seconds": {"reference": seconds_reference, "scratch": seconds_scratch, "mapped": seconds_map},
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = {part: folder / f"{part}.h5ad" for part in ("reference", "query", "all")}
        for part, cells in (("reference", reference), ("query", query), ("all", adata)):
            obs = cells.obs[[chosen.labels, chosen.batch_key]]
            anndata.AnnData(cells.X, obs=obs, var=cells.var[[]]).write_h5ad(files[part])
        if arguments.scvi:
            file = cache / f"{stem}_surgery_{seed}.npz"
            if not file.exists():
                surgery = [arguments.scvi_python, str(HERE / "mapping_scvi.py"), str(files["reference"])]
                line = [*surgery, str(files["query"]), "--batch-key", chosen.batch_key, "--seed", str(seed)]
                finished = subprocess_run([*line, "--threads", str(arguments.threads), "-o", str(file)])
                if finished:
                    raise SystemExit(finished)
            with np.load(file) as theirs:
                embeddings["surgery, latent"] = theirs["latent"]
                found["seconds"] |= {
                    "surgery": float(theirs["map_seconds"]), "reference of scVI": float(theirs["train_seconds"])
                }  # fmt: skip
        embeddings["pca"] = pca_of(files["all"])
        found["transfer"] = {kind: transfer(value, label_n, of_reference) for kind, value in embeddings.items()}
        if arguments.scvi_python:
            scored = folder / "embeddings.npz"
            np.savez(scored, **embeddings)
            line = ["score", str(files["all"]), str(scored), "--labels", chosen.labels]
            found |= peer(arguments.scvi_python, *line, "--batch-key", chosen.batch_key, threads=arguments.threads)
    return found


def subprocess_run(command: list[str]) -> str:
    """Run a command and return its error output; it is empty if the command succeeded."""
    import subprocess

    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.stderr[-3000:] if finished.returncode else ""


def controls(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Map the reference again, a few cells of the query, and the query with its genes in a random order."""
    import scvae_cli as scvae

    chosen = SETS[name]
    adata, of_reference = cells_of(name)
    label_n = adata.obs[chosen.labels].astype(str).to_numpy()
    stem = "".join(letter if letter.isalnum() else "_" for letter in name)
    reference, query = adata[of_reference].copy(), adata[~of_reference].copy()
    known_n = np.isin(label_n[~of_reference], label_n[of_reference])
    folder = arguments.cache / f"{stem}_reference_{seed}.scvae"
    model, _ = trained(reference, folder, seed, arguments.threads, chosen.batch_key)
    random = np.random.default_rng(seed)
    shuffled = query.copy()
    shuffled.X = shuffled.X[:, random.permutation(query.n_vars)]
    few = query[random.permutation(query.n_obs)[:20]].copy()
    mapped = {"query": query, "reference again": reference, "20 cells of the query": few, "other genes": shuffled}
    if len(chosen.reference) > 1:
        mapped["reference again, as one batch"] = reference.copy()
    found = {}
    for kind, cells in mapped.items():
        own = kind == "reference again"
        cells.obs[chosen.batch_key] = "new " + cells.obs[chosen.batch_key].astype(str) if own else "new"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scvae.map(cells, model, batch_key=chosen.batch_key, reference_batch=chosen.reference[0])
        warned = any("another tissue" in str(one.message) for one in caught)
        lacking_n = cells.obs["scvae_no_counterpart"].to_numpy()
        parts = {"": lacking_n}
        if kind == "query" and not known_n.all():
            parts = {", types of the reference": lacking_n[known_n], ", other types": lacking_n[~known_n]}
        found |= {kind + part: {"reported": float(of_part.mean()), "warned": warned} for part, of_part in parts.items()}
    return found


def leave_out(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Leave each cell type out of the reference in turn, and measure how well its cells are found in the query."""
    from sklearn.metrics import roc_auc_score

    import scvae_cli as scvae

    chosen = SETS[name]
    adata, of_reference = cells_of(name)
    label_n = adata.obs[chosen.labels].astype(str).to_numpy()
    stem = "".join(letter if letter.isalnum() else "_" for letter in name)
    found = {}
    in_both = sorted(set(label_n[of_reference]) & set(label_n[~of_reference]))
    in_both = [label for label in in_both if (label_n[~of_reference] == label).sum() >= LEAST_LEFT_OUT]
    for label in in_both[: arguments.leave_out]:
        reference = adata[of_reference & (label_n != label)].copy()
        kind = f"without_{in_both.index(label)}"
        folder = arguments.cache / f"{stem}_{kind}_{seed}.scvae"
        model, _ = trained(reference, folder, seed, arguments.threads, chosen.batch_key)
        query = adata[~of_reference].copy()
        scvae.map(query, model, batch_key=chosen.batch_key, reference_batch=chosen.reference[0])
        # The reference may lack other types of the query, too.
        novel = ~np.isin(label_n[~of_reference], reference.obs[chosen.labels].astype(str))
        lacking = query.obs["scvae_no_counterpart"].to_numpy()
        found[label] = {
            "auroc": float(roc_auc_score(novel, -query.obs["scvae_counterpart_p"])),
            "reported": float(lacking[novel].mean()),
            "reported_of_others": float(lacking[~novel].mean()),
        }
    return found


def table(results: dict[str, Any]) -> str:
    """Write the results as Markdown."""
    lines = [
        "# Mapping a query onto a trained model", "",
        "Written by `benchmarks/mapping.py`; its docstring says what is compared. " + results["hardware"], "",
        "*Mapped* is the model of the reference to which the query was added, *trained on all* a model of all cells, "
        "*not mapped* the model of the reference without a change, and *surgery* scVI with scArches' surgery. The scIB "
        "scores evaluate the embedding of all cells; higher is better. The accuracy of labels is the share of query "
        "cells whose label is correctly predicted by the 15 nearest reference cells. The seconds are those of the "
        "mapping, of the training on all cells, or of the surgery.", "",
        "| data | seed | reference + query cells | embedding | scIB total | bio conservation | batch correction "
        "| accuracy of labels | seconds |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, seeds in results["sets"].items():
        for seed, found in sorted(seeds.items()):
            for kind, accuracy in found["transfer"].items():
                if kind == "pca":
                    continue
                scores = found.get("scores", {}).get(kind, {})
                parts = " | ".join(f"{scores[key]:.3f}" if key in scores else "" for key in ("total", "bio", "batch"))
                seconds = found["seconds"].get(kind.split(",")[0])
                cells = " + ".join(f"{n:,}" for n in found["cells"])
                time_text = "" if seconds is None else f"{seconds:.1f}"
                shown = ", ".join(KINDS.get(part, part) for part in kind.split(", "))
                lines.append(f"| {name} | {seed} | {cells} | {shown} | {parts} | {accuracy:.3f} | {time_text} |")
    lines += ["", "Are the embeddings of the reference cells identical before and after the mapping?", ""]
    lines += ["| data | seed | identical |", "|---|--:|---|"]
    for name, seeds in results["sets"].items():
        lines += [
            f"| {name} | {seed} | {'yes' if found['unchanged'] else 'no'} |" for seed, found in sorted(seeds.items())
        ]
    if results.get("controls"):
        lines += ["", "## Cells without a counterpart, at 5% false alarms", ""]
        lines += ["Share of the mapped cells that are reported to have no counterpart in the reference.", ""]
        lines += ["| data | mapped cells | reported | warning of another tissue |", "|---|---|--:|---|"]
        for name, seeds in results["controls"].items():
            for found in seeds.values():
                for kind, row in found.items():
                    shown = MAPPED_CELLS.get(kind, kind)
                    lines.append(f"| {name} | {shown} | {row['reported']:.1%} | {'yes' if row['warned'] else 'no'} |")
    if results.get("left_out"):
        lines += ["", "## Types that the reference lacks", ""]
        lines += [
            "One type at a time is left out of the reference. AUROC measures how well `counterpart_p` distinguishes "
            "query cells of types that the reference lacks from the other query cells. The last two columns are the "
            "shares of these two kinds of cells that are reported to have no counterpart.",
            "",
            "| data | type left out | AUROC | reported, lacking types | reported, other cells |",
            "|---|---|--:|--:|--:|",
        ]
        for name, seeds in results["left_out"].items():
            for found in seeds.values():
                for label, row in found.items():
                    shares = f"{row['reported']:.1%} | {row['reported_of_others']:.1%}"
                    lines.append(f"| {name} | {label} | {row['auroc']:.3f} | {shares} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the requested steps and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scvi-python", help="interpreter of an environment with scvi-tools and scib-metrics")
    parser.add_argument(
        "--scvi", action=argparse.BooleanOptionalAction, default=True, help="also run scArches' surgery"
    )
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--sets", default=";".join(SETS), help="names, separated by ;")
    parser.add_argument("--leave-out", type=int, default=0, help="number of types to leave out in turn")
    parser.add_argument("--controls", action="store_true", help="map cells whose counterparts are known")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "scvae_mapping")
    parser.add_argument("--hardware", default="", help="description of the machine for the table")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.scvi = arguments.scvi and arguments.scvi_python is not None
    arguments.cache.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    for seed in arguments.seeds.split(","):
        for name in arguments.sets.split(";"):
            key, found = ("left_out", leave_out) if arguments.leave_out else ("sets", run)
            key, found = ("controls", controls) if arguments.controls else (key, found)
            row = found(name, int(seed), arguments)
            # The file is read again, because another run may have added results.
            results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"sets": {}}
            results["hardware"] = arguments.hardware or results.get("hardware", "")
            results.setdefault(key, {}).setdefault(name, {})[seed] = row
            arguments.results.write_text(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
            arguments.results.with_suffix(".md").write_text(table(results))
            print(name, seed, row.get("transfer", row), file=sys.stderr)


if __name__ == "__main__":
    main()
