"""Each command gives the same arrays and the same refusals on the command line and in Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from command_line import TINY, run_cli, run_ok
from workbench import contents

import scvae_cli as scvae
from scvae_cli.api import respell
from scvae_cli.errors import ScvaeError
from scvae_cli.verbs import VERBS

ENDS = ["batch_1", "batch_2"]
FROM_TO = ["--groupby", "batch", "--from", "batch_1", "--to", "batch_2"]
TRAINED = {"max_epochs": 3, "n_hidden": 16, "n_latent": 4, "n_layers": 1, "batch_size": 32, "threads": 1}
TREATED = {
    "perturbation_key": "batch",
    "control": "batch_1",
    "treated": "batch_2",
    "groupby": "cell_type",
    "group": "stem",
}

# Verb → command line, and arguments in Python.
ARGUMENTS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "annotate": (
        ["--labels-key", "cell_type", "--unlabeled", "stem", "--unknown-rate", "0.1"],
        {"labels_key": "cell_type", "unlabeled": "stem", "unknown_rate": 0.1},
    ),
    "embed": (["--refine", "2", "--umap", "--leiden"], {"refine": 2, "umap": True, "leiden": True}),
    "denoise": (["--samples", "2", "--library", "1000"], {"n_samples": 2, "library": 1000}),
    "interpolate": ([*FROM_TO, "--steps", "9"], {"groupby": "batch", "groups": ENDS, "n_steps": 9}),
    "optimize": (
        ["--toward", "gene_01,gene_02", "--from-cell", "cell_003", "--max-length", "0.1"],
        {"toward": ["gene_01", "gene_02"], "from_cell": "cell_003", "max_length": 0.1},
    ),
    "pseudotime": (
        ["--groupby", "batch", "--root", "batch_1", "--to", "batch_2"],
        {"groupby": "batch", "root": "batch_1", "ends": ["batch_2"]},
    ),
    "score": (["--samples", "2", "--simulated", "200"], {"n_samples": 2, "n_simulated": 200}),
    "de": (["--groupby", "batch", "--group", "batch_1"], {"groupby": "batch", "group": "batch_1"}),
    "diagnose": (
        ["--quick", "--samples", "4", "--refine", "2", "--labels", "cell_type"],
        {"quick": True, "n_samples": 4, "refine": 2, "labels": "cell_type"},
    ),
}
NEW_CELLS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "sample": (["-n", "30", "--seed", "3"], {"n": 30, "seed": 3}),
    "perturb": (
        [word for name, value in TREATED.items() for word in ("--" + name.replace("_", "-"), value)],
        TREATED,
    ),
}


def assert_identical(a: Any, b: Any, at: str) -> None:
    """Assert that two values are identical, whatever their type."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), at
        for key in a:
            assert_identical(a[key], b[key], f"{at}/{key}")
    elif sp.issparse(a):
        assert (sp.csr_matrix(a) != sp.csr_matrix(b)).nnz == 0, at
    elif isinstance(a, pd.Series | pd.Categorical):
        assert list(a) == list(b) or np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True), at
    elif getattr(a, "dtype", None) is not None and a.dtype.names:
        # numpy can treat NaN as equal to NaN only in plain arrays.
        assert a.dtype.names == b.dtype.names, at
        for name in a.dtype.names:
            assert_identical(a[name], b[name], f"{at}/{name}")
    else:
        a, b = np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, at
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), at


def results(adata: ad.AnnData) -> dict[str, Any]:
    """Return every slot that a recorded run lists, except texts."""
    found = {}
    for record in adata.uns["scvae"]["runs"].values():
        for path in json.loads(record)["slots"]:
            group, *keys = path.split("/")
            value = getattr(adata, group)
            for key in keys if group == "uns" else ["/".join(keys)]:
                value = value[key]
            found[path] = value
    return found


def test_every_python_function_is_compared():
    compared = {*ARGUMENTS, *NEW_CELLS, "train", "sweep", "check", "map"}
    assert compared == {verb.name for verb in VERBS if verb.in_python}


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_results_are_equal(copied, verb):
    typed, passed = ARGUMENTS[verb]
    adata = ad.read_h5ad(copied.data)
    run_ok(verb, copied.data, "-m", copied.model, *typed)
    assert getattr(scvae, verb)(adata, copied.model, **passed) is None
    assert_identical(results(ad.read_h5ad(copied.data)), results(adata), verb)


@pytest.mark.parametrize("verb", NEW_CELLS)
def test_new_cells_are_equal(copied, verb):
    typed, passed = NEW_CELLS[verb]
    output = copied.data.with_name("new.h5ad")
    run_ok(verb, copied.data, "-m", copied.model, "-o", output, *typed)
    sampled, read = getattr(scvae, verb)(copied.data, copied.model, **passed), ad.read_h5ad(output)
    assert_identical(read.X, sampled.X, "X")
    assert list(read.obs_names) == list(sampled.obs_names)
    assert_identical(results(read), results(sampled), verb)


