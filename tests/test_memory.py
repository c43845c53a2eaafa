"""Counts are in memory only once, because they are read in blocks from every storage format and never copied."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from simulated import counts_of, tiny_config, tree

from scvae_cli.data import counts as counts_module
from scvae_cli.data import h5ad_rows, moments, row_stack
from scvae_cli.data.counts import Counts, read_counts, what_is_wrong
from scvae_cli.data.formats import open_store
from scvae_cli.data.gene_selection import match_genes, select_genes
from scvae_cli.errors import DataError
from scvae_cli.training import fit as fit_module
from scvae_cli.training.fit import Prepared, fit

pytestmark = pytest.mark.slow


@pytest.fixture
def small_blocks(monkeypatch):
    """Make all blocks small, so that there are many."""
    monkeypatch.setattr(h5ad_rows, "BLOCK_VALUES", 1000)
    monkeypatch.setattr(row_stack, "PIECE_VALUES", 777)
    monkeypatch.setattr(counts_module, "VALUES_AT_ONCE", 100)
    monkeypatch.setattr(moments, "CELLS_AT_ONCE", 7)


def peak_of(work: Callable[[], object]) -> int:
    """Measure the largest number of bytes that Python and numpy hold at once, beyond those held before."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bytes_of(matrix: sp.csr_matrix) -> int:
    return matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes


# --- reading ----------------------------------------------------------------------------------------------------------


def with_zeros(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Return a matrix in which some of the zeros are stored."""
    marked = matrix.toarray()
    marked[(marked == 0) & (np.arange(matrix.shape[1]) % 5 == 0)] = -1
    stored = sp.csr_matrix(marked)
    stored.data[stored.data == -1] = 0
    assert stored.nnz > matrix.nnz
    return stored


def with_reversed_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Return a matrix in which the stored values of every row are ordered from the last to the first column."""
    order = np.concatenate(
        [np.arange(b - 1, a - 1, -1) for a, b in zip(matrix.indptr, matrix.indptr[1:], strict=False)]
    )
    return sp.csr_matrix((matrix.data[order], matrix.indices[order], matrix.indptr), shape=matrix.shape)


# Functions that store counts in another format.
FORMS: dict[str, Callable[[sp.csr_matrix], object]] = {
    "CSR": lambda m: m,
    "CSR of int64": lambda m: m.astype(np.int64),
    "CSR with zeros": with_zeros,
    "CSR unsorted": with_reversed_rows,
    "CSC": sp.csc_matrix,
    "CSC of float64": lambda m: sp.csc_matrix(m.astype(np.float64)),
    "CSC with zeros": lambda m: sp.csc_matrix(with_zeros(m)),
    "CSC unsorted": lambda m: with_reversed_rows(m.T.tocsr()).T,
    "dense": lambda m: m.toarray(),
    "dense of uint16": lambda m: m.toarray().astype(np.uint16),
}


@pytest.mark.parametrize("place", ["file", "memory", "raw in a file", "raw in memory"])
@pytest.mark.parametrize("form", FORMS)
def test_counts_are_equal_in_every_storage_format(tmp_path, small_blocks, form, place):
    truth = counts_of(tree(150, 60)).matrix
    names = [f"gene {j}" for j in range(60)]
    adata = ad.AnnData(FORMS[form](truth), var=pd.DataFrame(index=names))
    if place.startswith("raw"):
        # raw has other genes than X, and X has no counts.
        adata.raw = adata.copy()
        adata = adata[:, 10:].copy()
        adata.X, truth = np.full(adata.shape, 0.5, np.float32), truth[:, 10:]
    before = adata.copy()
    data: ad.AnnData | Path = adata
    if place.endswith("file"):
        data = tmp_path / "cells.h5ad"
        adata.write_h5ad(data)
    read = read_counts(open_store(data)).matrix
    assert (read.data.dtype, read.indices.dtype, read.indptr.dtype) == (np.float32, np.int32, np.int32)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(read, part), getattr(truth, part))
    # Data that were read in place have not changed.
    np.testing.assert_array_equal(sp.csc_matrix(adata.X).data, sp.csc_matrix(before.X).data)
    np.testing.assert_array_equal(sp.csc_matrix(adata.X).indices, sp.csc_matrix(before.X).indices)


@pytest.mark.parametrize("form", ["CSR", "CSR with zeros", "CSC", "CSC of float64", "dense"])
def test_reading_needs_little_memory_beyond_the_matrix(tmp_path, small_blocks, form):
    truth = counts_of(tree(1000, 200)).matrix
    ad.AnnData(FORMS[form](truth)).write_h5ad(tmp_path / "cells.h5ad")
    store = open_store(tmp_path / "cells.h5ad")
    assert len(store.cell_names) == 1000  # names are read once and kept
    # The whole final matrix is allocated while half of the values are still in pieces. The resident memory is smaller,
    # because the system provides memory page by page.
    assert peak_of(lambda: read_counts(store)) < 1.5 * bytes_of(truth) + 300_000


def test_counts_in_memory_are_not_copied(small_blocks):
    adata = tree(150, 60)
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    assert np.shares_memory(read_counts(open_store(adata)).matrix.data, adata.X.data)


def test_damaged_csc_matrix_is_refused(tmp_path, small_blocks):
    ad.AnnData(sp.csc_matrix(counts_of(tree(150, 60)).matrix)).write_h5ad(tmp_path / "good.h5ad")
    for part, index, value in (
        ("indices", 5, 150), ("indices", 5, -1), ("indptr", 0, 1), ("indptr", 7, 10**6), ("indptr", -1, 10**6),
    ):  # fmt: skip
        path = tmp_path / "bad.h5ad"
        path.write_bytes((tmp_path / "good.h5ad").read_bytes())
        with h5py.File(path, "r+") as file:
            values = file[f"X/{part}"][:]
            values[index] = value
            file[f"X/{part}"][:] = values
        with pytest.raises(DataError, match=r"bad\.h5ad is damaged"):
            read_counts(open_store(path))


