"""Whatever is wrong with the input: one line, one hint, the right exit code, and nothing touched."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from command_line import TINY, run_cli, run_elsewhere, run_well
from conftest import Trained, cells
from tenx import write_10x_h5

import scvae_cli as scvae
from scvae_cli.errors import ConfigError, DataError

USAGE, DATA, MODEL, DEVICE = 2, 3, 4, 5


class Bench:
    """A folder with `cells.h5ad` and its model in `cells.scvae`, to break things on."""

    def __init__(self, folder: Path, trained: Trained) -> None:
        self.folder = folder
        copied = trained.copy_to(folder)
        self.data, self.model = copied.data, copied.model

    def changed(self, change: Callable[[ad.AnnData], ad.AnnData | None]) -> Path:
        """Rewrite the data after a change."""
        adata = ad.read_h5ad(self.data)
        result = change(adata)
        (adata if result is None else result).write_h5ad(self.data)
        return self.data

    def with_value(self, value: float) -> Path:
        """Rewrite the data with one value replaced."""
        with h5py.File(self.data, "r+") as file:
            file["X/data"][3] = value
        return self.data

    def file(self, name: str, content: bytes | str = b"") -> Path:
        """Make a file."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def train(self, *options: object) -> list[object]:
        """Arguments that train a model of another name."""
        return ["train", self.data, "-m", self.folder / "other.scvae", *TINY, *options]

    def ask(self, verb: str, *options: object) -> list[object]:
        """Arguments that put a question to the model."""
        return [verb, self.data, "-m", self.model, *options]

    def walk(self, start: str, end: str, *options: object) -> list[object]:
        """Arguments that interpolate between groups."""
        return self.ask("interpolate", "--groupby", "cell_type", "--from", start, "--to", end, *options)

    def hop(self, start: str, end: str, *options: object) -> list[object]:
        """Arguments that interpolate between cells."""
        return self.ask("interpolate", "--from-cell", start, "--to-cell", end, *options)


@pytest.fixture
def bench(tmp_path, trained) -> Bench:
    return Bench(tmp_path, trained)


@pytest.fixture
def bench_with_batches(tmp_path, trained_on_batches) -> Bench:
    return Bench(tmp_path, trained_on_batches)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder and its hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(folder: Path, arguments: list[object], code: int, fragment: str) -> str:
    """Assert that a command refuses as it should; returns the hint."""
    before = contents(folder)
    outcome = run_cli(*arguments)
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    hints = [line for line in outcome.err.splitlines() if line.startswith("hint: ")]
    assert len(errors) == len(hints) == 1, outcome.err
    assert fragment in errors[0]
    assert outcome.err.endswith(f"{errors[0]}\n{hints[0]}\n")
    assert contents(folder) == before
    return hints[0]


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
    "10x .h5 not HDF5": ("cannot be read as a 10x .h5", lambda b: b.file("notes.h5", "gene,count\n")),
    "10x .h5 of something else": ("cannot be read as a 10x .h5", lambda b: not_anndata(b).rename(b.folder / "a.h5")),
}


@pytest.mark.parametrize("verb", ["check", "train", "embed"])
@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_data(bench, case, verb):
    fragment, make = UNREADABLE[case]
    path = make(bench)
    model = [] if verb == "check" else ["-m", bench.folder / "other.scvae" if verb == "train" else bench.model]
    refused(bench.folder, [verb, path, *model], DATA, fragment)


# --- matrices that are not counts -------------------------------------------------------------------------------------


def dropped_rows(adata: ad.AnnData) -> ad.AnnData:
    """As many cells as genes were empty."""
    adata.X = sp.csr_matrix(adata.X.multiply(np.arange(adata.n_obs)[:, None] >= 2))
    return adata


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


# What is wrong → part of the message, and how it is done.
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
        ("1 cell(s) are too few", lambda a: a[:1].copy()),
        ("9 cell(s) are too few", lambda a: a[:9].copy()),
        ("1 gene(s) left to model", lambda a: a[(a.X[:, [0]].toarray() > 0).ravel(), :1].copy()),
        ("cell(s) have no counts", dropped_rows),
    ],
    ids=["one cell", "nine cells", "one gene", "empty cells"],
)
def test_too_little_to_train_on(bench, fragment, keep):
    bench.changed(keep)
    refused(bench.folder, bench.train(), DATA, fragment)
    assert run_cli("check", bench.data).code == DATA


