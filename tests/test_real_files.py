"""Files from other programs, of old versions, with several modalities, and of formats that scvae does not support."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata.io import write_elem
from command_line import TINY, run_cli, run_ok
from conftest import cells
from hypothesis import given, settings
from hypothesis import strategies as st
from tenx import write_10x_h5, write_10x_mtx, write_10x_v2, write_plain_mtx

from scvae_cli.data.counts import read_counts
from scvae_cli.data.feature_types import feature_types
from scvae_cli.data.formats import ForeignFile, open_store
from scvae_cli.data.h5ad import H5adFile
from scvae_cli.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")


def error_of(path: Path, **options) -> DataError:
    """Return the error for a file that is not read: one line and a hint."""
    with pytest.raises(DataError) as caught:
        read_counts(open_store(path, **options))
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


# Columns of obs


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="/\x00."), min_size=1, max_size=8)


@given(names=st.lists(st.lists(WORDS, min_size=1, max_size=3), min_size=1, max_size=5, unique_by=tuple))
@settings(max_examples=12, deadline=None)
def test_columns_with_a_slash_equal_those_read_by_anndata(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("nested") / "cells.h5ad"
    joined = ["/".join(parts) for parts in names]
    # In an .h5ad file, no name of a column may be the parent folder of another name.
    joined = [one for one in joined if not any(other.startswith(f"{one}/") for other in joined) and one != "_index"]
    adata = cells(12, 10)
    adata.obs = pd.DataFrame(index=adata.obs_names)
    adata.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        for i, name in enumerate(joined):
            write_elem(file["obs"], "column", np.arange(12) + i)
            file["obs"].move("column", name)
        file["obs"].attrs["column-order"] = np.array(joined, dtype=h5py.string_dtype())
    theirs = ad.read_h5ad(path).obs
    store = H5adFile(path)
    assert store.obs_keys == list(theirs.columns)
    for name in joined:
        np.testing.assert_array_equal(store.obs_column(name), theirs[name])
    with pytest.raises(DataError, match="no column"):
        store.obs_column("absent/column")


def test_nested_column_can_be_used_as_groupby(copied):
    with h5py.File(copied.data, "r+") as file:
        frame = file["obs"]
        frame.move("cell_type", "leiden/res_1.0")
        order = ["leiden/res_1.0" if name == "cell_type" else name for name in frame.attrs["column-order"]]
        frame.attrs["column-order"] = np.array(order, dtype=h5py.string_dtype())
    found = json.loads(run_ok("check", copied.data, "--json").out)
    assert "leiden/res_1.0" in found["obs"]
    group = str(cells().obs["cell_type"].iloc[0])
    run_ok("de", copied.data, "--groupby", "leiden/res_1.0", "--group", group)
    assert list(ad.read_h5ad(copied.data).obs.columns) == order


def write_anndata_06(path: Path, raw: sp.csr_matrix, adata: ad.AnnData) -> None:
    """A file of anndata 0.6: compound obs and var, and raw.X beside X."""
    with h5py.File(path, "w") as file:
        for key, names in (("obs", adata.obs_names), ("var", adata.var_names), ("raw.var", adata.var_names)):
            frame = np.zeros(len(names), dtype=[("index", "S24")])
            frame["index"] = [name.encode() for name in names]
            file[key] = frame
        for key, matrix in (("X", np.log1p(raw)), ("raw.X", raw)):
            for part in ("data", "indices", "indptr"):
                file[f"{key}/{part}"] = getattr(matrix, part)
            file[key].attrs["h5sparse_format"] = "csr"
            file[key].attrs["h5sparse_shape"] = np.array(matrix.shape)


def test_raw_of_anndata_0_6_is_read(tmp_path):
    adata = cells()
    write_anndata_06(tmp_path / "old.h5ad", sp.csr_matrix(adata.X), adata)
    read = read_counts(open_store(tmp_path / "old.h5ad"))
    theirs = ad.read_h5ad(tmp_path / "old.h5ad").raw
    assert read.source == "raw"
    np.testing.assert_array_equal(read.matrix.toarray(), theirs.X.toarray())
    assert list(read.gene_names) == list(theirs.var_names)


# Formats, recognized by their content


def write_mudata(path: Path, modalities: dict[str, ad.AnnData], obs: pd.DataFrame) -> None:
    """A file of mudata."""
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "MuData"
        write_elem(file, "obs", obs)
        write_elem(file, "var", pd.DataFrame(index=[name for one in modalities.values() for name in one.var_names]))
        for name, adata in modalities.items():
            write_elem(file, f"mod/{name}", adata)


def proteins() -> ad.AnnData:
    matrix = np.random.default_rng(0).poisson(50, (120, 5)).astype(np.float32)
    return ad.AnnData(
        matrix, obs=pd.DataFrame(index=cells().obs_names), var=pd.DataFrame(index=[f"ADT{i}" for i in range(5)])
    )


def _mudata(path):
    write_mudata(path, {"prot": proteins(), "rna": cells()}, cells().obs.rename(columns={"batch": "shared"}))


def _one_modality(path):
    write_mudata(path, {"rna": cells()}, cells().obs)


def _prefixed(path):
    write_10x_mtx(path, cells())
    for file in list(path.iterdir()):
        file.rename(path / f"GSM123_S1_{file.name}")


READ: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "anndata.h5": (lambda path: cells().write_h5ad(path), {}),
    "no_ending": (lambda path: cells().write_h5ad(path), {}),
    "10x.h5ad": (lambda path: write_10x_h5(path, cells()), {}),
    "10x_v2.h5": (lambda path: write_10x_v2(path, cells(), {"hg19": np.arange(40)}), {}),
    "mudata.h5mu": (_mudata, {"modality": "rna"}),
    "mudata.h5ad": (_mudata, {"modality": "rna"}),
    "one.h5mu": (_one_modality, {}),
    "anndata.zarr": (lambda path: cells().write_zarr(path), {}),
    "geo": (_prefixed, {}),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", READ)
def test_format_is_recognized_by_its_content(tmp_path, name):
    write, options = READ[name]
    write(tmp_path / name)
    store = open_store(tmp_path / name, **options)
    read = read_counts(store)
    np.testing.assert_array_equal(read.matrix.toarray(), cells().X.toarray())
    assert list(read.cell_names) == list(cells().obs_names)
    assert list(read.gene_names) == list(cells().var_names)
    if isinstance(store, ForeignFile):
        with pytest.raises(ConfigError, match="-o OUT"):
            store.check_destination([], output=None, force=True)
        if (tmp_path / name).suffix == ".h5ad":  # results must not replace the input
            with pytest.raises(ConfigError, match="another file"):
                store.check_destination([], output=tmp_path / name, force=True)


def test_modality_must_be_chosen_only_for_the_training(tmp_path):
    data, out = tmp_path / "cite.h5mu", tmp_path / "cite_rna.h5ad"
    _mudata(data)
    assert "--modality rna" in error_of(data).hint
    assert "modalities: prot, rna" in error_of(data, modality="atac").hint
    outcome = run_ok("train", data, "--modality", "rna", *TINY)
    assert "next: scvae embed" in outcome.err
    assert "-o cite_rna.h5ad" in outcome.err
    # The model records which modality was read.
    run_ok("embed", data, "-o", out)
    adata = ad.read_h5ad(out)
    assert {"X_scvae"} <= set(adata.obsm)
    assert list(adata.obs["shared"]) == list(cells().obs["batch"]), "columns that all modalities share are kept"


@pytest.mark.parametrize("genome", ["hg19", "mm10"])
def test_genome_must_be_chosen(tmp_path, genome):
    parts = {"hg19": np.arange(25), "mm10": np.arange(25, 40)}
    write_10x_v2(tmp_path / "two.h5", cells(), parts)
    assert error_of(tmp_path / "two.h5").hint == "use --genome hg19 or --genome mm10"
    read = read_counts(open_store(tmp_path / "two.h5", genome=genome))
    np.testing.assert_array_equal(read.matrix.toarray(), cells().X.toarray()[:, parts[genome]])
    # Files of later versions of Cell Ranger contain both genomes in one matrix.
    write_10x_h5(tmp_path / "both.h5", cells())
    with h5py.File(tmp_path / "both.h5", "r+") as file:
        file["matrix/features/genome"][...] = np.repeat([b"hg19", b"mm10"], [25, 15])[:40].astype("S6")
    np.testing.assert_array_equal(
        read_counts(open_store(tmp_path / "both.h5", genome=genome)).matrix.toarray(), read.matrix.toarray()
    )
    assert "no genome 'dm6'" in error_of(tmp_path / "both.h5", genome="dm6").message


@pytest.mark.parametrize("options", [{"genome": "hg19"}, {"modality": "rna"}])
def test_choice_of_genome_or_modality_is_refused_if_there_is_none(trained, options):
    with pytest.raises(ConfigError, match="was given"):
        open_store(trained.data, **options)


def test_several_samples_in_a_folder_are_refused(tmp_path):
    for sample in ("GSM1_", "GSM2_"):
        write_10x_mtx(tmp_path / sample, cells())
        for file in (tmp_path / sample).iterdir():
            shutil.move(file, tmp_path / f"{sample}{file.name}")
        (tmp_path / sample).rmdir()
    error = error_of(tmp_path)
    assert "GSM1_, GSM2_" in error.message
    assert "a separate folder" in error.hint


# Formats that are not read


def _hdf5(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name in names:
                file[name] = [1]

    return write


def _h5ad_gz(path: Path) -> None:
    cells().write_h5ad(path.with_suffix(""))
    path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))


NOT_READ: dict[str, tuple[Callable[[Path], object], str]] = {
    "cells.h5ad.gz": (_h5ad_gz, "gunzip cells.h5ad.gz"),
    "packed": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99)), "unzip packed"),
    "table.csv": (lambda path: path.write_text("gene,c1,c2\ng1,0,3\n"), "read_csv"),
    "table.txt.gz": (lambda path: path.write_bytes(gzip.compress(b"gene\tc1\n")), "read_csv"),
    "matrix.mtx": (lambda path: path.write_text("%%MatrixMarket matrix\n"), "name its folder"),
    "sce.rds": (lambda path: path.write_bytes(gzip.compress(b"RDX3")), "writeH5AD"),
    "cells.loom": (_hdf5("matrix", "row_attrs", "col_attrs"), "read_loom"),
    "cells.h5seurat": (_hdf5("assays", "cell.names"), "SeuratDisk"),
    "molecule_info.h5": (_hdf5("barcode_idx", "umi"), "filtered_feature_bc_matrix.h5"),
    "other.h5": (_hdf5("a", "b"), "Cell Ranger or anndata"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_unsupported_file_is_refused_with_a_hint(tmp_path, name):
    write, hint = NOT_READ[name]
    write(tmp_path / name)
    assert hint in error_of(tmp_path / name).hint


def test_hint_for_a_missing_compression_filter_names_hdf5plugin(tmp_path, monkeypatch):
    # The test also works if hdf5plugin is installed.
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    for place in ("X/data", "obs/cell_type/codes"):
        path = tmp_path / "cells.h5ad"
        cells().write_h5ad(path)
        with h5py.File(path, "r+") as file:
            values = file[place][...]
            del file[place]
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_chunk(values.shape)
            settings.set_filter(32029, h5py.h5z.FLAG_OPTIONAL, ())
            group, name = place.rsplit("/", 1)
            space = h5py.h5s.create_simple(values.shape)
            made = h5py.h5d.create(file[group].id, name.encode(), h5py.h5t.py_create(values.dtype), space, settings)
            made.write_direct_chunk((0,), values.tobytes(), filter_mask=0)
        outcome = run_cli("train", path, "--batch-key", "cell_type", *TINY)
        assert outcome.code == 3
        assert "HDF5 filter number 32029" in outcome.err
        assert "pip install hdf5plugin" in outcome.err


# Types of features


TYPES = ["Gene Expression", "Antibody Capture", "Peaks", "CRISPR Guide Capture", "gene", "", "Gene", "GRCh38"]


@given(types=st.lists(st.sampled_from(TYPES), min_size=1, max_size=30))
def test_features_of_other_types_are_left_out_and_counted(types):
    other = [kind in ("Antibody Capture", "Peaks", "CRISPR Guide Capture") for kind in types]
    if all(other):
        with pytest.raises(DataError, match="none of its features is a gene"):
            feature_types(types, "data")
        return
    found = feature_types(types, "data")
    assert list(found.are_genes) == [not one for one in other]
    assert sum(found.left_out.values()) == sum(other)


@pytest.mark.parametrize("write", ["h5ad", "h5", "mtx"])
def test_only_genes_are_modeled_and_other_features_are_reported(tmp_path, write):
    adata = cells()
    types = np.array(["Gene Expression"] * 30 + ["Antibody Capture"] * 10)
    path = tmp_path / f"cite.{write}"
    if write == "h5ad":
        adata.var["feature_types"] = types
        adata.write_h5ad(path)
    elif write == "h5":
        write_10x_h5(path, adata)
        with h5py.File(path, "r+") as file:
            del file["matrix/features/feature_type"]
            file["matrix/features/feature_type"] = types.astype("S")
    else:
        write_10x_mtx(path, adata)
        rows = gzip.decompress((path / "features.tsv.gz").read_bytes()).decode().splitlines()
        rows = [row.replace("Gene Expression", kind) for row, kind in zip(rows, types, strict=True)]
        (path / "features.tsv.gz").write_bytes(gzip.compress("\n".join(rows).encode()))
    found = json.loads(run_ok("check", path, "--json").out)
    assert any("left out: 10 Antibody Capture" in note for note in found["notes"])
    read = read_counts(open_store(path))
    assert list(read.gene_names) == list(adata.var_names[:30])
    np.testing.assert_array_equal(read.matrix.toarray(), adata.X.toarray()[:, :30])


def test_antibodies_are_neither_modeled_nor_tested(tmp_path):
    adata = cells()
    adata.var["feature_types"] = ["Gene Expression"] * 30 + ["Antibody Capture"] * 10
    adata.write_h5ad(tmp_path / "cite.h5ad")
    assert "left out: 10 Antibody Capture" in run_ok("train", tmp_path / "cite.h5ad", *TINY).err
    run_ok("denoise", tmp_path / "cite.h5ad")
    group = str(adata.obs["cell_type"].iloc[0])
    found = json.loads(run_ok("de", tmp_path / "cite.h5ad", "--groupby", "cell_type", "--group", group, "--json").out)
    assert found["n_tested"] <= 30
    assert found["n_counted"] == 0


# Damage of other formats than .h5ad


def _write_10x_v2(path: Path, adata: ad.AnnData) -> None:
    write_10x_v2(path, adata, {"hg19": np.arange(adata.n_vars)})


def _bad_index(index: int) -> Callable[[h5py.Group], None]:
    def change(group: h5py.Group) -> None:
        group["indices"][7] = index

    return change


def _short_pointers(group: h5py.Group) -> None:
    values = group["indptr"][:-1]
    del group["indptr"]
    group["indptr"] = values


def _falling_pointers(group: h5py.Group) -> None:
    group["indptr"][3] = group["indptr"][5]


def _large_shape(group: h5py.Group) -> None:
    group["shape"][0] = 2**31 - 2


def _few_stored(group: h5py.Group) -> None:
    """Replace the counts by a dataset of a few bytes with a declared size of 16 GiB."""
    del group["data"]
    group.create_dataset("data", (1 << 32,), "<i4", chunks=(1 << 16,), compression="gzip")


def _hidden_duplicate(group: h5py.Group) -> None:
    """Hide a second "indices" in a subfolder; scanpy reads the last dataset of every name, in any folder."""
    group["z/indices"] = np.full(len(group["indices"]), -5)


def _group_within_itself(group: h5py.Group) -> None:
    group["z"] = group


TENX_DAMAGE: dict[str, tuple[Callable[[h5py.Group], None], str]] = {
    "negative index": (_bad_index(-5), "an index of {} is out of range"),
    "index beyond the features": (_bad_index(983_040), "an index of {} is out of range"),
    "too few pointers": (_short_pointers, "{}/indptr has 120 values instead of 121"),
    "pointers fall": (_falling_pointers, "the pointers (indptr) of {} do not rise"),
    "shape": (_large_shape, "{} has shape 2,147,483,646 × 120, but there are 40 features"),
    "few bytes are stored": (_few_stored, "{}/data declares 17,179,869,184 bytes"),
    "a part twice": (_hidden_duplicate, "one is {}/z/indices"),
    "a group within itself": (_group_within_itself, "{}/z has two names"),
}


@pytest.mark.parametrize("write", [write_10x_h5, _write_10x_v2])
@pytest.mark.parametrize("kind", TENX_DAMAGE)
def test_inconsistent_parts_of_a_10x_matrix_are_refused(tmp_path, write, kind):
    change, message = TENX_DAMAGE[kind]
    write(tmp_path / "a.h5", cells())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        [name] = file
        change(file[name])
    assert message.format(f"/{name}") in error_of(tmp_path / "a.h5").message


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["X", 'layers["counts"]', "raw"])
def test_index_beyond_the_genes_is_refused_in_all_formats(tmp_path, name):
    adata = cells()
    matrix = sp.csr_matrix(adata.X)
    adata.X = matrix.copy()
    adata.layers["counts"] = matrix.copy()
    adata.raw = adata.copy()
    damaged = {"X": adata.X, "raw": adata.raw.X}.get(name, adata.layers["counts"])
    damaged.indices[7] = 983_040
    write_mudata(tmp_path / "a.h5mu", {"rna": adata}, adata.obs)
    adata.write_zarr(tmp_path / "a.zarr")
    for path in (tmp_path / "a.h5mu", tmp_path / "a.zarr"):
        assert f": {name}: " in error_of(path).message


def _change_line(name: str, number: int, change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(keepends=True)
        lines[number - 1] = change(lines[number - 1])
        (folder / name).write_text("".join(lines))

    return damage


def _zeros_at_the_end(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-500] + bytes(500))

    return damage


def _gzipped(name: str, damage: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage_and_compress(folder: Path) -> None:
        damage(folder)
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()

    return damage_and_compress


def _bomb(name: str, text: bytes) -> Callable[[Path], None]:
    """Return a function that makes a small gzipped file, which is 100 MiB larger when it is decompressed."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes() + text * ((100 << 20) // len(text))
        (folder / f"{name}.gz").write_bytes(gzip.compress(content, compresslevel=1))
        (folder / name).unlink()

    return damage


