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
from command_line import run_cli, run_ok
from workbench import DATA, USAGE, Bench, assert_refused, with_two_empty_cells

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
def test_unreadable_data_is_refused(bench, case, verb):
    fragment, make = UNREADABLE[case]
    path = make(bench)
    model = [] if verb == "check" else ["-m", bench.folder / "other.scvae" if verb == "train" else bench.model]
    assert_refused(bench.folder, [verb, path, *model], DATA, fragment)


# --- matrices that are not counts -------------------------------------------------------------------------------------


def text_matrix(bench: Bench) -> None:
    with h5py.File(bench.data, "r+") as file:
        del file["X"]
        file["X"] = np.full((120, 40), "many", dtype=object)


def short_matrix(bench: Bench) -> None:
    with h5py.File(bench.data, "r+") as file:
        file["X"].attrs["shape"] = np.array([119, 40])


def column_out_of_range(bench: Bench) -> None:
    with h5py.File(bench.data, "r+") as file:
        file["X/indices"][5] = 10_000


def duplicate(names: pd.Index) -> list[str]:
    return [names[1], *names[1:]]


# Fault → part of the message, and a function that makes the fault.
NOT_COUNTS: dict[str, tuple[str, Callable[[Bench], object]]] = {
    "log-normalised": (
        "values that are not whole numbers",
        lambda b: b.change(lambda a: setattr(a, "X", sp.csr_matrix(np.log1p(a.X.toarray())))),
    ),
    "negative": ("a negative value (-1)", lambda b: b.with_value(-1)),
    "NaN": ("it has NaN", lambda b: b.with_value(np.nan)),
    "infinite": ("an infinite value", lambda b: b.with_value(np.inf)),
    "negative integers": (
        "a negative value (-2147483648)",
        lambda b: b.change(lambda a: setattr(a, "X", np.where(a.X.toarray() > 0, np.int32(-(2**31)), 0))),
    ),
    "strings": ("does not hold numbers", text_matrix),
    "a shape of its own": ("X has shape (119, 40), but there are 120 cells and 40 genes", short_matrix),
    "a damaged chunk": ("cells.h5ad is damaged", damaged_chunk),
    "indices out of range": ("is damaged", column_out_of_range),
    "no matrix": ("there is no X", lambda b: b.change(lambda a: ad.AnnData(obs=a.obs, var=a.var))),
    "no cells": ("empty (0 cells × 40 genes)", lambda b: b.change(lambda a: a[:0].copy())),
    "no genes": ("empty (120 cells × 0 genes)", lambda b: b.change(lambda a: a[:, :0].copy())),
    "duplicate genes": (
        "occurs more than once", lambda b: b.change(lambda a: setattr(a, "var_names", duplicate(a.var_names)))
    ),
    "duplicate cells": (
        "occurs more than once", lambda b: b.change(lambda a: setattr(a, "obs_names", duplicate(a.obs_names)))
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize("verb", ["train", "embed", "denoise", "score"])
@pytest.mark.parametrize("case", NOT_COUNTS)
def test_matrix_that_is_not_counts_is_refused(bench, case, verb):
    fragment, damage = NOT_COUNTS[case]
    damage(bench)
    assert_refused(bench.folder, bench.train_args() if verb == "train" else bench.args(verb), DATA, fragment)


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize("case", NOT_COUNTS)
def test_check_reports_what_train_refuses(bench, case):
    fragment, damage = NOT_COUNTS[case]
    damage(bench)
    outcome = run_cli("check", bench.data)
    assert outcome.code == DATA
    if outcome.out:
        refusals = [line for line in outcome.out.splitlines() if line.startswith("refuse: ")]
        assert any(fragment in line for line in refusals), outcome.out
        assert json.loads(run_cli("check", bench.data, "--json").out)["ok"] is False
    else:
        assert fragment in outcome.err


def test_message_names_cell_and_gene_of_the_first_invalid_value(bench):
    adata = ad.read_h5ad(bench.data)
    row = int(np.searchsorted(adata.X.indptr, 3, side="right")) - 1
    cell, gene = adata.obs_names[row], adata.var_names[adata.X.indices[3]]
    bench.with_value(0.5)
    assert_refused(bench.folder, bench.train_args(), DATA, f"first in cell {cell!r}, gene {gene!r}")


# --- too few cells or genes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fragment", "keep"),
    [
        ("1 cell is too few", lambda a: a[:1].copy()),
        ("9 cells are too few", lambda a: a[:9].copy()),
        ("1 gene is left to model", lambda a: a[(a.X[:, [0]].toarray() > 0).ravel(), :1].copy()),
        ("cells have no counts", with_two_empty_cells),
    ],
    ids=["one cell", "nine cells", "one gene", "empty cells"],
)
def test_train_refuses_too_few_cells_or_genes(bench, fragment, keep):
    bench.change(keep)
    assert_refused(bench.folder, bench.train_args(), DATA, fragment)
    assert run_cli("check", bench.data).code == DATA


def test_check_reports_counts_even_if_the_batch_key_is_missing(bench):
    outcome = run_cli("check", bench.data, "--batch-key", "donor")
    assert outcome.code == DATA
    assert "raw counts: X" in outcome.out
    assert "refuse: " in outcome.out
    assert "no column 'donor'" in outcome.out


def test_duplicate_genes_in_raw_are_refused(bench):
    def normalize(adata):
        names = adata.var_names.tolist()
        raw = ad.AnnData(adata.X.copy(), obs=adata.obs, var=pd.DataFrame(index=[names[1], *names[1:]]))
        adata.raw = raw
        adata.X = adata.X.multiply(0.5).tocsr()

    bench.change(normalize)
    hint = assert_refused(bench.folder, bench.train_args(), DATA, "occurs more than once")
    assert "raw.var_names_make_unique()" in hint


def with_line_break(names: pd.Index) -> list[str]:
    return [f"{names[0]}\nA", *names[1:]]


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
@pytest.mark.parametrize("frame", ["obs", "var"])
@pytest.mark.parametrize("fault", [duplicate, with_line_break])
@pytest.mark.parametrize("place", ["X", "counts", "raw"])
def test_check_finds_the_counts_and_names_the_fault_of_the_names(bench, frame, fault, place):
    """The counts are good, wherever they are, and only the names have a fault."""

    def damage(adata):
        setattr(adata, f"{frame}_names", fault(getattr(adata, f"{frame}_names")))
        if place == "counts":
            adata.layers["counts"] = adata.X.copy()
        if place == "raw":
            adata.raw = adata
        if place != "X":
            adata.X = adata.X.multiply(0.5).tocsr()

    bench.change(damage)
    outcome = run_cli("check", bench.data)
    assert outcome.code == DATA
    refused = [line for line in outcome.out.splitlines() if line.startswith("refuse: ")]
    assert all(f"{frame}_names" in line or "raw.var_names_make_unique" in line for line in refused)
    assert any(f"{'cell' if frame == 'obs' else 'gene'} name" in line for line in refused)
    if (frame, fault, place) != ("var", duplicate, "raw"):
        assert len(refused) == 1
        assert "raw counts: " in outcome.out
        assert "none that can be used" not in outcome.out


def test_trained_model_accepts_a_single_cell(bench):
    bench.change(lambda a: a[:1].copy())
    for verb, options in {"embed": (), "denoise": (), "score": ("--samples", "2", "--simulated", "100")}.items():
        run_ok(*bench.args(verb, *options))
    assert ad.read_h5ad(bench.data).obsm["scvae_latent"].shape == (1, 4)


def test_training_accepts_a_last_minibatch_of_one_cell(bench):
    bench.change(lambda a: a[:72].copy())
    outcome = run_ok(*bench.train_args("--batch-size", "64", "--json"))
    assert "65 to train on" in outcome.err
    assert np.isfinite(json.loads(outcome.out)["heldout_elbo"])


# --- missing names and invalid values ---------------------------------------------------------------------------------


def without_batch(kind: str) -> Callable[[ad.AnnData], None]:
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
def test_missing_batch_of_a_cell_is_refused(bench, kind):
    bench.change(without_batch(kind))
    fragment = "obs['batch'] has no value for 1 cell"
    assert_refused(bench.folder, bench.train_args("--batch-key", "batch"), DATA, fragment)
    assert fragment in run_cli("check", bench.data, "--batch-key", "batch").out


INVALID_NAMES: dict[str, tuple[int, str, Callable[[Bench], list[object]]]] = {
    "layer": (DATA, "no layer 'spliced'", lambda b: b.train_args("--layer", "spliced")),
    "layer to embed": (DATA, "no layer 'spliced'", lambda b: b.args("embed", "--layer", "spliced")),
    "batch key": (DATA, "no column 'donor' in obs", lambda b: b.train_args("--batch-key", "donor")),
    "groupby": (
        DATA, "no column 'leiden' in obs",
        lambda b: b.args("interpolate", "--groupby", "leiden", "--from", "0", "--to", "1"),
    ),
    "group": (DATA, "no cells with obs['cell_type'] == 'Neuron'", lambda b: b.between_groups("stem", "Neuron")),
    "cell": (DATA, "no cell called 'nobody'", lambda b: b.between_cells("cell_001", "nobody")),
    "from = to": (USAGE, "from 'stem' to itself", lambda b: b.between_groups("stem", "stem")),
    "from without groupby": (
        USAGE, "a trajectory needs --groupby", lambda b: b.args("interpolate", "--from", "stem", "--to", "progenitor")
    ),
    "one cell": (USAGE, "without --to-cell", lambda b: b.args("interpolate", "--from-cell", "cell_001")),
    "cells and groups": (
        USAGE, "given twice", lambda b: b.between_groups("a", "b", "--from-cell", "a", "--to-cell", "b")
    ),
    "kind of path": (USAGE, "--path is 'curved'", lambda b: b.between_groups("stem", "progenitor", "--path", "curved")),
    "batch to decode as": (DATA, "the model has no batch 'May'", lambda b: b.args("denoise", "--batch-as", "May")),
    "gene to denoise": (DATA, "gene 'ACTB' is not in the model", lambda b: b.args("denoise", "--genes", "ACTB")),
    "no gene to denoise": (USAGE, "contains no gene names", lambda b: b.args("denoise", "--genes", ",")),
    "gene list to denoise": (USAGE, "cannot read the gene list", lambda b: b.args("denoise", "--genes", "@no.txt")),
    "gene list to train on": (DATA, "cannot read the gene list", lambda b: b.train_args("--genes", "@no.txt")),
    "genes to train on": (
        DATA, "gene 'ACTB' is not in the data", lambda b: b.train_args("--genes", f"@{b.file('genes.txt', 'ACTB')}")
    ),
    "library": (USAGE, "--library is -5", lambda b: b.args("denoise", "--library", "-5")),
    "library in words": (USAGE, "--library is 'deep'", lambda b: b.args("denoise", "--library", "deep")),
    "observed library of a trajectory": (
        USAGE, "--library is 'observed'", lambda b: b.between_cells("cell_001", "cell_002", "--library", "observed")
    ),
    "key that nests": (USAGE, "--key-added is 'a/b'", lambda b: b.args("embed", "--key-added", "a/b")),
    "empty key": (USAGE, "--key-added is ''", lambda b: b.args("embed", "--key-added", "")),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID_NAMES)
def test_missing_names_and_invalid_values_are_refused(bench, case):
    code, fragment, arguments = INVALID_NAMES[case]
    assert_refused(bench.folder, arguments(bench), code, fragment)


def column(key: str, values: Callable[[ad.AnnData], object]) -> Callable[[ad.AnnData], None]:
    """Set a column of obs."""

    def change(adata: ad.AnnData) -> None:
        adata.obs[key] = values(adata)

    return change


def test_hint_lists_the_existing_groups(bench):
    assert "batch_1, batch_2" in assert_refused(
        bench.folder, bench.args("interpolate", "--groupby", "batch", "--from", "a", "--to", "b"), DATA, "no cells with"
    )


def test_hint_lists_numeric_columns_for_time_key_but_not_for_groupby(bench):
    bench.change(column("hours", lambda a: np.arange(a.n_obs) / 2))
    arguments = bench.args("interpolate", "--groupby", "leiden", "--from", "0", "--to", "1")
    hint = assert_refused(bench.folder, arguments, DATA, "no column 'leiden' in obs")
    assert "--groupby takes one of" in hint
    assert "cell_type" in hint
    assert "hours" not in hint
    hint = assert_refused(bench.folder, bench.args("interpolate", "--time-key", "day"), DATA, "no column 'day' in obs")
    assert "--time-key takes one of" in hint
    assert "hours" in hint


def test_category_without_cells_is_refused(bench):
    bench.change(column("cell_type", lambda a: a.obs["cell_type"].cat.add_categories("Neuron")))
    start = ad.read_h5ad(bench.data).obs["cell_type"].iloc[0]
    assert_refused(
        bench.folder, bench.between_groups(start, "Neuron"), DATA, "no cells with obs['cell_type'] == 'Neuron'"
    )


def test_interpolate_ignores_cells_without_a_group(bench):
    bench.change(without_batch("categorical"))
    run_ok(*bench.args("interpolate", "--groupby", "batch", "--from", "batch_1", "--to", "batch_2"))


def test_model_with_batches_requires_the_batch_column(bench_with_batches):
    bench = bench_with_batches
    bench.change(column("batch", lambda a: ["new", *a.obs["batch"][1:]]))
    assert_refused(bench.folder, bench.args("score"), DATA, "the model was not trained on batch 'new'")
    outcome = run_ok(*bench.args("embed"))
    assert "warning: 1 batch was not in the training data (new)" in outcome.err
    bench.change(lambda a: a.obs.__delitem__("batch"))
    assert_refused(bench.folder, bench.args("score"), DATA, "no column 'batch' in obs")
    run_ok(*bench.args("embed"))
    assert_refused(bench.folder, bench.args("denoise", "--batch-as", "Monday"), DATA, "the model has no batch 'Monday'")


# --- genes that do not match ------------------------------------------------------------------------------------------


def with_renamed_genes(n_shared: int) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        names = list(adata.var_names)
        adata.var_names = [name if i < n_shared else f"ENSG{i}" for i, name in enumerate(names)]

    return change


@pytest.mark.parametrize("n_shared", [0, 20])
def test_missing_genes_are_refused(bench, n_shared):
    bench.change(with_renamed_genes(n_shared))
    hint = assert_refused(bench.folder, bench.args("embed"), DATA, "genes are not in the data")
    assert ("--allow-missing-genes" in hint) == (n_shared > 0)


def test_data_without_any_gene_of_the_model_is_refused(bench):
    bench.change(with_renamed_genes(0))
    arguments = bench.args("embed", "--allow-missing-genes")
    assert_refused(bench.folder, arguments, DATA, "no cell has counts in the modeled genes")


def test_allowed_missing_genes_are_counted_in_a_warning(bench):
    bench.change(with_renamed_genes(20))
    outcome = run_ok(*bench.args("embed", "--allow-missing-genes", "--json"))
    n_missing = json.loads(outcome.out)["missing_genes"]
    assert n_missing >= 15
    assert f"warning: {n_missing} of the model's" in outcome.err


def test_embedding_does_not_depend_on_the_order_of_genes(bench):
    run_ok(*bench.args("embed"))
    before = ad.read_h5ad(bench.data).obsm["X_scvae"]
    bench.change(lambda a: a[:, ::-1].copy())
    run_ok(*bench.args("embed"))
    np.testing.assert_array_equal(ad.read_h5ad(bench.data).obsm["X_scvae"], before)