def test_trainings_are_equal(copied):
    run_ok("train", copied.data, "-m", copied.data.with_name("typed.scvae"), *TINY)
    scvae.train(copied.data, **TRAINED, device="cpu").save(copied.data.with_name("passed.scvae"))
    weights = [copied.data.with_name(f"{how}.scvae") / "weights.safetensors" for how in ("typed", "passed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_sweeps_are_equal(copied):
    adata = ad.read_h5ad(copied.data)
    run_ok("sweep", copied.data, "--beta", "1,10", *TINY[:2], *TINY[6:])
    scvae.sweep(adata, beta=[1, 10], max_epochs=3, n_layers=1, batch_size=32, threads=1, device="cpu")
    typed, passed = results(ad.read_h5ad(copied.data)), results(adata)
    for found in (typed, passed):
        del found["uns/scvae/sweep/beta"]["seconds"]
    assert_identical(typed, passed, "sweep")


def test_checks_are_equal(copied):
    typed = json.loads(run_ok("check", copied.data, "--batch-key", "batch", "--json").out)
    assert typed == json.loads(json.dumps(scvae.check(copied.data, batch_key="batch").as_dict()))


# Verb, command line, arguments in Python: wrong arguments of every kind.
INVALID: list[tuple[str, list[str], dict[str, Any]]] = [
    ("train", ["--n-latent", "0"], {"n_latent": 0}),
    ("train", ["--n-latent", "three"], {"n_latent": "three"}),
    ("train", ["--likelihood", "gauss"], {"likelihood": "gauss"}),
    ("train", ["--variance", "1"], {"variance": 1.0}),
    ("train", ["--layer", "none"], {"layer": "none"}),
    ("train", ["--batch-key", "none"], {"batch_key": "none"}),
    ("train", ["--device", "banana"], {"device": "banana"}),
    ("train", ["--config", "none.toml"], {"config": "none.toml"}),
    ("check", ["--likelihood", "gauss"], {"likelihood": "gauss"}),
    ("sweep", [], {}),
    ("sweep", ["--beta", "1"], {"beta": [1]}),
    ("sweep", ["--beta", "1,-1"], {"beta": [1, -1]}),
    ("sweep", ["--beta", "1,2", "--n-latent", "2,3"], {"beta": [1, 2], "n_latent": [2, 3]}),
    ("embed", ["--axes", "best"], {"axes": "best"}),
    ("embed", ["--refine", "-1"], {"refine": -1}),
    ("embed", ["--resolution", "2"], {"resolution": 2}),
    ("embed", ["--leiden", "--resolution", "0"], {"leiden": True, "resolution": 0}),
    ("embed", ["--n-neighbors", "5"], {"n_neighbors": 5}),
    ("embed", ["--color", "batch"], {"color": "batch"}),
    ("embed", ["--plot", "new.png", "--color", "batch,none"], {"plot": "new.png", "color": ["batch", "none"]}),
    ("embed", ["--plot", "new.png", "--color", "scvae_leiden"], {"plot": "new.png", "color": ["scvae_leiden"]}),
    ("embed", ["--layer", "none"], {"layer": "none"}),
    ("embed", ["--key-added", "a/b"], {"key_added": "a/b"}),
    ("embed", ["--gene-symbols", "none"], {"gene_symbols": "none"}),
    ("denoise", ["--samples", "-1"], {"n_samples": -1}),
    ("denoise", ["--library", "0"], {"library": 0}),
    ("denoise", ["--library", "mean"], {"library": "mean"}),
    ("denoise", ["--estimate", "best"], {"estimate": "best"}),
    ("denoise", ["--batch-as", "b9"], {"batch_as": "b9"}),
    ("denoise", ["--genes", "none"], {"genes": ["none"]}),
    ("interpolate", [], {}),
    ("interpolate", ["--from", "batch_1", "--to", "batch_2"], {"groups": ENDS}),
    ("interpolate", ["--groupby", "batch", "--from", "a", "--to", "a"], {"groupby": "batch", "groups": ["a", "a"]}),
    ("interpolate", [*FROM_TO[:-1], "batch_9"], {"groupby": "batch", "groups": ["batch_1", "batch_9"]}),
    ("interpolate", ["--groupby", "none", *FROM_TO[2:]], {"groupby": "none", "groups": ENDS}),
    ("interpolate", ["--from-cell", "a", "--to-cell", "b"], {"cells": ["a", "b"]}),
    ("interpolate", ["--time-key", "cell_type"], {"time_key": "cell_type"}),
    ("interpolate", [*FROM_TO, "--steps", "1"], {"groupby": "batch", "groups": ENDS, "n_steps": 1}),
    ("interpolate", [*FROM_TO, "--paths", "1"], {"groupby": "batch", "groups": ENDS, "n_paths": 1}),
    ("interpolate", [*FROM_TO, "--path", "scenic"], {"groupby": "batch", "groups": ENDS, "path": "scenic"}),
    ("interpolate", [*FROM_TO, "--seed", "-1"], {"groupby": "batch", "groups": ENDS, "seed": -1}),
    ("interpolate", [*FROM_TO, "--plot", "new.doc"], {"groupby": "batch", "groups": ENDS, "plot": "new.doc"}),
    ("optimize", [], {}),
    ("optimize", ["--toward", "none", "--from-cell", "cell_003"], {"toward": ["none"], "from_cell": "cell_003"}),
    ("optimize", ["--toward", "gene_01"], {"toward": ["gene_01"]}),
    (
        "optimize",
        ["--toward", "gene_01", "--from-cell", "cell_003", "--within", "2"],
        {"toward": ["gene_01"], "from_cell": "cell_003", "within": 2},
    ),
    ("pseudotime", ["--groupby", "batch"], {"groupby": "batch"}),
    ("pseudotime", ["--root-cell", "none"], {"root_cell": "none"}),
    (
        "pseudotime",
        ["--groupby", "batch", "--root", "batch_1", "--to", "batch_2", "--to", "batch_2"],
        {"groupby": "batch", "root": "batch_1", "ends": ["batch_2", "batch_2"]},
    ),
    (
        "pseudotime",
        ["--groupby", "batch", "--root", "batch_1", "--to", "batch_1"],
        {"groupby": "batch", "root": "batch_1", "ends": ["batch_1"]},
    ),
    ("score", ["--samples", "0"], {"n_samples": 0}),
    ("score", ["--simulated", "9"], {"n_simulated": 9}),
    ("score", ["--fdr", "2"], {"fdr": 2}),
    ("score", ["--seed", "-1"], {"seed": -1}),
    ("de", ["--groupby", "batch", "--group", "none"], {"groupby": "batch", "group": "none"}),
    ("de", ["--groupby", "none", "--group", "a"], {"groupby": "none", "group": "a"}),
    (
        "de",
        ["--groupby", "batch", "--group", "batch_1", "--reference", "batch_1"],
        {"groupby": "batch", "group": "batch_1", "reference": "batch_1"},
    ),
    (
        "de",
        ["--groupby", "batch", "--group", "batch_1", "--fdr", "0"],
        {"groupby": "batch", "group": "batch_1", "fdr": 0},
    ),
    (
        "de",
        ["--groupby", "batch", "--group", "batch_1", "--table", "table.txt"],
        {"groupby": "batch", "group": "batch_1", "table": "table.txt"},
    ),
    ("sample", ["-o", "new.h5ad"], {"output": "new.h5ad"}),
    ("sample", ["-n", "0", "-o", "new.h5ad"], {"n": 0, "output": "new.h5ad"}),
    ("sample", ["-n", "5", "--prototype", "-o", "new.h5ad"], {"n": 5, "prototype": True, "output": "new.h5ad"}),
    ("sample", ["-n", "5", "--group", "a", "-o", "new.h5ad"], {"n": 5, "group": "a", "output": "new.h5ad"}),
    ("sample", ["-n", "5", "--from", "nowhere", "-o", "new.h5ad"], {"n": 5, "source": "nowhere", "output": "new.h5ad"}),
    (
        "perturb",
        [*NEW_CELLS["perturb"][0], "--method", "magic", "-o", "new.h5ad"],
        TREATED | {"method": "magic", "output": "new.h5ad"},
    ),
    (
        "perturb",
        [*NEW_CELLS["perturb"][0], "--treated", "none", "-o", "new.h5ad"],
        TREATED | {"treated": "none", "output": "new.h5ad"},
    ),
    ("diagnose", ["--trainings", "1"], {"n_trainings": 1}),
    ("diagnose", ["--labels", "none"], {"labels": "none"}),
    ("diagnose", ["--quick", "--samples", "0"], {"quick": True, "n_samples": 0}),
]


@pytest.mark.parametrize(
    ("verb", "typed", "passed"), INVALID, ids=[" ".join([verb, *typed]) for verb, typed, _ in INVALID]
)
def test_errors_are_equal(copied, monkeypatch, verb, typed, passed):
    monkeypatch.chdir(copied.data.parent)
    before = contents(copied.data.parent)
    takes_model = verb not in ("train", "check", "sweep")
    places = ["-m", copied.model] if takes_model else ["-m", "new.scvae"] if verb == "train" else []
    outcome = run_cli(verb, copied.data, *places, *typed)
    with pytest.raises(ScvaeError) as error:
        getattr(scvae, verb)(copied.data, *([copied.model] if takes_model else []), **passed)
    assert outcome.code == error.value.exit_code, outcome.err
    declared = next(v for v in VERBS if v.name == verb)
    lines = outcome.err.splitlines()
    assert respell(lines[-2].removeprefix("error: "), declared) == error.value.message
    assert respell(lines[-1].removeprefix("hint: "), declared) == error.value.hint
    assert contents(copied.data.parent) == before


def test_unknown_option_is_refused_with_the_nearest_name(copied):
    outcome = run_cli("embed", copied.data, "--refin", "3")
    assert outcome.code == 2
    with pytest.raises(TypeError, match="did you mean 'refine'"):
        scvae.embed(copied.data, Path(copied.model), refin=3)