_TWO_FIELDS = _change_line("features.tsv", 21, lambda line: line.rsplit("\t", 1)[0] + "\n")
_EXTRA_FIELD = _change_line("features.tsv", 21, lambda line: line.replace("\t", "\t\t", 1))
FOLDER_DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no type": (_TWO_FIELDS, "line 21 of features.tsv has 2 fields, but most lines have 3"),
    "a field too many": (_EXTRA_FIELD, "line 21 of features.tsv has 4 fields, but most lines have 3"),
    "zeros": (_zeros_at_the_end("matrix.mtx"), "matrix.mtx has NUL bytes"),
    "gzipped zeros": (_gzipped("matrix.mtx", _zeros_at_the_end("matrix.mtx")), "matrix.mtx.gz has NUL bytes"),
    "zeros in names": (_zeros_at_the_end("barcodes.tsv"), "barcodes.tsv has NUL bytes"),
    "many empty lines": (_bomb("barcodes.tsv", b"\n"), "barcodes.tsv.gz has more than 220 lines"),
    "a long line": (_bomb("features.tsv", b"A" * 1000), "line 41 of features.tsv.gz has more than 4,096 bytes"),
    "a long matrix": (_bomb("matrix.mtx", b"1 1 1\n"), "matrix.mtx.gz is longer than the"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDER_DAMAGE)