def test_one_cell_is_enough_to_ask_about(bench):
    bench.changed(lambda a: a[:1].copy())
    for verb in ("embed", "denoise", "score"):
        run_well(*bench.ask(verb))
    assert ad.read_h5ad(bench.data).obsm["X_scvae"].shape == (1, 4)


def test_last_minibatch_of_one_cell_trains(bench):
    bench.changed(lambda a: a[:72].copy())
    outcome = run_well(*bench.train("--batch-size", "64", "--json"))
    assert "65 to train on" in outcome.err
    assert np.isfinite(json.loads(outcome.out)["heldout_elbo"])


# --- empty cells ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["embed", "denoise", "score", "interpolate"])
def test_empty_cells_are_refused_or_get_nan(bench, verb):
    bench.changed(dropped_rows)
    options = () if verb != "interpolate" else ("--groupby", "batch", "--from", "batch_1", "--to", "batch_2")
    hint = refused(bench.folder, bench.ask(verb, *options), DATA, "2 cell(s) have no counts")
    assert "--drop-empty" in hint
    run_well(*bench.ask(verb, *options, "--drop-empty"))
    adata = ad.read_h5ad(bench.data)
    result = {
        "embed": lambda: np.hstack([adata.obsm["X_scvae"], adata.obsm["scvae_latent_var"]]),
        "denoise": lambda: adata.layers["scvae_denoised"][:, adata.var["scvae_modelled"].to_numpy()],
        "score": lambda: adata.obs[["scvae_elbo", "scvae_iwae"]].to_numpy(),
        "interpolate": lambda: adata.obs[["scvae_pseudotime_batch_1_to_batch_2"]].to_numpy(),
    }[verb]()
    assert np.isnan(result[:2]).all()
    # A path leaves cells far from it out as well.
    assert not np.isnan(result[2:]).all() if verb == "interpolate" else not np.isnan(result[2:]).any()


def test_dropping_empty_cells_changes_no_other_result(bench):
    run_well(*bench.ask("embed"))
    before = ad.read_h5ad(bench.data).obsm["X_scvae"]
    bench.changed(dropped_rows)
    run_well(*bench.ask("embed", "--drop-empty"))
    np.testing.assert_allclose(ad.read_h5ad(bench.data).obsm["X_scvae"][2:], before[2:], rtol=1e-5, atol=1e-6)


def test_training_drops_empty_cells_when_told(bench):
    bench.changed(dropped_rows)
    outcome = run_well(*bench.train("--drop-empty", "--json"))
    assert json.loads(outcome.out)["n_cells"] == 118


