"""How good are models with several covariates, compared with a joint category, one covariate, none, and scVI?

    python benchmarks/covariates.py [--scvi-python SCVI_ENV/bin/python] [--seeds 0,1,2] [--sets …] [--methods …]

The data set `simulated` has 2,000 cells of six types, with donor and technology as crossed factors, and with the age as
a continuous covariate. The effects of donor, technology and age are added to the log rates of the genes. The mean age
is a little higher in some types. No cell of the fourth donor was measured with the second technology. The data set
`kang` has control and stimulated cells of two donors.

Each method trains a model with the defaults and embeds the cells. For each embedding, three measures are reported:

- `purity`: mean share of the 15 nearest neighbors of a cell that have the type of the cell;
- iLISI of each factor, from 0 (the levels of the factor are separate) to 1 (the levels are mixed);
- `age R²`: squared correlation, within the types, between the age of a cell and the mean age of its neighbors of the
  same type (0 if the embedding does not depend on the age).

For scvae, the held-out ELBO is reported too. The simulation also draws 200 cells with the combination of donor and
technology that the training lacks. The importance bound (50 samples) of these 200 cells is reported. The decoded
effects of donor, technology and age are compared with the true effects by the correlation and the slope over the genes.
scVI gets the factors as `categorical_covariate_keys` and the age as `continuous_covariate_keys`, and is trained with
its defaults and early stopping.

Results are added to `results/covariates.json` after every run; `results/covariates.md` is the table of the results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared" / "data"
RESULTS = HERE / "results" / "covariates.json"
NEIGHBORS, BOUND_SAMPLES = 15, 50
FACTORS = {"simulated": ("donor", "technology"), "kang": ("donor", "condition")}
# Covariates that each method gives to the model; "joint" is a column with the combinations of both factors.
NAMES = {
    "both and age": "scvae, both factors and age",
    "both": "scvae, both factors",
    "joint": "scvae, combinations of both factors as one category",
    "first": "scvae, first factor",
    "second": "scvae, second factor",
    "none": "scvae, no covariate",
    "scVI, both and age": "scVI, both factors and age",
    "scVI, both": "scVI, both factors",
}
METHODS: dict[str, dict[str, Any]] = {
    "both and age": {"factors": (0, 1), "age": True},
    "both": {"factors": (0, 1)},
    "joint": {"joint": True},
    "first": {"factors": (0,)},
    "second": {"factors": (1,)},
    "none": {},
    "scVI, both and age": {"factors": (0, 1), "age": True, "scvi": True},
    "scVI, both": {"factors": (0, 1), "scvi": True},
}


def simulated(seed: int) -> tuple[anndata.AnnData, anndata.AnnData, dict[str, np.ndarray]]:
    """Simulate cells, further cells of the missing combination, and the true effects (natural log, per gene)."""
    random, g = np.random.default_rng(seed), 400
    coarse = random.normal(0, 0.6, (3, g))
    type_log = random.normal(0, 1.2, g) + np.repeat(coarse, 2, axis=0) + random.normal(0, 0.15, (6, g))
    effects = {
        "donor": random.normal(0, 0.4, (4, g)),
        "technology": random.normal(0, 0.6, (2, g)),
        "age": random.normal(0, 0.25, g),
    }
    theta = random.gamma(4, 1, g)

    def cells(n: int, donor_n: np.ndarray, technology_n: np.ndarray) -> anndata.AnnData:
        type_n = random.choice(6, n, p=[0.3, 0.25, 0.2, 0.12, 0.08, 0.05])
        age_n = random.normal(0.25 * (type_n % 2), 1.0)
        log_ng = type_log[type_n] + effects["donor"][donor_n] + effects["technology"][technology_n]
        log_ng += age_n[:, None] * effects["age"]
        share_ng = np.exp(log_ng) / np.exp(log_ng).sum(1, keepdims=True)
        library_n = random.lognormal(np.log(1500), 0.4, n)
        rate_ng = share_ng * library_n[:, None] * random.gamma(theta, 1 / theta, (n, g))
        obs = pd.DataFrame(
            {
                "type": [f"type {i}" for i in type_n],
                "donor": [f"d{i}" for i in donor_n],
                "technology": [f"t{i}" for i in technology_n],
                "age": 50 + 12 * age_n,
            }
        )
        return anndata.AnnData(sp.csr_matrix(random.poisson(rate_ng).astype(np.float32)), obs=obs)

    donor_n, technology_n = random.integers(0, 4, 2000), random.integers(0, 2, 2000)
    technology_n[donor_n == 3] = 0
    seen = cells(2000, donor_n, technology_n)
    unseen = cells(200, np.full(200, 3), np.full(200, 1))
    for adata, prefix in ((seen, "cell"), (unseen, "new")):
        adata.obs_names = [f"{prefix}_{i}" for i in range(adata.n_obs)]
        adata.var_names = [f"gene_{i}" for i in range(g)]
    return seen, unseen, effects


def data_of(name: str, seed: int) -> tuple[anndata.AnnData, anndata.AnnData | None, dict[str, np.ndarray]]:
    """Return the cells, with their type in obs["type"] and the combinations in obs["joint"]; see `simulated`."""
    unseen, effects = None, {}
    if name == "simulated":
        adata, unseen, effects = simulated(seed)
    else:
        adata = anndata.read_h5ad(SHARED / "kang_muscat_2donors.h5ad")
        adata.obs["type"] = adata.obs["cell_type"].astype(str)
    first, second = FACTORS[name]
    adata.obs["joint"] = adata.obs[first].astype(str) + "/" + adata.obs[second].astype(str)
    return adata, unseen, effects


def scores(position_nj: np.ndarray, obs: pd.DataFrame, factors: tuple[str, str]) -> dict[str, float]:
    """Score an embedding: purity of types, mixing of factors, and how well neighbors predict the age."""
    from sklearn.neighbors import NearestNeighbors

    from scvae_cli.evaluation.batch_mixing import ilisi

    index_nm = NearestNeighbors(n_neighbors=NEIGHBORS + 1).fit(position_nj).kneighbors(return_distance=False)[:, 1:]
    type_n = obs["type"].astype(str).to_numpy()
    found = {"purity": float((type_n[index_nm] == type_n[:, None]).mean())}
    found |= {f"iLISI {key}": ilisi(position_nj, obs[key].astype(str).to_numpy()) for key in factors}
    if "age" in obs:
        age_n, predicted_n = obs["age"].to_numpy(float), np.full(len(obs), np.nan)
        centered_n = age_n - pd.Series(age_n).groupby(type_n).transform("mean").to_numpy()
        same_nm = type_n[index_nm] == type_n[:, None]
        enough = same_nm.sum(1) >= 5
        predicted_n[enough] = (centered_n[index_nm] * same_nm).sum(1)[enough] / same_nm.sum(1)[enough]
        # A squared correlation ignores the slope: it measures whether the embedding depends on the age at all.
        found["age R²"] = float(np.corrcoef(predicted_n[enough], centered_n[enough])[0, 1] ** 2)
    return found


def by_scvae(adata: anndata.AnnData, method: dict[str, Any], factors: tuple[str, ...], seed: int) -> tuple[Any, Any]:
    """Train a model with the covariates of a method; return the model and the embedding."""
    import scvae_cli as scvae

    keys = [factors[i] for i in method.get("factors", ())]
    keys = ["joint"] if method.get("joint") else keys
    age = ["age"] if method.get("age") and "age" in adata.obs else None
    model = scvae.train(adata, seed=seed, threads=1, device="cpu", batch_key=keys or None, continuous_key=age)
    return model, scvae.embed(adata, model, inplace=False).position_nj


def by_scvi(adata: anndata.AnnData, method: dict[str, Any], factors: tuple[str, ...], seed: int, python: str) -> Any:
    """Train scVI in its own environment; return the latent means."""
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder) / "data.h5ad", Path(folder) / "latent.npz"
        columns = [key for key in ("type", *factors, "age") if key in adata.obs]
        obs = adata.obs[columns].astype({key: str for key in columns if key != "age"})
        anndata.AnnData(adata.X, obs=obs, var=adata.var[[]]).write_h5ad(file)
        keys = [word for i in method["factors"] for word in ("--categorical", factors[i])]
        keys += ["--continuous", "age"] if method.get("age") else []
        line = [python, str(HERE / "covariates_scvi.py"), str(file), "--seed", str(seed), "-o", str(output), *keys]
        subprocess.run(line, check=True)
        return np.load(output)["z"]


def effects_found(adata: anndata.AnnData, model: Any, effects: dict[str, np.ndarray]) -> dict[str, float]:
    """Compare decoded effects with the true effects by the correlation and the slope over the genes."""
    import scvae_cli as scvae

    def decoded(batch_as: str) -> np.ndarray:
        rows = scvae.denoise(adata, model, batch_as=batch_as, library=1000, inplace=False).rows
        return np.log(np.concatenate(list(rows.blocks)) + 1e-6).mean(0)

    found, design = {}, model.vae.design
    changes = {"donor": ("donor=d1", "donor=d0"), "technology": ("technology=t1", "technology=t0")}
    changes |= {"age": ("age=62", "age=50")} if any(one.key == "age" for one in design.continuous) else {}
    for key, (high, low) in changes.items():
        truth_g = effects[key] if key == "age" else effects[key][1] - effects[key][0]
        truth_g, found_g = truth_g - truth_g.mean(), decoded(high) - decoded(low)
        found[f"{key} r"] = float(np.corrcoef(found_g, truth_g)[0, 1])
        found[f"{key} slope"] = float(np.polyfit(truth_g, found_g, 1)[0])
    return found


def run(name: str, kind: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one method on one data set, and score it."""
    import scvae_cli as scvae

    adata, unseen, effects = data_of(name, seed)
    method, factors, start = METHODS[kind], FACTORS[name], time.perf_counter()
    if method.get("scvi"):
        position_nj, found = by_scvi(adata, method, factors, seed, arguments.scvi_python), {}
    else:
        model, position_nj = by_scvae(adata, method, factors, seed)
        found = {"held-out ELBO": model.facts["heldout_elbo"]}
        if unseen is not None and not method.get("joint"):
            scored = scvae.score(unseen, model, n_samples=BOUND_SAMPLES, n_simulated=100, inplace=False)
            found["bound of the unseen combination"] = float(scored.iwae.mean())
        if effects and model.vae.design is not None:
            found |= effects_found(adata, model, effects)
    return scores(position_nj, adata.obs, factors) | found | {"seconds": round(time.perf_counter() - start, 1)}


