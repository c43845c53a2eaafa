"""Are neighbors, clusters and batches in `X_scvae` as good as those of PCA, Harmony and scVI?

    python benchmarks/embedding.py [--scvi-python SCVI_ENV/bin/python] [--seeds 0,1,2] [--sets NAME,NAME]

For every data set and seed, the benchmark trains scvae with the defaults and embeds the cells. The benchmark compares
the embeddings

- `expression`: obsm["X_scvae"], the default of `scvae embed`,
- `latent`: obsm["scvae_latent"],
- `pca`: 30 components of scanpy's log-normalized counts (of the 2,000 highly variable genes, if there are more),
- `scvi`: scVI with its defaults and early stopping, on the same cells, and `harmony` (Harmony on the PCA), if
  `--scvi-python` names an interpreter with scvi-tools and the other packages that `embedding_peers.py` needs.

The embeddings are compared by four kinds of measures:

- Labels: accuracy of 15 nearest neighbors (5 folds), mean silhouette, and ARI and NMI of Leiden clusters. ARI and NMI
  are given at resolution 1 and at the best of 0.2, 0.4, 0.6, 1 and 1.5 (means over three seeds of the clustering).
- Batches: scIB's total score, bio conservation and batch correction (scib-metrics).
- Distances: Spearman's rank correlation between the distances of 400 random pairs of cells and the Fisher–Rao lengths
  of the straight latent lines between the cells of each pair.
- Seeds: mean share of the 15 nearest neighbors of a cell that two trainings have in common. For PCA, two sets of genes
  drawn with replacement are compared instead of two trainings.

Results are added to `results/embedding.json` after every step, so an interrupted run can be started again;
`results/embedding.md` is the table of the results. Trained embeddings are kept in `--cache`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared" / "data"
RESULTS = HERE / "results" / "embedding.json"
RESOLUTIONS = (0.2, 0.4, 0.6, 1.0, 1.5)
NEIGHBORS, CLUSTERINGS, PAIRS, POINTS = 15, 3, 400, 16


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Cells with known labels and, in some data sets, batches.

    `judged` says whether the mixing of the batches is evaluated, too. `simulated` is the standard deviation of a
    simulated batch effect, in natural-log units.
    """

    file: str
    labels: str
    batch_key: str | None = None
    judged: bool = False
    simulated: float | None = None


SETS = {
    "pbmc68k": DataSet(file=str(HERE.parent / "data_samples" / "pbmc68k_700.h5ad"), labels="bulk_labels"),
    "rnamix": DataSet(file="rnamix_celseq2.h5ad", labels="mixture"),
    "kang": DataSet(file="kang_muscat_2donors.h5ad", labels="cell_type", batch_key="sample"),
    "mixology": DataSet(file="mixology_sc.h5ad", labels="cell_line", batch_key="batch"),
    "paul15": DataSet(file="paul15_3004.h5ad", labels="cell_type"),
    "pbmc4k": DataSet(file="pbmc4k_top2000.h5ad", labels="cell_type"),
    "mixology by protocol": DataSet(file="mixology_sc.h5ad", labels="cell_line", batch_key="protocol", judged=True),
    "kang by condition": DataSet(
        file="kang_muscat_2donors.h5ad", labels="cell_type", batch_key="condition", judged=True
    ),
    "kang by donor": DataSet(file="kang_muscat_2donors.h5ad", labels="cell_type", batch_key="donor", judged=True),
    **{
        f"tree, batch effect {sd:g}": DataSet(file="", labels="cell_type", batch_key="batch", judged=True, simulated=sd)
        for sd in (0.15, 0.3, 0.6)
    },
}


def cells_of(name: str, folder: Path) -> Path:
    """Return the file of a data set; a simulated data set is made if the file does not exist."""
    chosen = SETS[name]
    if chosen.simulated is None:
        return Path(chosen.file) if Path(chosen.file).is_absolute() else SHARED / chosen.file
    path = folder / f"tree_{round(100 * chosen.simulated)}.h5ad"
    if not path.exists():
        import scipy.sparse as sp

        from scvae_cli.data.simulation import simulate
        from scvae_cli.data.simulation_config import SimulationConfig

        made = simulate(
            SimulationConfig(
                n_cells=2000,
                n_branches=3,
                n_batches=3,
                batch_sd=chosen.simulated,
                seed=round(100 * chosen.simulated),
            )
        )
        anndata.AnnData(sp.vstack(list(made.blocks()), format="csr"), obs=made.obs, var=made.var).write_h5ad(path)
    return path