def test_a_cell_without_counts_is_no_end_of_a_walk(bench):
    first = bench.changed(dropped_rows) and ad.read_h5ad(bench.data).obs_names
    arguments = bench.ask("interpolate", "--from-cell", first[0], "--to-cell", first[5], "--drop-empty")
    refused(bench.folder, arguments, DATA, "has no counts in the modelled genes")


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
    fragment = "obs['batch'] has no value for 1 cell(s)"
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
    "from without groupby": (USAGE, "a walk needs --groupby", lambda b: b.ask("interpolate", "--from", "stem")),
    "one cell": (USAGE, "needs both", lambda b: b.ask("interpolate", "--from-cell", "cell_001")),
    "cells and groups": (USAGE, "both given", lambda b: b.walk("a", "b", "--from-cell", "a", "--to-cell", "b")),
    "kind of path": (USAGE, "--path is 'geodesic'", lambda b: b.walk("stem", "other", "--path", "geodesic")),
    "batch to decode as": (DATA, "the model knows no batch 'May'", lambda b: b.ask("denoise", "--batch-as", "May")),
    "gene to denoise": (DATA, "gene 'ACTB' is not in the model", lambda b: b.ask("denoise", "--genes", "ACTB")),
    "no gene to denoise": (USAGE, "names no gene", lambda b: b.ask("denoise", "--genes", ",")),
    "gene list to denoise": (USAGE, "cannot read the gene list", lambda b: b.ask("denoise", "--genes", "@no.txt")),
    "gene list to train on": (DATA, "cannot read the gene list", lambda b: b.train("--genes", "@no.txt")),
    "genes to train on": (
        DATA, "1 gene(s) of", lambda b: b.train("--genes", f"@{b.file('genes.txt', 'ACTB')}")
    ),
    "library": (DATA, "--library is '-5'", lambda b: b.ask("denoise", "--library", "-5")),
    "library in words": (DATA, "--library is 'deep'", lambda b: b.ask("denoise", "--library", "deep")),
    "observed library of a walk": (
        DATA, "no observed library size", lambda b: b.hop("cell_001", "cell_002", "--library", "observed")
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
    refused(bench.folder, bench.ask("score"), DATA, "batch 'new' is not one the model was trained on")
    outcome = run_well(*bench.ask("embed"))
    assert "warning: 1 batch(es) were not in the training data (new)" in outcome.err
    bench.changed(lambda a: a.obs.__delitem__("batch"))
    refused(bench.folder, bench.ask("score"), DATA, "no column 'batch' in obs")
    run_well(*bench.ask("embed"))
    refused(bench.folder, bench.ask("denoise", "--batch-as", "Monday"), DATA, "the model knows no batch 'Monday'")


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
    assert "--allow-missing-genes" in hint


def test_no_shared_gene_cannot_be_allowed(bench):
    bench.changed(renamed(0))
    arguments = bench.ask("embed", "--allow-missing-genes")
    refused(bench.folder, arguments, DATA, "no cell has counts in the modelled genes")


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


# --- model folders ----------------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[Bench], object]:
    return lambda b: (b.model / name).unlink()


def flipped(name: str) -> Callable[[Bench], object]:
    """Change one byte in the middle of a file."""

    def change(bench: Bench) -> None:
        content = bytearray((bench.model / name).read_bytes())
        content[len(content) // 2] ^= 1
        (bench.model / name).write_bytes(content)

    return change


def config(**changes: object) -> Callable[[Bench], object]:
    def change(bench: Bench) -> None:
        path = bench.model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


MODELS: dict[str, tuple[str, Callable[[Bench], object]]] = {
    "missing": ("there is no model folder", lambda b: shutil.rmtree(b.model)),
    **{
        f"without {name}": (f"is incomplete: it has no {name}", without(name))
        for name in ("config.json", "genes.txt", "heldout_cells.txt", "weights.safetensors", "history.csv")
    },
    **{
        f"changed {name}": (f"{name} is not the file that was saved", flipped(name))
        for name in ("genes.txt", "heldout_cells.txt", "weights.safetensors", "history.csv")
    },
    "other batches": ("config.json is not the file that was saved", config(batches=["a", "b"])),
    "other facts": ("config.json is not the file that was saved", config(facts={})),
    "no hashes": ("is not the file that was saved", config(sha256={})),
    "hashes of another kind": ("config.json is incomplete", config(sha256=["abc"])),
    "newer format": ("in a newer format", config(format=2, scvae_version="9.0")),
    "format in words": ("in a newer format", config(format="two")),
    "config that is not JSON": ("config.json is damaged", lambda b: (b.model / "config.json").write_text("{")),
    "config of another shape": ("config.json is damaged", lambda b: (b.model / "config.json").write_text("[1]")),
    "config that is not text": ("config.json is damaged", lambda b: (b.model / "config.json").write_bytes(b"\xff\xfe")),
}


@pytest.mark.parametrize("verb", ["embed", "info"])
@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_used(bench, case, verb):
    fragment, spoil = MODELS[case]
    spoil(bench)
    refused(bench.folder, bench.ask("embed") if verb == "embed" else ["info", bench.model], MODEL, fragment)


@pytest.mark.parametrize(
    ("fragment", "options"),
    [
        ("exists", lambda b: ["-m", b.model]),
        ("exists and is not a model folder", lambda b: ["-m", b.data, "--force"]),
        ("is not a folder that can be written to", lambda b: ["-m", b.folder / "no" / "such.scvae"]),
        ("no interrupted training to resume", lambda b: ["-m", b.folder / "new.scvae", "--resume"]),
    ],
    ids=["exists", "a file in the way", "no such folder", "nothing to resume"],
)
def test_places_a_model_cannot_go(bench, fragment, options):
    refused(bench.folder, ["train", bench.data, *TINY, *options(bench)], MODEL, fragment)


# --- where results cannot go ------------------------------------------------------------------------------------------


def test_output_that_exists_needs_force(bench):
    other = bench.file("other.h5ad", "precious")
    assert "--force" in refused(bench.folder, bench.ask("embed", "-o", other), DATA, "exists")
    run_well(*bench.ask("embed", "-o", other, "--force"))
    assert "X_scvae" in ad.read_h5ad(other).obsm


PLACES: dict[str, tuple[int, str, Callable[[Bench], list[object]]]] = {
    "not .h5ad": (DATA, "does not end in .h5ad", lambda b: b.ask("embed", "-o", b.folder / "out.csv")),
    "a folder": (DATA, "is a folder", lambda b: b.ask("embed", "-o", folder(b, "out.h5ad"))),
    "no such folder": (DATA, "is not a folder", lambda b: b.ask("embed", "-o", b.folder / "no" / "out.h5ad")),
    "steps not .h5ad": (DATA, "does not end in .h5ad", lambda b: b.walk("a", "b", "--path-out", "steps.csv")),
    "steps exist": (DATA, "exists", lambda b: b.walk("a", "b", "--path-out", b.file("steps.h5ad"))),
    "steps in the data": (USAGE, "holds the cells", lambda b: b.walk("a", "b", "--path-out", b.data, "--force")),
    "steps in the input": (
        USAGE,
        "holds the cells",
        lambda b: b.walk("a", "b", "--path-out", b.data, "-o", b.folder / "out.h5ad", "--force"),
    ),
    "steps in the output": (
        USAGE,
        "holds the cells",
        lambda b: b.walk("a", "b", "--path-out", b.folder / "out.h5ad", "-o", b.folder / "out.h5ad"),
    ),
    "simulation exists": (DATA, "exists", lambda b: ["simulate", b.data]),
    "simulation not .h5ad": (DATA, "does not end in .h5ad", lambda b: ["simulate", b.folder / "out"]),
}


def folder(bench: Bench, name: str) -> Path:
    (bench.folder / name).mkdir()
    return bench.folder / name


@pytest.mark.parametrize("case", PLACES)
def test_places_results_cannot_go(bench, case):
    code, fragment, arguments = PLACES[case]
    refused(bench.folder, arguments(bench), code, fragment)


ASKED = {
    "embed": (),
    "denoise": (),
    "score": (),
    "interpolate": ("--groupby", "batch", "--from", "batch_1", "--to", "batch_2"),
}


@pytest.fixture
def no_computing(monkeypatch):
    """Fail when cells are encoded: what can be refused before is refused before."""
    monkeypatch.setattr("scvae_cli.model.vae.VAE.encode", None)


@pytest.mark.parametrize("verb", ASKED)
def test_read_only_places_are_found_before_computing(bench, no_computing, verb):
    bench.data.chmod(0o444)
    assert "chmod u+w" in refused(bench.folder, bench.ask(verb, *ASKED[verb]), DATA, "cells.h5ad is read-only")
    bench.data.chmod(0o644)
    bench.folder.chmod(0o555)
    refused(bench.folder, bench.ask(verb, *ASKED[verb]), DATA, "is read-only")
    bench.folder.chmod(0o755)


def test_model_folder_is_not_put_into_a_read_only_one(bench):
    place = folder(bench, "shelf")
    place.chmod(0o555)
    arguments = ["train", bench.data, *TINY, "-m", place / "cells.scvae"]
    refused(bench.folder, arguments, MODEL, "is not a folder that can be written to")


def test_read_only_data_can_be_written_elsewhere(bench):
    bench.data.chmod(0o444)
    out = bench.folder / "out.h5ad"
    run_well(*bench.ask("embed", "-o", out))
    run_well("denoise", out, "-m", bench.model)
    assert set(ad.read_h5ad(out).layers) == {"scvae_denoised"}


# Slots of the user's own that stand where a result would go.
FOREIGN: dict[str, tuple[str, Callable[[ad.AnnData], object]]] = {
    "embed": ("obsm/X_scvae", lambda a: a.obsm.__setitem__("X_scvae", np.ones((120, 2)))),
    "denoise": ("layers/scvae_denoised", lambda a: a.layers.__setitem__("scvae_denoised", a.X.copy())),
    "score": ("obs/scvae_elbo", column("scvae_elbo", lambda a: "mine")),
    "interpolate": (
        "varm/scvae_path_batch_1_to_batch_2",
        lambda a: a.varm.__setitem__("scvae_path_batch_1_to_batch_2", np.ones((40, 2))),
    ),
}


def element(adata: ad.AnnData, path: str) -> np.ndarray:
    group, key = path.split("/")
    value = getattr(adata, group)[key]
    return value.toarray() if sp.issparse(value) else np.asarray(value)


@pytest.mark.parametrize("verb", FOREIGN)
def test_slots_that_are_not_ours(bench, monkeypatch, verb):
    path, put = FOREIGN[verb]
    bench.changed(put)
    mine = ad.read_h5ad(bench.data)
    with monkeypatch.context() as patch:
        patch.setattr("scvae_cli.model.vae.VAE.encode", None)
        hint = refused(bench.folder, bench.ask(verb, *ASKED[verb]), DATA, f"{path} is there already")
    assert "--key-added" in hint
    run_well(*bench.ask(verb, *ASKED[verb], "--key-added", "beside"))
    kept, original = (element(adata, path) for adata in (ad.read_h5ad(bench.data), mine))
    np.testing.assert_array_equal(kept, original)
    run_well(*bench.ask(verb, *ASKED[verb], "--force"))
    # Once ours, it is replaced without asking.
    run_well(*bench.ask(verb, *ASKED[verb]))


@pytest.mark.parametrize("value", ["mine", {"notes": "mine"}], ids=["text", "dict"])
def test_provenance_does_not_replace_what_is_not_ours(bench, value):
    bench.changed(lambda a: a.uns.__setitem__("scvae", value))
    refused(bench.folder, bench.ask("embed"), DATA, "uns/scvae is there already")
    run_well(*bench.ask("embed", "--key-added", "mine"))
    assert ad.read_h5ad(bench.data).uns["scvae"] == value
    run_well(*bench.ask("embed", "--force"))
    uns = ad.read_h5ad(bench.data).uns["scvae"]
    assert set(uns) == {"runs"} | (set(value) if isinstance(value, dict) else set())


def test_10x_needs_an_output(tmp_path, trained):
    source = tmp_path / "cells.h5"
    write_10x_h5(source, cells())
    refused(tmp_path, ["embed", source, "-m", trained.model], USAGE, "is not an .h5ad")


def test_records_that_are_not_ours_count_for_nothing(bench):
    uns = {"runs": {"embed": json.dumps({"slots": ["obsm/X_scvae"]}), "notes": "{", "list": "[1]"}}
    bench.changed(lambda a: a.uns.__setitem__("scvae", uns))
    assert "no results of scvae" in run_well("info", bench.data).out
    refused(bench.folder, bench.ask("embed"), DATA, "uns/scvae is there already")


# --- AnnData in memory ------------------------------------------------------------------------------------------------


def test_slots_in_memory_that_are_not_ours(bench):
    adata = ad.read_h5ad(bench.data)
    adata.obsm["X_scvae"] = np.ones((120, 2))
    with pytest.raises(DataError, match="obsm/X_scvae is there already"):
        scvae.embed(adata, bench.model)
    np.testing.assert_array_equal(adata.obsm["X_scvae"], np.ones((120, 2)))
    scvae.embed(adata, bench.model, force=True)
    scvae.embed(adata, bench.model)
    assert adata.obsm["X_scvae"].shape == (120, 4)


def test_data_in_memory_has_no_output(bench):
    with pytest.raises(ConfigError, match="changed in place"):
        scvae.embed(ad.read_h5ad(bench.data), bench.model, output=bench.folder / "out.h5ad")


def test_backed_data_is_not_in_memory(bench):
    backed = ad.read_h5ad(bench.data, backed="r")
    with pytest.raises(DataError, match="backed by a file"):
        scvae.embed(backed, bench.model)
    backed.file.close()


def test_strings_in_memory(bench):
    adata = ad.read_h5ad(bench.data)
    adata.layers["text"] = np.full(adata.shape, "many", dtype=object)
    with pytest.raises(DataError, match="does not hold numbers"):
        scvae.embed(adata, bench.model, layer="text")


# --- full disk --------------------------------------------------------------------------------------------------------

# No file may grow beyond a bound: what a full disk does, for one process.
_FULL_DISK = """
import resource, sys
from scvae_cli.cli.app import run
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(run(sys.argv[2:]))
"""


@pytest.mark.parametrize("verb", ["embed", "denoise"])
@pytest.mark.parametrize("share", [0.5, 1.01], ids=["no room for the copy", "no room for the result"])
def test_full_disk(bench, verb, share):
    room = int(bench.data.stat().st_size * share)
    before = contents(bench.folder)
    done = full_disk(room, *bench.ask(verb))
    assert done.returncode == DATA, done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("writing")]
    assert [line.split(":")[0] for line in errors] == ["error", "hint"], done.stderr
    assert "no room to write" in errors[0]
    assert contents(bench.folder) == before


def test_full_disk_while_writing_the_steps_leaves_the_data_alone(bench):
    before = contents(bench.folder)
    steps = ["--path-out", bench.folder / "steps.h5ad", "--steps", "5000"]
    # More room than the data needs and less than the steps do.
    done = full_disk(bench.data.stat().st_size + 100_000, *bench.ask("interpolate", *ASKED["interpolate"], *steps))
    assert done.returncode == DATA, done.stderr
    assert "no room to write" in done.stderr
    assert "steps.h5ad" in done.stderr
    assert contents(bench.folder) == before


def test_full_disk_while_saving_a_model(bench):
    before = contents(bench.folder)
    done = full_disk(4096, *bench.train("--quiet"))
    assert done.returncode == MODEL, done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"], done.stderr
    assert contents(bench.folder) == before


def full_disk(room: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_elsewhere(_FULL_DISK, room, *arguments)


# --- options and configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "fragment", "options"),
    [
        (USAGE, "--n-latent is 0", ["--n-latent", "0"]),
        (USAGE, "--beta is -1", ["--beta", "-1"]),
        (USAGE, "--learning-rate is nan", ["--learning-rate", "nan"]),
        (USAGE, "--learning-rate is inf", ["--learning-rate", "inf"]),
        (USAGE, "--validation-fraction is 0", ["--validation-fraction", "0"]),
        (USAGE, "--validation-fraction is 1", ["--validation-fraction", "1"]),
        (USAGE, "--likelihood is 'gauss'", ["--likelihood", "gauss"]),
        (USAGE, "--genes is 'ACTB'", ["--genes", "ACTB"]),
        (USAGE, "both given", ["--genes", "all", "--n-top-genes", "10"]),
        (USAGE, "--batch-size is 1", ["--batch-size", "1"]),
        (USAGE, "--max-epochs is 0", ["--max-epochs", "0"]),
        (USAGE, "--patience is 0", ["--patience", "0"]),
        (USAGE, "--seed is -1", ["--seed", "-1"]),
        (USAGE, "--threads is 0", ["--threads", "0"]),
        (USAGE, "--precision is 'fp8'", ["--precision", "fp8"]),
        (DEVICE, "--precision tf32 needs an NVIDIA GPU", ["--precision", "tf32"]),
        (DEVICE, "'banana' is not a device", ["--device", "banana"]),
        (DEVICE, "not a device scvae runs on", ["--device", "meta"]),
    ],
)
def test_values_that_cannot_be_meant(bench, code, fragment, options):
    refused(bench.folder, bench.train(*options), code, fragment)


@pytest.mark.parametrize("verb", ["train", "embed"])
def test_devices_that_are_not_there(bench, monkeypatch, verb):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", "cuda:3", "mps"):
        arguments = bench.train("--device", device) if verb == "train" else bench.ask(verb, "--device", device)
        refused(bench.folder, arguments, DEVICE, f"{device} was asked for")


def test_second_device_that_is_not_there(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refused(bench.folder, bench.ask("embed", "--device", "cuda:3"), DEVICE, "cuda:3 is not there")


@pytest.mark.parametrize(
    ("fragment", "text"),
    [
        ("is not TOML", "[model\n"),
        ("is not TOML", b"\xff\xfe"),
        ("unknown key 'n_laten'", "[model]\nn_laten = 3\n"),
        ("unknown section [modle]", "[modle]\nn_latent = 3\n"),
        ("stands outside a section", "n_latent = 3\n"),
        ("n_latent is 'three'", '[model]\nn_latent = "three"\n'),
        ("n_latent is True", "[model]\nn_latent = true\n"),
        ("n_latent is 2.5", "[model]\nn_latent = 2.5\n"),
        ("--n-layers is 0", "[model]\nn_layers = 0\n"),
    ],
)
def test_configuration_files_that_cannot_be_meant(bench, fragment, text):
    # Flags would win over the file.
    arguments = ["train", bench.data, "-m", bench.folder / "other.scvae", "--config", bench.file("run.toml", text)]
    refused(bench.folder, arguments, USAGE, fragment)


def test_configuration_file_that_is_not_there(bench):
    refused(bench.folder, bench.train("--config", bench.folder / "no.toml"), USAGE, "cannot read")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "cells.h5ad", "--n-latent", "three"],
        ["embed", "cells.h5ad", "--no-such-option"],
        ["interpolate", "cells.h5ad", "--steps", "1"],
        ["score", "cells.h5ad", "--samples", "0"],
        ["denoise", "cells.h5ad", "--samples", "-1"],
        ["simulate", "new.h5ad", "--cells", "many"],
        ["annotate", "cells.h5ad"],
    ],
    ids=" ".join,
)
def test_usage_errors(arguments):
    outcome = run_cli(*arguments)
    assert outcome.code == USAGE
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert "Error" in outcome.err