def table(results: dict[str, Any]) -> str:
    """Write the results as Markdown: the mean over the seeds, and the standard deviation where there are several."""
    lines = [
        "# Several covariates",
        "",
        "Written by `benchmarks/covariates.py`; its docstring says what is compared. " + results["hardware"],
        "",
        "Means over the seeds ± standard deviation. Purity is the mean share of the 15 nearest neighbors of a cell "
        "that have its type. iLISI is 0 if the levels of a factor are separate in the embedding, and 1 if they are "
        "mixed. Age R² is 0 if the embedding does not depend on the age. The held-out ELBO, and the importance bound "
        "of the cells with a combination of factors that the training lacks, are in nats per cell; higher is better. "
        "The effects of the covariates on the genes are compared with the true effects by their correlation (r) and "
        "slope: both should be 1.",
    ]
    for name, methods in results["sets"].items():
        columns = list(dict.fromkeys(key for seeds in methods.values() for row in seeds.values() for key in row))
        first, second = FACTORS[name]
        lines += ["", f"## {name}: the first factor is the {first}, the second factor the {second}", ""]
        lines += ["| method | seeds | " + " | ".join(columns) + " |", "|---|--:|" + "--:|" * len(columns)]
        for kind in METHODS:
            if kind not in methods:
                continue
            rows = list(methods[kind].values())
            cells = []
            for column in columns:
                values = [row[column] for row in rows if column in row]
                places = 2 if column in ("held-out ELBO", "bound of the unseen combination") else 3
                places = 0 if column == "seconds" else places
                spread = f" ± {np.std(values, ddof=1):.{places}f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.{places}f}{spread}" if values else "")
            lines.append(f"| {NAMES[kind]} | {len(rows)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the requested methods on the requested data sets, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scvi-python", help="interpreter of an environment with scvi-tools")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sets", default="simulated;kang", help="names, separated by ;")
    parser.add_argument("--methods", default=";".join(METHODS), help="names, separated by ;")
    parser.add_argument("--hardware", default="", help="text on the machine for the table")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in arguments.sets.split(";"):
        for kind in arguments.methods.split(";"):
            skipped = METHODS[kind].get("scvi") and arguments.scvi_python is None
            if skipped or ("age" in kind and name == "kang"):
                continue
            for seed in arguments.seeds.split(","):
                row = run(name, kind, int(seed), arguments)
                # The file is read again, because another run may have added results.
                results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {"sets": {}}
                results["hardware"] = arguments.hardware or results.get("hardware", "")
                results["sets"].setdefault(name, {}).setdefault(kind, {})[seed] = row
                arguments.results.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
                arguments.results.with_suffix(".md").write_text(table(results))
                print(name, kind, seed, row, file=sys.stderr)


if __name__ == "__main__":
    main()