def test_position_of_an_invalid_value_is_found(small_blocks):
    values = np.arange(1000, dtype=np.float64)
    assert what_is_wrong(values) is None
    values[512] = -2
    assert what_is_wrong(values) == ("a negative value (-2)", 512)
    assert what_is_wrong(values.astype(np.int32)) == ("a negative value (-2)", 512)
    # NaN is reported before negative values, even if it occurs later in the matrix.
    values[900] = np.nan
    assert what_is_wrong(values) == ("NaN", 900)


# --- choosing cells and genes -----------------------------------------------------------------------------------------


@pytest.fixture
def counts() -> Counts:
    """Counts in which every ninth cell and every seventh gene is empty."""
    adata = tree(150, 60)
    keep_n = np.arange(150) % 9 != 0
    keep_g = np.arange(60) % 7 != 0
    adata.X = sp.csr_matrix(adata.X.toarray() * (keep_n[:, None] & keep_g), dtype=np.float32)
    return counts_of(adata, "batch")


def test_filled_cells_do_not_copy_counts(counts):
    filled = counts.filled_cells()
    expected = counts.cells(np.flatnonzero(np.diff(counts.matrix.indptr)))
    assert 0 < filled.n_cells < counts.n_cells
    assert np.shares_memory(filled.matrix.data, counts.matrix.data)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(filled.matrix, part), getattr(expected.matrix, part))
    np.testing.assert_array_equal(filled.cell_names, expected.cell_names)
    np.testing.assert_array_equal(filled.batch, expected.batch)


def test_number_of_cells_in_which_a_gene_was_observed(counts, small_blocks):
    dense = counts.matrix.toarray()
    np.testing.assert_array_equal(counts.seen_in_g(), (dense > 0).sum(0))
    some = np.asarray([3, 4, 50, 149])
    np.testing.assert_array_equal(counts.seen_in_g(some), (dense[some] > 0).sum(0))


def test_missing_genes_are_empty_columns_at_their_positions(counts):
    genes = ["new 1", *counts.gene_names[20:40][::-1], "new 2", *counts.gene_names[:5]]
    aligned, missing = match_genes(counts, genes, max_missing=0.5)
    assert missing == ["new 1", "new 2"]
    dense = counts.matrix.toarray()
    empty = np.zeros((150, 1), dtype=np.float32)
    expected = sp.csr_matrix(np.hstack([empty, dense[:, 20:40][:, ::-1], empty, dense[:, :5]]))
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(aligned.matrix, part), getattr(expected, part))


@pytest.mark.parametrize("batch_key", [None, "batch"])
def test_variable_genes_equal_those_of_scanpy(small_blocks, batch_key):
    adata = tree(400, 300, n_batches=3, depth=1000)
    counts = counts_of(adata, batch_key)
    training = np.flatnonzero(np.arange(400) % 10)
    columns, _ = select_genes(counts, training, tiny_config(n_top_genes=60, batch_key=batch_key).data)
    theirs = ad.AnnData(counts.matrix[training], obs=adata.obs.iloc[training], var=adata.var[[]])
    theirs = theirs[:, (theirs.X > 0).sum(0).A1 >= 3].copy()
    sc.pp.highly_variable_genes(theirs, flavor="seurat_v3", n_top_genes=60, batch_key=batch_key)
    assert list(counts.gene_names[columns]) == list(theirs.var_names[theirs.var["highly_variable"]])


def test_batch_of_one_cell_does_not_change_the_variable_genes():
    adata = tree(300, 300, depth=1000)
    config = tiny_config(n_top_genes=60, batch_key="batch").data
    chosen = []
    for n_alone in (1, 2):
        adata.obs["batch"] = np.where(np.arange(300) < n_alone, "few", "most")
        counts = counts_of(adata, "batch")
        chosen.append(set(select_genes(counts, np.arange(300), config)[0]))
    assert len(chosen[0]) == 60
    assert len(chosen[0] & chosen[1]) > 50


def test_variable_genes_of_too_few_counts_are_refused():
    adata = tree(20, 300, depth=30)
    with pytest.raises(DataError, match="could not be computed") as caught:
        select_genes(counts_of(adata), np.arange(20), tiny_config(n_top_genes=10).data)
    assert "--genes all" in caught.value.hint


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"genes": "all"}, {}], ids=["all genes", "all genes by default"])
def test_training_cells_share_the_memory_of_the_counts(monkeypatch, options):
    counts = counts_of(tree(300, 80))
    matrices = []

    class Watched(fit_module.CellTable):
        def __init__(self, matrix, *rest, **more):
            matrices.append(matrix)
            super().__init__(matrix, *rest, **more)

    monkeypatch.setattr(fit_module, "CellTable", Watched)
    assert isinstance(next(fit(counts, tiny_config(**options))), Prepared)
    assert len(matrices) == 1
    assert all(np.shares_memory(matrix.data, counts.matrix.data) for matrix in matrices)
    assert all(np.shares_memory(matrix.indices, counts.matrix.indices) for matrix in matrices)


def test_setup_of_a_training_copies_no_counts(tmp_path):
    counts = counts_of(tree(4000, 200))
    config = tiny_config(genes="all")
    next(fit(counts, config))  # imports during the call are not part of the measurement
    peak = peak_of(lambda: next(fit(counts, config, model_folder=tmp_path / "m.scvae")))
    assert peak < 0.5 * bytes_of(counts.matrix)
