"""Writing into the user's file does not change any other element of the file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from command_line import run_cli, run_ok
from conftest import Trained
from workbench import BETWEEN_BATCHES, elements_of

from scvae_cli.data import h5ad_rows
from scvae_cli.data.counts import read_counts
from scvae_cli.data.h5ad import H5adFile
from scvae_cli.errors import DataError

ORDER = ("--groupby", "batch", "--root", "batch_1", "--to", "batch_2")
VERBS = {"embed": (), "denoise": (), "score": ("--samples", "2"), "interpolate": BETWEEN_BATCHES, "pseudotime": ORDER}


def with_all_parts(adata: ad.AnnData) -> ad.AnnData:
    """Add an element to every part of an AnnData."""
    n, g = adata.shape
    rng = np.random.default_rng(0)
    adata.layers["counts"] = adata.X.astype(np.int32)
    adata.layers["spliced"] = sp.csc_matrix(adata.X.astype(np.int64))
    adata.layers["dense"] = adata.X.toarray().astype(np.uint16)
    adata.raw = adata.copy()
    adata.X = sp.csr_matrix(np.log1p(adata.X.toarray()))
    obs = adata.obs
    obs["ordered"] = pd.Categorical(rng.choice(["low", "mid", "high"], n), ["low", "mid", "high"], ordered=True)
    obs["holes"] = pd.Categorical(np.where(rng.random(n) < 0.3, None, "yes"))
    obs["note"] = [f"cell {i} µ" for i in range(n)]
    obs["age"] = pd.array(rng.integers(0, 90, n), dtype="Int64")
    obs.loc[obs.index[3], "age"] = pd.NA
    obs["treated"] = pd.array(rng.random(n) < 0.5, dtype="boolean")
    obs.loc[obs.index[4], "treated"] = pd.NA
    obs["score"] = np.where(rng.random(n) < 0.2, np.nan, rng.random(n))
    obs["dead"] = rng.random(n) < 0.1
    adata.var["symbol"] = [f"gene {j}" for j in range(g)]
    adata.obsm["X_pca"] = rng.normal(size=(n, 5)).astype(np.float32)
    adata.obsm["table"] = pd.DataFrame({"a": rng.random(n), "b": pd.Categorical(["x"] * n)}, index=adata.obs_names)
    adata.obsm["sparse"] = sp.random(n, 7, 0.2, format="csr", random_state=0)
    adata.varm["loadings"] = rng.normal(size=(g, 3))
    adata.obsp["connectivities"] = sp.random(n, n, 0.05, format="csr", random_state=1)
    adata.varp["correlation"] = rng.normal(size=(g, g))
    adata.uns["nested"] = {
        "params": {"resolution": 0.5, "method": "leiden", "n": 7, "flag": True},
        "colours": np.array(["#ff0000", "#00ff00"], dtype=object),
        "array": np.arange(6).reshape(2, 3),
        "empty": {},
    }
    adata.uns["ranks"] = np.rec.fromarrays([np.array([b"A", b"B"], dtype="S4"), np.array([1.5, 2.5])], names=["t", "s"])
    return adata


@pytest.fixture
def full_file(copied) -> Trained:
    """Some elements are compressed, as in files that several programs have written."""
    adata = with_all_parts(ad.read_h5ad(copied.data))
    adata.write_h5ad(copied.data, compression="gzip")
    with h5py.File(copied.data, "r+") as file:
        file.attrs["lab"] = "ours"
        file["layers/counts"].attrs["note"] = "raw"
        cache = file.create_dataset("uns/cache", data=np.arange(100), chunks=(10,), compression="lzf", shuffle=True)
        cache.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return copied


def differences(before: dict[str, Any], after: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Return the new elements, and the elements that have changed."""
    changed = {name for name in before if after.get(name) != before[name]}
    return set(after) - set(before), changed


def column_orders(path: Path) -> dict[str, list[str]]:
    with h5py.File(path) as file:
        return {group: list(file[group].attrs["column-order"]) for group in ("obs", "var")}


# --- other elements of the file ---------------------------------------------------------------------------------------


def test_commands_do_not_change_other_elements(full_file):
    before, order = elements_of(full_file.data), column_orders(full_file.data)
    for verb, options in VERBS.items():
        run_ok(verb, full_file.data, "-m", full_file.model, *options)
        new, changed = differences(before, elements_of(full_file.data))
        assert all("scvae" in name for name in new), new
        assert changed <= {"obs", "var"}
    for group, names in column_orders(full_file.data).items():
        assert names[: len(order[group])] == order[group]
        assert all(name.startswith("scvae_") for name in names[len(order[group]) :])
    after = elements_of(full_file.data)
    for group in ("obs", "var"):
        kept = [{k: v for k, v in seen[group][1].items() if k != "column-order"} for seen in (before, after)]
        assert kept[0] == kept[1]