def test_damaged_files_of_a_10x_folder_are_refused(tmp_path, kind):
    damage, message = FOLDER_DAMAGE[kind]
    write_plain_mtx(tmp_path / "sample", cells())
    damage(tmp_path / "sample")
    assert message in error_of(tmp_path / "sample").message


def test_duplicate_coordinate_is_refused(tmp_path):
    write_plain_mtx(tmp_path / "sample", cells())
    matrix = tmp_path / "sample" / "matrix.mtx"
    lines = matrix.read_text().splitlines(keepends=True)
    first = next(i for i, line in enumerate(lines) if not line.startswith("%")) + 1
    lines[-1] = lines[first]
    matrix.write_text("".join(lines))
    feature, cell, _ = lines[first].split()
    assert f"the value of feature {feature} and cell {cell} twice" in error_of(tmp_path / "sample").message


def test_features_with_and_without_a_genomic_position_are_read(tmp_path):
    write_plain_mtx(tmp_path / "sample", cells())
    _change_line("features.tsv", 21, lambda line: line.replace("\n", "\tchr1\t10\t20\n"))(tmp_path / "sample")
    read = read_counts(open_store(tmp_path / "sample"))
    np.testing.assert_array_equal(read.matrix.toarray(), cells().X.toarray())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_zarr_with_parts_that_are_not_files_is_refused(tmp_path):
    path = tmp_path / "a.zarr"
    cells().write_zarr(path)
    chunk = next(
        file for file in sorted((path / "X").rglob("*")) if file.is_file() and not file.name.startswith((".", "zarr"))
    )
    chunk.rename(tmp_path / "chunk")
    chunk.symlink_to(tmp_path / "chunk")
    np.testing.assert_array_equal(read_counts(open_store(path)).matrix.toarray(), cells().X.toarray())
    for make, reason in (
        (lambda: chunk.symlink_to("/dev/zero"), "it is a device, not a file"),
        (lambda: os.mkfifo(chunk), "it is a named pipe, not a file"),
        (lambda: chunk.symlink_to(path), "it is a link to a folder that was already read"),
    ):
        chunk.unlink()
        make()
        assert reason in error_of(path).message


@pytest.mark.parametrize("options", [{"genome": "hg19"}, {"modality": "rna"}])
def test_damage_is_reported_before_an_impossible_choice(tmp_path, options):
    name = "a.h5" if "genome" in options else "a.h5mu"
    write_10x_h5(tmp_path / name, cells())
    content = (tmp_path / name).read_bytes()
    for damaged, reason in ((b"", "is empty"), (content[:3000], "is truncated"), (b"\0" * 3000, "is not HDF5")):
        (tmp_path / name).write_bytes(damaged)
        assert reason in error_of(tmp_path / name, **options).message