def scvae_side(path: Path, chosen: DataSet, seed: int, threads: int) -> dict[str, Any]:
    """Train scvae with its defaults, embed the cells, and compare distances with Fisher–Rao lengths."""
    import torch

    import scvae_cli as scvae
    from scvae_cli.model.geometry import Geometry
    from scvae_cli.session import Session

    adata = anndata.read_h5ad(path)
    start = time.perf_counter()
    model = scvae.train(adata, seed=seed, threads=threads, device="cpu", batch_key=chosen.batch_key)
    seconds = time.perf_counter() - start
    embedding = scvae.embed(adata, model, inplace=False)
    z_nk = Session.open(adata, model).cells.mean_nk
    pair_p2 = np.random.default_rng(0).integers(0, len(z_nk), (PAIRS, 2))
    along_t = torch.linspace(0, 1, POINTS + 1)[:, None]
    lengths = []
    with torch.no_grad():
        for i, j in pair_p2:
            y_tg = Geometry(model.vae).coordinates(z_nk[i] + along_t * (z_nk[j] - z_nk[i]))
            lengths.append(float(y_tg.diff(dim=0).norm(dim=1).sum()))
    return {
        "expression": embedding.position_nj,
        "latent": embedding.mean_nk,
        "pairs": pair_p2,
        "lengths": np.asarray(lengths),
        "seconds": seconds,
        "elbo": model.facts["heldout_elbo"],
    }


def pca(path: Path, *, genes_seed: int | None = None) -> np.ndarray:
    """Compute a PCA of log-normalized counts as in scanpy's tutorials.

    If `genes_seed` is given, the PCA is computed on genes drawn with replacement.
    """
    import scanpy as sc

    adata = anndata.read_h5ad(path)
    adata.var_names_make_unique()
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if adata.n_vars > 2000:
        sc.pp.highly_variable_genes(adata, n_top_genes=2000)
        adata = adata[:, adata.var["highly_variable"]].copy()
    if genes_seed is not None:
        drawn = np.random.default_rng(genes_seed).integers(0, adata.n_vars, adata.n_vars)
        adata = anndata.AnnData(adata.X[:, drawn])
    if hasattr(adata.X, "toarray"):
        # scikit-learn cannot read sparse matrices with 64-bit indices.
        adata.X = adata.X.toarray()
    sc.pp.pca(adata, n_comps=min(30, adata.n_vars - 1, adata.n_obs - 1))
    return np.asarray(adata.obsm["X_pca"])


def label_scores(position_nj: np.ndarray, label_n: np.ndarray) -> dict[str, float]:
    """Compute the scores that need labels: accuracy of nearest neighbors, silhouette, and ARI and NMI of clusters."""
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    accuracy = cross_val_score(KNeighborsClassifier(NEIGHBORS), position_nj, label_n, cv=folds).mean()
    ari_rs, nmi_rs = np.empty((2, len(RESOLUTIONS), CLUSTERINGS))
    for s in range(CLUSTERINGS):
        adata = anndata.AnnData(np.ascontiguousarray(position_nj, dtype=np.float32))
        sc.pp.neighbors(adata, n_neighbors=NEIGHBORS, use_rep="X", random_state=s)
        for r, resolution in enumerate(RESOLUTIONS):
            sc.tl.leiden(adata, resolution, flavor="igraph", n_iterations=2, directed=False, random_state=s)
            ari_rs[r, s] = adjusted_rand_score(label_n, adata.obs["leiden"])
            nmi_rs[r, s] = normalized_mutual_info_score(label_n, adata.obs["leiden"])
    at_1 = RESOLUTIONS.index(1.0)
    return {
        "knn": float(accuracy),
        "ari_1": float(ari_rs[at_1].mean()),
        "ari_best": float(ari_rs.mean(1).max()),
        "nmi_1": float(nmi_rs[at_1].mean()),
        "nmi_best": float(nmi_rs.mean(1).max()),
        "silhouette": float(silhouette_score(position_nj, label_n)),
    }


def rank_correlation(position_nj: np.ndarray, pair_p2: np.ndarray, length_p: np.ndarray) -> float:
    """Compute Spearman's correlation between distances and Fisher–Rao lengths."""
    from scipy.stats import spearmanr

    distance_p = np.linalg.norm(position_nj[pair_p2[:, 0]] - position_nj[pair_p2[:, 1]], axis=1)
    return float(spearmanr(distance_p, length_p).statistic)