def test_anndata_and_scanpy_read_the_results(full_file):
    import scanpy as sc

    before = ad.read_h5ad(full_file.data)
    for verb, options in VERBS.items():
        run_ok(verb, full_file.data, "-m", full_file.model, *options)
    adata = ad.read_h5ad(full_file.data)
    pd.testing.assert_frame_equal(adata.obs[before.obs.columns], before.obs)
    assert adata.obsm["scvae_latent"].shape == (120, 4)
    assert adata.obsm["scvae_latent_var"].min() > 0
    assert adata.var["scvae_modelled"].dtype == bool
    assert adata.layers["scvae_denoised"].shape == adata.shape
    assert set(adata.uns["scvae"]) == {"runs", "paths"}
    assert adata.uns["scvae"]["paths"]["batch_1_to_batch_2"]["name"] == "batch_1_to_batch_2"
    sc.pp.neighbors(adata, use_rep="X_scvae", n_neighbors=5)
    assert adata.obsp["distances"].nnz > 0
    # scvae recognizes its results in a file that scanpy has written again.
    adata.write_h5ad(full_file.data)
    run_ok("embed", full_file.data, "-m", full_file.model)


def test_commands_write_exactly_the_recorded_slots(copied):
    for verb, options in VERBS.items():
        before = set(elements_of(copied.data))
        run_ok(verb, copied.data, "-m", copied.model, *options, "--key-added", "wide")
        new = {name for name in set(elements_of(copied.data)) - before if not name.startswith("uns/wide/runs")}
        runs = ad.read_h5ad(copied.data).uns["wide"]["runs"]
        planned = next(r["slots"] for r in map(json.loads, runs.values()) if r["command"].split("_")[0] == verb)
        assert set(planned) <= new
        folders = {"uns/wide", "uns/wide/paths"}
        assert all(name in folders or any(name == p or name.startswith(f"{p}/") for p in planned) for name in new), new


def test_results_of_version_0_1_0_are_recognized(copied):
    """Records of version 0.1.0 list the slots, so the slots are recognized although options had other names."""
    adata = ad.read_h5ad(copied.data)
    adata.obsm["X_scvae"] = np.zeros((adata.n_obs, 3), dtype=np.float32)
    record = {"command": "embed", "scvae_version": "0.1.0", "model_hash": "0123456789ab", "counts_source": "X"}
    record |= {"device": "cpu", "missing_genes": 0, "options": {"axes": "canonical", "refine": 0}}
    adata.uns["scvae"] = {"runs": {"embed": json.dumps(record | {"slots": ["obsm/X_scvae"]})}}
    adata.write_h5ad(copied.data)
    run_ok("embed", copied.data, "-m", copied.model)
    assert ad.read_h5ad(copied.data).obsm["X_scvae"].any()


@pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")
def test_repeated_runs_reuse_the_space_of_old_results(copied):
    adata = ad.read_h5ad(copied.data)
    many = ad.concat([adata] * 20)
    many.obs_names_make_unique()
    many.write_h5ad(copied.data)
    sizes = []
    for _ in range(4):
        run_ok("denoise", copied.data, "-m", copied.model, "--samples", "1")
        run_ok("embed", copied.data, "-m", copied.model)
        sizes.append(copied.data.stat().st_size)
    # Every opening of the file adds a few KiB. The new results (about 400 KiB) reuse the space of the old results.
    assert sizes[3] - sizes[0] < 100_000, sizes


def test_repeated_run_gives_an_identical_file(copied):
    for verb, options in VERBS.items():
        run_ok(verb, copied.data, "-m", copied.model, *options)
        first = elements_of(copied.data)
        run_ok(verb, copied.data, "-m", copied.model, *options)
        assert elements_of(copied.data) == first


def test_results_of_two_models_are_stored_in_one_file(copied):
    run_ok("embed", copied.data, "-m", copied.model)
    first = elements_of(copied.data)
    other = copied.model.with_name("other.scvae")
    run_ok("train", copied.data, "-m", other, "--max-epochs", "2", "--n-latent", "3", "--n-hidden", "8")
    run_ok("embed", copied.data, "-m", other, "--key-added", "other")
    new, changed = differences(first, elements_of(copied.data))
    assert not changed
    assert {"obsm/X_other", "obsm/other_latent", "obsm/other_latent_var"} < new
    adata = ad.read_h5ad(copied.data)
    assert (adata.obsm["scvae_latent"].shape[1], adata.obsm["other_latent"].shape[1]) == (4, 3)
    assert "obsm/X_other" in run_ok("info", copied.data, "--key-added", "other").out


