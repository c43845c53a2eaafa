"""10x Genomics files and folders can be used like an .h5ad file, and results are written to a separate file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from command_line import TINY, run_cli, run_ok
from conftest import cells
from tenx import gene_ids, write_10x_h5, write_10x_mtx, write_plain_mtx

from scvae_cli.data.tenx_folder import read_tenx_folder

WRITERS: dict[str, Callable[[Path, ad.AnnData], None]] = {
    "sample.h5": write_10x_h5,
    "sample_mtx": write_10x_mtx,
    "sample_plain": write_plain_mtx,
}


@pytest.fixture(params=WRITERS)
def sample(tmp_path, request) -> Path:
    """A file or folder as Cell Ranger writes it, with a symbol that belongs to two genes."""
    adata = cells()
    adata.var_names = ["TBCE", "TBCE", *adata.var_names[2:]]
    WRITERS[request.param](tmp_path / request.param, adata)
    return tmp_path / request.param


pytestmark = pytest.mark.filterwarnings("ignore:.*names are not unique:UserWarning")


def test_commands_accept_10x_data(sample):
    report = json.loads(run_ok("check", sample, "--json").out)
    assert (report["n_cells"], report["n_genes"], report["counts_source"]) == (120, 40, "X")
    outcome = run_ok("train", sample, *TINY)
    model = sample.with_name(f"{sample.stem}.scvae")
    assert model.is_dir()
    assert "TBCE-1" in (model / "genes.txt").read_text().splitlines()
    assert f"next: scvae embed {sample} -o {sample.stem}.h5ad" in outcome.err
    out = sample.with_name("out.h5ad")
    run_ok("embed", sample, "-o", out)
    adata = ad.read_h5ad(out)
    assert adata.obsm["scvae_latent"].shape == (120, 4)
    np.testing.assert_array_equal(adata.X.toarray(), cells().X.toarray())
    assert list(adata.obs_names) == list(cells().obs_names)
    assert adata.var_names.is_unique
    assert "obsm/X_scvae" in run_ok("info", out).out
    # The written .h5ad can be used like any other .h5ad.
    run_ok("denoise", out, "-m", model)
    assert ad.read_h5ad(out).layers["scvae_denoised"].shape == (120, 40)


def test_results_equal_those_of_the_same_cells_in_an_h5ad(sample):
    run_ok("train", sample, *TINY)
    model, same = sample.with_name(f"{sample.stem}.scvae"), sample.with_name("same.h5ad")
    adata = cells()
    adata.var_names = ["TBCE", "TBCE-1", *adata.var_names[2:]]
    adata.write_h5ad(same)
    out = sample.with_name("out.h5ad")
    run_ok("embed", sample, "-m", model, "-o", out)
    run_ok("embed", same, "-m", model)
    np.testing.assert_array_equal(ad.read_h5ad(out).obsm["X_scvae"], ad.read_h5ad(same).obsm["X_scvae"])


def test_existing_output_requires_force(sample, trained):
    out = sample.with_name("out.h5ad")
    out.write_bytes(b"precious")
    arguments = ("embed", sample, "-m", trained.model, "--allow-missing-genes", "-o", out)
    assert run_cli(*arguments).code == 3
    assert out.read_bytes() == b"precious"
    run_ok(*arguments, "--force")
    assert "X_scvae" in ad.read_h5ad(out).obsm


def test_incomplete_folder_is_refused(tmp_path):
    write_10x_mtx(tmp_path / "half", cells())
    (tmp_path / "half" / "barcodes.tsv.gz").unlink()
    outcome = run_cli("check", tmp_path / "half")
    assert outcome.code == 3
    assert "cannot be read as a 10x mtx folder" in outcome.err
    assert len(outcome.err.splitlines()) == 2


def test_folder_is_read_as_by_scanpy(tmp_path):
    import scanpy as sc

    adata = cells()
    adata.var_names = ["NA", *adata.var_names[1:]]  # a gene may be called NA
    write_10x_mtx(tmp_path / "sample", adata)
    features = tmp_path / "sample" / "features.tsv.gz"
    rows = gzip.decompress(features.read_bytes()).decode().replace("Gene Expression", "Antibody Capture", 2)
    features.write_bytes(gzip.compress(rows.encode()))
    ours, theirs = read_tenx_folder(tmp_path / "sample"), sc.read_10x_mtx(tmp_path / "sample")
    ours = ours[:, ours.var["feature_types"] == "Gene Expression"]
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())
    assert ours.X.dtype == theirs.X.dtype
    pd.testing.assert_frame_equal(ours.var, theirs.var, check_dtype=False)
    assert list(ours.obs_names) == list(theirs.obs_names)


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("name", ["features.tsv", "genes.tsv"])
def test_features_without_type_or_symbol_are_read(tmp_path, name, columns):
    write_plain_mtx(tmp_path / "sample", cells())
    (tmp_path / "sample" / "features.tsv").unlink()
    names = {1: gene_ids(cells()), 2: list(cells().var_names)}[columns]
    rows = zip(gene_ids(cells()), names, strict=True)
    (tmp_path / "sample" / name).write_text("".join("\t".join(row[:columns]) + "\r\n" for row in rows))
    adata = read_tenx_folder(tmp_path / "sample")
    assert list(adata.var_names) == names
    assert list(adata.var["gene_ids"]) == gene_ids(cells())
    np.testing.assert_array_equal(adata.X.toarray(), cells().X.toarray())


def test_files_of_different_sizes_are_refused(tmp_path):
    write_plain_mtx(tmp_path / "sample", cells())
    (tmp_path / "sample" / "barcodes.tsv").write_text("AAAC\n")
    outcome = run_cli("check", tmp_path / "sample")
    assert outcome.code == 3
    assert "40 features × 120 cells, but features.tsv has 40 lines and barcodes.tsv has 1" in outcome.err