def shared_neighbors(one_nj: np.ndarray, other_nj: np.ndarray) -> float:
    """Compute the mean share of the 15 nearest neighbors that are neighbors in both embeddings."""
    from sklearn.neighbors import NearestNeighbors

    of = [
        NearestNeighbors(n_neighbors=NEIGHBORS).fit(position_nj).kneighbors(return_distance=False)
        for position_nj in (one_nj, other_nj)
    ]
    return float(np.mean([len(set(a) & set(b)) / NEIGHBORS for a, b in zip(*of, strict=True)]))


def peer(python: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Run a step of `embedding_peers.py` and return the JSON object that it prints last."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [python, str(HERE / "embedding_peers.py"), *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return answer


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return arrays from a file; the file is made first if it does not exist."""
    if not path.exists():
        np.savez(path, **make())
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def run(name: str, seed: int, arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Compare the embeddings of one data set and seed, and add the scores to the results."""
    chosen, cache = SETS[name], arguments.cache
    path, stem = cells_of(name, cache), f"{name.replace(' ', '_').replace(',', '')}_{seed}"
    ours = kept(cache / f"scvae_{stem}.npz", lambda: scvae_side(path, chosen, seed, arguments.threads))
    embeddings = {"expression": ours["expression"], "latent": ours["latent"], "pca": pca(path)}
    found: dict[str, Any] = {"seconds": {"scvae": float(ours["seconds"])}, "elbo": float(ours["elbo"])}
    if arguments.scvi_python:
        file = cache / f"scvi_{stem}.npz"
        if not file.exists():
            batches = ["--batch-key", chosen.batch_key] if chosen.batch_key else []
            options = ["train", str(path), "--seed", str(seed), "--threads", str(arguments.threads), "-o", str(file)]
            peer(arguments.scvi_python, *options, *batches, threads=arguments.threads)
        with np.load(file) as theirs:
            embeddings["scvi"] = theirs["z"]
            found["seconds"]["scvi"] = float(theirs["seconds"])
    labels = anndata.read_h5ad(path, backed="r").obs[chosen.labels]
    known, label_n = labels.notna().to_numpy(), labels.astype(str).to_numpy()
    found["labels"] = {key: label_scores(value[known], label_n[known]) for key, value in embeddings.items()}
    found["rank_correlation"] = {
        key: rank_correlation(embeddings[key], ours["pairs"], ours["lengths"]) for key in ("expression", "latent")
    }
    if chosen.judged and arguments.scvi_python:
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file.name, **embeddings)
            assert chosen.batch_key is not None, "batches are judged"
            options = ["score", str(path), file.name, "--labels", chosen.labels, "--batch-key", chosen.batch_key]
            found |= peer(arguments.scvi_python, *options, threads=arguments.threads)
    before = {key: value for key, value in _other_seeds(embeddings, stem, cache, seed).items() if value is not None}
    if before:
        before["pca"] = shared_neighbors(pca(path, genes_seed=2 * seed), pca(path, genes_seed=2 * seed + 1))
        found["shared_neighbors"] = before
    results.setdefault(name, {})[str(seed)] = found


def _other_seeds(embeddings: dict[str, np.ndarray], stem: str, cache: Path, seed: int) -> dict[str, float | None]:
    """Compare the neighbors of cells with their neighbors after the training with the previous seed, if it was run."""
    base = stem.rpartition("_")[0]
    shares: dict[str, float | None] = {}
    for tool, keys in (("scvae", {"expression": "expression", "latent": "latent"}), ("scvi", {"scvi": "z"})):
        file = cache / f"{tool}_{base}_{seed - 1}.npz"
        if not file.exists():
            continue
        with np.load(file) as earlier:
            for ours, theirs in keys.items():
                shares[ours] = shared_neighbors(embeddings[ours], earlier[theirs]) if ours in embeddings else None
    return shares


def main() -> None:
    """Run the requested steps and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scvi-python", help="interpreter of an environment with scvi-tools")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sets", default=",".join(name for name in SETS if "," not in name) + ",trees")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "scvae_embedding")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    names = [name for name in arguments.sets.split(",") if name != "trees"]
    names += [name for name in SETS if name.startswith("tree")] if "trees" in arguments.sets.split(",") else []
    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for seed in (int(seed) for seed in arguments.seeds.split(",")):
        for name in names:
            run(name, seed, arguments, results)
            arguments.results.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            scores = results[name][str(seed)]["labels"]
            print(name, seed, {key: round(value["ari_1"], 3) for key, value in scores.items()}, file=sys.stderr)


if __name__ == "__main__":
    main()