def test_output_option_does_not_change_the_input(full_file):
    out = full_file.data.with_name("out.h5ad")
    for verb, options in VERBS.items():
        before = hashlib.sha256(full_file.data.read_bytes()).digest()
        run_ok(verb, full_file.data, "-m", full_file.model, "-o", out, "--force", *options)
        assert hashlib.sha256(full_file.data.read_bytes()).digest() == before
        run_ok(verb, full_file.data, "-m", full_file.model, *options)
        assert elements_of(out) == elements_of(full_file.data)


def test_links_and_permissions_are_kept(copied):
    link = copied.data.with_name("link.h5ad")
    link.symlink_to(copied.data.name)
    copied.data.chmod(0o640)
    run_ok("embed", link, "-m", copied.model)
    assert link.is_symlink()
    assert copied.data.stat().st_mode & 0o777 == 0o640
    assert "X_scvae" in ad.read_h5ad(copied.data).obsm


# --- storage formats of matrices --------------------------------------------------------------------------------------


def with_storage(adata: ad.AnnData, kind: str) -> ad.AnnData:
    """Store the counts of the cells in another way, without changing the counts."""
    counts = adata.X
    if kind == "raw":
        # raw has other genes in another order, and X has no counts.
        more = sp.hstack([counts, counts[:, :3]], format="csr")
        names = [*adata.var_names, "extra_1", "extra_2", "extra_3"]
        order = np.random.default_rng(0).permutation(len(names))
        adata.raw = ad.AnnData(more[:, order], obs=adata.obs, var=pd.DataFrame(index=np.array(names)[order]))
        adata.X = np.log1p(counts.toarray())
    elif kind == "counts":
        adata.layers["counts"] = counts.astype(np.int16)
        adata.X = counts.multiply(0.5).tocsr()
    elif kind == "no X":
        adata.layers["counts"] = counts
        adata.X = None
    elif kind == "unsorted":
        matrix = counts.copy()
        for row in range(matrix.shape[0]):
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            matrix.indices[part], matrix.data[part] = matrix.indices[part][::-1].copy(), matrix.data[part][::-1].copy()
        matrix.has_sorted_indices = False
        adata.X = matrix
    elif kind == "stored twice":
        # The first count of each cell is stored in two parts, one of which may be zero.
        filled = np.flatnonzero(np.diff(counts.indptr))
        at = counts.indptr[filled]
        data = np.insert(counts.data, at, 1.0)
        data[at + np.arange(len(at)) + 1] -= 1
        indptr = counts.indptr + np.searchsorted(filled, np.arange(len(counts.indptr)))
        adata.X = sp.csr_matrix((data, np.insert(counts.indices, at, counts.indices[at]), indptr), counts.shape)
    else:
        form, dtype = kind.split()
        matrix = counts.astype(dtype)
        adata.X = {"CSR": matrix, "CSC": sp.csc_matrix(matrix), "dense": matrix.toarray()}[form]
    return adata


KINDS = [
    f"{form} {dtype}"
    for form in ("CSR", "CSC", "dense")
    for dtype in ("float32", "float64", "int32", "int64", "uint16")
]
KINDS += ["raw", "counts", "no X", "null raw", "unsorted", "stored twice"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory, trained) -> np.ndarray:
    copied = trained.copy_to(tmp_path_factory.mktemp("reference"))
    run_ok("embed", copied.data, "-m", copied.model)
    return ad.read_h5ad(copied.data).obsm["X_scvae"]


@pytest.mark.parametrize("kind", KINDS)
def test_storage_format_of_counts_does_not_matter(copied, reference, monkeypatch, kind):
    if kind == "null raw":
        with h5py.File(copied.data, "r+") as file:
            file["raw"] = h5py.Empty("f")
    else:
        with_storage(ad.read_h5ad(copied.data), kind).write_h5ad(copied.data)
    whole = read_counts(H5adFile(copied.data))
    monkeypatch.setattr(h5ad_rows, "BLOCK_VALUES", 100)
    blocks = read_counts(H5adFile(copied.data))
    assert (whole.matrix != blocks.matrix).nnz == 0
    assert set(whole.gene_names) == set(ad.read_h5ad(copied.data).var_names)
    run_ok("embed", copied.data, "-m", copied.model)
    np.testing.assert_array_equal(ad.read_h5ad(copied.data).obsm["X_scvae"], reference)


@pytest.mark.parametrize("kind", ["str", "string", "category"])
def test_names_equal_those_read_by_anndata(tmp_path, kind):
    names = pd.Index(["Fcγr1", "", "a b", "☃"], dtype=kind)
    frame = pd.DataFrame(index=names)
    with ad.settings.override(allow_write_nullable_strings=True):
        ad.AnnData(np.eye(4), obs=frame).write_h5ad(tmp_path / "x.h5ad")
    read = H5adFile(tmp_path / "x.h5ad").cell_names
    assert read.tolist() == ad.read_h5ad(tmp_path / "x.h5ad").obs_names.tolist() == names.tolist()
    assert read.dtype == object


