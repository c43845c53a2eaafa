"""Unusable data are refused with a one-line message, a hint and the right exit code, and no file is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from command_line import run_cli, run_well
from workbench import DATA, USAGE, Bench, dropped_rows, refused

# --- files that are not data ------------------------------------------------------------------------------------------


def truncated(bench: Bench) -> Path:
    content = bench.data.read_bytes()
    return bench.file("cells.h5ad", content[: len(content) // 2])


def not_anndata(bench: Bench) -> Path:
    path = bench.folder / "other.h5ad"
    with h5py.File(path, "w") as file:
        file["table"] = np.arange(3)
    return path


def damaged_chunk(bench: Bench) -> Path:
    adata = ad.read_h5ad(bench.data)
    adata.write_h5ad(bench.data, compression="gzip")
    with h5py.File(bench.data) as file:
        start = file["X/data"].id.get_chunk_info(0).byte_offset
    content = bytearray(bench.data.read_bytes())
    content[start : start + 64] = bytes(64)
    return bench.file("cells.h5ad", bytes(content))


UNREADABLE = {
    "missing": ("does not exist", lambda b: b.folder / "nowhere.h5ad"),
    "not HDF5": ("is not HDF5", lambda b: b.file("notes.h5ad", "gene,count\n" * 400)),
    "truncated": ("is truncated", truncated),
    "0 bytes": ("is empty (0 bytes)", lambda b: b.file("empty.h5ad")),
    "not an AnnData": ("not an AnnData: it has no obs", not_anndata),
    "a folder": ("is a folder without a matrix.mtx", lambda b: b.folder),
    "a model folder": ("is a model folder, not data", lambda b: b.model),
    "a model folder of another name": ("is a model folder, not data", lambda b: b.model.rename(b.folder / "model")),
    "10x .h5 missing": ("does not exist", lambda b: b.folder / "nowhere.h5"),
    "10x .h5 not HDF5": ("is not HDF5", lambda b: b.file("notes.h5", "gene,count\n")),
    "10x .h5 of something else": (
        "neither a 10x .h5 nor an AnnData",
        lambda b: not_anndata(b).rename(b.folder / "a.h5"),
    ),
}


@pytest.mark.parametrize("verb", ["check", "train", "embed"])
@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_data(bench, case, verb):
    fragment, make = UNREADABLE[case]
    path = make(bench)
    model = [] if verb == "check" else ["-m", bench.folder / "other.scvae" if verb == "train" else bench.model]
    refused(bench.folder, [verb, path, *model], DATA, fragment)


# --- matrices that are not counts -------------------------------------------------------------------------------------


def text_matrix(bench: Bench) -> None:
    with h5py.File(bench.data, "r+") as file:
        del file["X"]
        file["X"] = np.full((120, 40), "many", dtype=object)


def short_matrix(bench: Bench) -> None:
    with h5py.File(bench.data, "r+") as file:
        file["X"].attrs["shape"] = np.array([119, 40])


def wild_column(bench: Bench) -> None:
    with h5py.File(bench.data, "r+") as file:
        file["X/indices"][5] = 10_000


def duplicate(names: pd.Index) -> list[str]:
    return [names[1], *names[1:]]


# Fault → part of the message, and a function that makes the fault.
NOT_COUNTS: dict[str, tuple[str, Callable[[Bench], object]]] = {
    "log-normalised": (
        "values that are not whole numbers",
        lambda b: b.changed(lambda a: setattr(a, "X", sp.csr_matrix(np.log1p(a.X.toarray())))),
    ),
    "negative": ("a negative value (-1)", lambda b: b.with_value(-1)),
    "NaN": ("it has NaN", lambda b: b.with_value(np.nan)),
    "infinite": ("an infinite value", lambda b: b.with_value(np.inf)),
    "negative integers": (
        "a negative value (-2147483648)",
        lambda b: b.changed(lambda a: setattr(a, "X", np.where(a.X.toarray() > 0, np.int32(-(2**31)), 0))),
    ),
    "strings": ("does not hold numbers", text_matrix),
    "a shape of its own": ("X has shape (119, 40), but there are 120 cells and 40 genes", short_matrix),
    "a damaged chunk": ("cells.h5ad is damaged", damaged_chunk),
    "indices out of range": ("is damaged", wild_column),
    "no matrix": ("there is no X", lambda b: b.changed(lambda a: ad.AnnData(obs=a.obs, var=a.var))),
    "no cells": ("empty (0 cells × 40 genes)", lambda b: b.changed(lambda a: a[:0].copy())),
    "no genes": ("empty (120 cells × 0 genes)", lambda b: b.changed(lambda a: a[:, :0].copy())),
    "duplicate genes": (
        "occurs more than once", lambda b: b.changed(lambda a: setattr(a, "var_names", duplicate(a.var_names)))
    ),
    "duplicate cells": (
        "occurs more than once", lambda b: b.changed(lambda a: setattr(a, "obs_names", duplicate(a.obs_names)))
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize("verb", ["train", "embed", "denoise", "score"])
@pytest.mark.parametrize("case", NOT_COUNTS)
def test_data_that_is_not_counts(bench, case, verb):
    fragment, spoil = NOT_COUNTS[case]
    spoil(bench)
    refused(bench.folder, bench.train() if verb == "train" else bench.ask(verb), DATA, fragment)


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize("case", NOT_COUNTS)
def test_check_tells_what_training_would_refuse(bench, case):
    fragment, spoil = NOT_COUNTS[case]
    spoil(bench)
    outcome = run_cli("check", bench.data)
    assert outcome.code == DATA
    if outcome.out:
        refusals = [line for line in outcome.out.splitlines() if line.startswith("refuse: ")]
        assert any(fragment in line for line in refusals), outcome.out
        assert json.loads(run_cli("check", bench.data, "--json").out)["ok"] is False
    else:
        assert fragment in outcome.err


def test_the_first_offender_is_named(bench):
    adata = ad.read_h5ad(bench.data)
    row = int(np.searchsorted(adata.X.indptr, 3, side="right")) - 1
    cell, gene = adata.obs_names[row], adata.var_names[adata.X.indices[3]]
    bench.with_value(0.5)
    refused(bench.folder, bench.train(), DATA, f"first in cell {cell!r}, gene {gene!r}")


# --- too little to learn from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fragment", "keep"),
    [
        ("1 cell is too few", lambda a: a[:1].copy()),
        ("9 cells are too few", lambda a: a[:9].copy()),
        ("1 gene is left to model", lambda a: a[(a.X[:, [0]].toarray() > 0).ravel(), :1].copy()),
        ("cells have no counts", dropped_rows),
    ],
    ids=["one cell", "nine cells", "one gene", "empty cells"],
)
def test_too_little_to_train_on(bench, fragment, keep):
    bench.changed(keep)
    refused(bench.folder, bench.train(), DATA, fragment)
    assert run_cli("check", bench.data).code == DATA


def test_a_check_finds_counts_whatever_else_is_wrong(bench):
    outcome = run_cli("check", bench.data, "--batch-key", "donor")
    assert outcome.code == DATA
    assert "raw counts: X" in outcome.out
    assert "refuse: " in outcome.out
    assert "no column 'donor'" in outcome.out


def test_genes_that_repeat_in_raw_are_refused_as_others_are(bench):
    def normalised(adata):
        names = adata.var_names.tolist()
        raw = ad.AnnData(adata.X.copy(), obs=adata.obs, var=pd.DataFrame(index=[names[1], *names[1:]]))
        adata.raw = raw
        adata.X = adata.X.multiply(0.5).tocsr()

    bench.changed(normalised)
    refused(bench.folder, bench.train(), DATA, "occurs more than once")


def test_one_cell_is_enough_to_ask_about(bench):
    bench.changed(lambda a: a[:1].copy())
    for verb, options in {"embed": (), "denoise": (), "score": ("--samples", "2", "--simulated", "100")}.items():
        run_well(*bench.ask(verb, *options))
    assert ad.read_h5ad(bench.data).obsm["scvae_latent"].shape == (1, 4)


def test_last_minibatch_of_one_cell_trains(bench):
    bench.changed(lambda a: a[:72].copy())
    outcome = run_well(*bench.train("--batch-size", "64", "--json"))
    assert "65 to train on" in outcome.err
    assert np.isfinite(json.loads(outcome.out)["heldout_elbo"])


# --- names that are not there -----------------------------------------------------------------------------------------


def gap(kind: str) -> Callable[[ad.AnnData], None]:
    """Leave one cell without a batch."""

    def change(adata: ad.AnnData) -> None:
        text = adata.obs["batch"].astype(object)
        text.iloc[7] = None
        codes = pd.Series(np.arange(adata.n_obs) % 2, index=adata.obs_names)
        adata.obs["batch"] = {
            "categorical": lambda: text.astype("category"),
            "float": lambda: codes.astype(float).where(codes.index != codes.index[7]),
            "nullable integer": lambda: codes.astype("Int64").where(codes.index != codes.index[7]),
            "nullable boolean": lambda: codes.astype("boolean").where(codes.index != codes.index[7]),
        }[kind]()

    return change


@pytest.mark.parametrize("kind", ["categorical", "float", "nullable integer", "nullable boolean"])
def test_missing_batches(bench, kind):
    bench.changed(gap(kind))
    fragment = "obs['batch'] has no value for 1 cell"
    refused(bench.folder, bench.train("--batch-key", "batch"), DATA, fragment)
    assert fragment in run_cli("check", bench.data, "--batch-key", "batch").out


NAMES: dict[str, tuple[int, str, Callable[[Bench], list[object]]]] = {
    "layer": (DATA, "no layer 'spliced'", lambda b: b.train("--layer", "spliced")),
    "layer to embed": (DATA, "no layer 'spliced'", lambda b: b.ask("embed", "--layer", "spliced")),
    "batch key": (DATA, "no column 'donor' in obs", lambda b: b.train("--batch-key", "donor")),
    "groupby": (
        DATA, "no column 'leiden' in obs",
        lambda b: b.ask("interpolate", "--groupby", "leiden", "--from", "0", "--to", "1"),
    ),
    "group": (DATA, "no cells with obs['cell_type'] == 'Neuron'", lambda b: b.walk("stem", "Neuron")),
    "cell": (DATA, "no cell called 'nobody'", lambda b: b.hop("cell_001", "nobody")),
    "from = to": (USAGE, "from 'stem' to itself", lambda b: b.walk("stem", "stem")),
    "from without groupby": (
        USAGE, "a trajectory needs --groupby", lambda b: b.ask("interpolate", "--from", "stem", "--to", "progenitor")
    ),
    "one cell": (USAGE, "without --to-cell", lambda b: b.ask("interpolate", "--from-cell", "cell_001")),
    "cells and groups": (USAGE, "given twice", lambda b: b.walk("a", "b", "--from-cell", "a", "--to-cell", "b")),
    "kind of path": (USAGE, "--path is 'curved'", lambda b: b.walk("stem", "progenitor", "--path", "curved")),
    "batch to decode as": (DATA, "the model has no batch 'May'", lambda b: b.ask("denoise", "--batch-as", "May")),
    "gene to denoise": (DATA, "gene 'ACTB' is not in the model", lambda b: b.ask("denoise", "--genes", "ACTB")),
    "no gene to denoise": (USAGE, "contains no gene names", lambda b: b.ask("denoise", "--genes", ",")),
    "gene list to denoise": (USAGE, "cannot read the gene list", lambda b: b.ask("denoise", "--genes", "@no.txt")),
    "gene list to train on": (DATA, "cannot read the gene list", lambda b: b.train("--genes", "@no.txt")),
    "genes to train on": (
        DATA, "gene 'ACTB' is not in the data", lambda b: b.train("--genes", f"@{b.file('genes.txt', 'ACTB')}")
    ),
    "library": (USAGE, "--library is -5", lambda b: b.ask("denoise", "--library", "-5")),
    "library in words": (USAGE, "--library is 'deep'", lambda b: b.ask("denoise", "--library", "deep")),
    "observed library of a trajectory": (
        USAGE, "--library is 'observed'", lambda b: b.hop("cell_001", "cell_002", "--library", "observed")
    ),
    "key that nests": (USAGE, "--key-added is 'a/b'", lambda b: b.ask("embed", "--key-added", "a/b")),
    "empty key": (USAGE, "--key-added is ''", lambda b: b.ask("embed", "--key-added", "")),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names_that_are_not_there(bench, case):
    code, fragment, arguments = NAMES[case]
    refused(bench.folder, arguments(bench), code, fragment)


def column(key: str, values: Callable[[ad.AnnData], object]) -> Callable[[ad.AnnData], None]:
    """Set a column of obs."""

    def change(adata: ad.AnnData) -> None:
        adata.obs[key] = values(adata)

    return change


def test_what_there_is_is_named(bench):
    assert "batch_1, batch_2" in refused(
        bench.folder, bench.ask("interpolate", "--groupby", "batch", "--from", "a", "--to", "b"), DATA, "no cells with"
    )


def test_measurements_are_offered_as_time_points_but_not_as_groups(bench):
    bench.changed(column("hours", lambda a: np.arange(a.n_obs) / 2))
    walk = bench.ask("interpolate", "--groupby", "leiden", "--from", "0", "--to", "1")
    hint = refused(bench.folder, walk, DATA, "no column 'leiden' in obs")
    assert "--groupby takes one of" in hint
    assert "cell_type" in hint
    assert "hours" not in hint
    hint = refused(bench.folder, bench.ask("interpolate", "--time-key", "day"), DATA, "no column 'day' in obs")
    assert "--time-key takes one of" in hint
    assert "hours" in hint


def test_a_category_without_cells(bench):
    bench.changed(column("cell_type", lambda a: a.obs["cell_type"].cat.add_categories("Neuron")))
    start = ad.read_h5ad(bench.data).obs["cell_type"].iloc[0]
    refused(bench.folder, bench.walk(start, "Neuron"), DATA, "no cells with obs['cell_type'] == 'Neuron'")


def test_cells_in_no_group_do_not_hinder_a_walk(bench):
    bench.changed(gap("categorical"))
    run_well(*bench.ask("interpolate", "--groupby", "batch", "--from", "batch_1", "--to", "batch_2"))


def test_model_with_batches_asks_for_them(bench_with_batches):
    bench = bench_with_batches
    bench.changed(column("batch", lambda a: ["new", *a.obs["batch"][1:]]))
    refused(bench.folder, bench.ask("score"), DATA, "the model was not trained on batch 'new'")
    outcome = run_well(*bench.ask("embed"))
    assert "warning: 1 batch was not in the training data (new)" in outcome.err
    bench.changed(lambda a: a.obs.__delitem__("batch"))
    refused(bench.folder, bench.ask("score"), DATA, "no column 'batch' in obs")
    run_well(*bench.ask("embed"))
    refused(bench.folder, bench.ask("denoise", "--batch-as", "Monday"), DATA, "the model has no batch 'Monday'")


# --- genes that do not match ------------------------------------------------------------------------------------------


def renamed(n_shared: int) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        names = list(adata.var_names)
        adata.var_names = [name if i < n_shared else f"ENSG{i}" for i, name in enumerate(names)]

    return change


@pytest.mark.parametrize("n_shared", [0, 20])
def test_genes_that_do_not_match(bench, n_shared):
    bench.changed(renamed(n_shared))
    hint = refused(bench.folder, bench.ask("embed"), DATA, "genes are not in the data")
    assert ("--allow-missing-genes" in hint) == (n_shared > 0)


def test_no_shared_gene_cannot_be_allowed(bench):
    bench.changed(renamed(0))
    arguments = bench.ask("embed", "--allow-missing-genes")
    refused(bench.folder, arguments, DATA, "no cell has counts in the modeled genes")


def test_missing_genes_can_be_allowed_and_are_counted(bench):
    bench.changed(renamed(20))
    outcome = run_well(*bench.ask("embed", "--allow-missing-genes", "--json"))
    n_missing = json.loads(outcome.out)["missing_genes"]
    assert n_missing >= 15
    assert f"warning: {n_missing} of the model's" in outcome.err


def test_order_of_genes_does_not_matter(bench):
    run_well(*bench.ask("embed"))
    before = ad.read_h5ad(bench.data).obsm["X_scvae"]
    bench.changed(lambda a: a[:, ::-1].copy())
    run_well(*bench.ask("embed"))
    np.testing.assert_array_equal(ad.read_h5ad(bench.data).obsm["X_scvae"], before)