@pytest.mark.parametrize("values", [1, 40, 77, 10**9])
@pytest.mark.parametrize("kind", ["CSR float32", "CSC float32", "dense float32"])
def test_row_blocks_concatenate_to_the_matrix(copied, monkeypatch, kind, values):
    adata = with_storage(ad.read_h5ad(copied.data)[:12].copy(), kind)
    adata.write_h5ad(copied.data)
    monkeypatch.setattr(h5ad_rows, "BLOCK_VALUES", values)
    blocks = list(H5adFile(copied.data).row_blocks("X"))
    assert all(block.shape[0] for block in blocks)
    np.testing.assert_array_equal(sp.vstack(blocks).toarray(), sp.csr_matrix(adata.X).toarray())


# --- old formats ------------------------------------------------------------------------------------------------------


def test_files_from_anndata_before_0_7_are_read_but_not_written(copied):
    adata = ad.read_h5ad(copied.data)
    with h5py.File(copied.data, "r+") as file:
        for group, names in (("obs", adata.obs_names), ("var", adata.var_names)):
            del file[group]
            table = np.zeros(len(names), dtype=[("index", "S20"), ("depth", "f4"), ("kind", "i1")])
            table["index"] = np.asarray(names, dtype="S20")
            file.create_dataset(group, data=table)
        file["uns/kind_categories"] = np.array(["T", "B"], dtype="S1")
    before = copied.data.read_bytes()
    outcome = run_cli("score", copied.data, "-m", copied.model)
    assert outcome.code == 3
    assert "format of anndata before 0.7" in outcome.err
    assert "write_h5ad" in outcome.err
    assert copied.data.read_bytes() == before
    assert "depth" in H5adFile(copied.data).obs_keys
    assert [*H5adFile(copied.data).obs_column("depth")[:2], *H5adFile(copied.data).obs_column("kind")[:2]] == [
        *(0.0, 0.0, "T", "T")
    ]
    run_ok("check", copied.data)


@pytest.mark.filterwarnings("ignore:Element .* was written without encoding metadata")
def test_categories_from_anndata_before_0_8_are_read(copied):
    labels = ad.read_h5ad(copied.data).obs["batch"].astype(str).to_numpy()
    with h5py.File(copied.data, "r+") as file:
        obs = file["obs"]
        codes, names = obs["batch/codes"][:], obs["batch/categories"].asstr()[:]
        del obs["batch"]
        obs["__categories/batch"] = np.asarray(names, dtype=object)
        obs["batch"] = codes
        obs["batch"].attrs["categories"] = obs["__categories/batch"].ref
        obs.attrs["encoding-version"] = "0.1.0"
    assert list(H5adFile(copied.data).obs_column("batch")) == list(labels)
    run_ok("interpolate", copied.data, "-m", copied.model, *BETWEEN_BATCHES)


@pytest.mark.filterwarnings("ignore:Element .* was written without encoding metadata")
def test_columns_from_anndata_before_0_8_equal_those_read_by_anndata(copied):
    n = 120
    with h5py.File(copied.data, "r+") as file:
        obs = file["obs"]
        obs["__categories/stage"] = np.asarray(["late", "early"], dtype=object)
        obs["__categories/stage"].attrs["ordered"] = True
        obs["stage"] = np.asarray([0, 1, -1] * (n // 3), dtype=np.int8)
        obs["stage"].attrs["categories"] = obs["__categories/stage"].ref
        obs["note"] = np.asarray([f"note {i}" for i in range(n)], dtype=object)
        obs["score"] = np.linspace(0, 1, n)
        obs.attrs["encoding-version"] = "0.1.0"
        obs.attrs["column-order"] = ["cell_type", "batch", "stage", "note", "score"]
        expected = ad.io.read_elem(obs)
    store = H5adFile(copied.data)
    assert store.obs_order("stage") == ["late", "early"]
    for key in ("stage", "note", "score"):
        column = expected[key].astype(object).where(expected[key].notna(), None)
        assert list(store.obs_column(key)) == list(column)
    with h5py.File(copied.data, "r+") as file:
        file["obs/stage"][5] = 7
    with pytest.raises(DataError, match=r"obs\['stage'\] cannot be read"):
        store.obs_column("stage")


def test_groups_without_an_encoding_stay_without_one(copied):
    with h5py.File(copied.data, "r+") as file:
        for name in ("obsm", "layers"):
            for attribute in list(file[name].attrs):
                del file[name].attrs[attribute]
    before = elements_of(copied.data)
    run_ok("embed", copied.data, "-m", copied.model)
    assert not differences(before, elements_of(copied.data))[1]
    assert ad.read_h5ad(copied.data).obsm["scvae_latent"].shape == (120, 4)
