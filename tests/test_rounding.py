"""Counts with rounding errors, and fractions of counts, are rounded; normalized values are refused."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from command_line import TINY, run_cli, run_ok
from conftest import cells
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scvae_cli.data.counts import read_counts, read_rows
from scvae_cli.data.memory import AnnDataStore
from scvae_cli.data.rounding import Rounder, not_whole, sign_of_normalization
from scvae_cli.errors import DataError

COUNTS = hnp.arrays(np.int64, st.tuples(st.integers(2, 12), st.integers(2, 12)), elements=st.integers(0, 10**6))


def _scaled(x, dtype):
    total = x.sum(axis=1, keepdims=True).clip(1)
    return ((x.astype(dtype) / total * 1e4).astype(dtype) * total / 1e4).astype(dtype)


# Transformations that users apply to counts and then undo, so that rounding errors remain.
UNDONE_TRANSFORMATIONS = {
    "log1p": lambda x, dtype: np.expm1(np.log1p(x.astype(dtype))).astype(dtype),
    "log2": lambda x, dtype: (np.exp2(np.log2(x.astype(dtype) + 1)) - 1).astype(dtype),
    "total": _scaled,
    "sqrt": lambda x, dtype: (np.sqrt(x.astype(dtype)) ** 2).astype(dtype),
}


def store_of(x, *, sparse=True) -> AnnDataStore:
    matrix = sp.csr_matrix(x) if sparse else np.asarray(x)
    adata = ad.AnnData(matrix)
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(len(x))], [f"g{j}" for j in range(x.shape[1])]
    return AnnDataStore(adata)


@given(
    counts=COUNTS,
    dtype=st.sampled_from([np.float32, np.float64]),
    transformation=st.sampled_from(sorted(UNDONE_TRANSFORMATIONS)),
)
@settings(max_examples=50, deadline=None)
def test_counts_with_rounding_errors_are_restored(counts, dtype, transformation):
    noisy = UNDONE_TRANSFORMATIONS[transformation](counts, dtype)
    before = noisy.copy()
    read = read_counts(store_of(noisy))
    # Above a million, float32 has no digits for a difference of one count.
    np.testing.assert_allclose(read.matrix.toarray(), counts, rtol=2e-6, atol=0)
    small = counts < 10**5
    np.testing.assert_array_equal(read.matrix.toarray()[small], counts[small])
    assert read.rounding is None
    assert bool(read.notes) == bool((noisy != np.rint(noisy)).any())
    np.testing.assert_array_equal(noisy, before, "the user's values are not changed")


@given(fraction=st.floats(0.002, 0.998), count=st.integers(0, 500))
def test_fractions_are_refused_and_shown_in_the_message(fraction, count):
    values = np.arange(20.0).reshape(4, 5)
    values[1, 2] = count + fraction
    with pytest.raises(DataError, match="not whole numbers") as caught:
        read_counts(store_of(values))
    assert "--round nearest" in caught.value.hint
    shown = float(caught.value.message.split("whole numbers (")[1].split(")")[0])
    assert shown != round(shown), "the message shows the fraction"


def fractions(seed=0, shape=(60, 30)) -> np.ndarray:
    """Counts of which some are divided between two genes, as by alevin and kallisto."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(2.0, shape).astype(np.float64)
    shared = rng.random(shape) < 0.3
    return np.where(shared, x + rng.random(shape), x)


@pytest.mark.parametrize("sparse", [True, False])
def test_round_nearest_equals_numpy_rint(sparse):
    x = fractions()
    read = read_counts(store_of(x, sparse=sparse), rounding="nearest")
    np.testing.assert_array_equal(read.matrix.toarray(), np.rint(x))
    assert read.rounding == "nearest"


def test_stochastic_rounding_keeps_sums_and_changes_values_by_less_than_one():
    x = fractions(shape=(400, 200))
    rounded = read_counts(store_of(x), rounding="stochastic").matrix.toarray()
    assert np.abs(rounded - x).max() < 1
    np.testing.assert_array_equal(rounded[x == np.rint(x)], x[x == np.rint(x)])
    fraction = x - np.floor(x)
    sd = np.sqrt((fraction * (1 - fraction)).sum())
    assert abs(rounded.sum() - x.sum()) < 4 * sd
    np.testing.assert_allclose(rounded.sum(axis=0), x.sum(axis=0), atol=5 * np.sqrt(400 * 0.3 / 6))


@given(seed=st.integers(0, 10), step=st.integers(1, 60), data=st.data())
@settings(max_examples=8, deadline=None)
def test_stochastic_rounding_does_not_depend_on_blocks_and_order(seed, step, data):
    x = fractions(seed)
    store = store_of(x)
    expected = read_counts(store, rounding="stochastic").matrix
    cells_, genes = store.cell_names, store.gene_names
    rounder = Rounder("stochastic", genes)
    blocks = [rounder.rounded(sp.csr_matrix(x[i : i + step]), cells_[i : i + step]) for i in range(0, len(x), step)]
    np.testing.assert_array_equal(sp.vstack(blocks).toarray(), expected.toarray())
    order = np.asarray(data.draw(st.permutations(range(len(x)))))
    columns = np.asarray(data.draw(st.permutations(range(x.shape[1]))))
    shuffled = AnnDataStore(store.adata[order][:, columns].copy())
    np.testing.assert_array_equal(
        read_counts(shuffled, rounding="stochastic").matrix.toarray(), expected[order][:, columns].toarray()
    )
    rows, some = np.sort(order[:7]), columns[:4]
    part = read_rows(store, "X", rows, some, rounding="stochastic")
    np.testing.assert_array_equal(part.toarray(), expected[rows][:, some].toarray())


def normalized(kind: str, seed: int, n_genes: int) -> np.ndarray:
    """Normalized values of simulated cells, for some of their genes."""
    x = np.asarray(np.random.default_rng(seed).poisson(np.random.default_rng(1).gamma(1, 2, (40, 80))))
    scaled = x / x.sum(axis=1, keepdims=True).clip(1) * {"cpm": 1e6, "median": np.median(x.sum(1))}.get(kind, 1e4)
    scaled = {"log1p": np.log1p, "log2": lambda v: np.log2(v + 1)}.get(kind, lambda v: v)(scaled)
    return scaled[:, :n_genes].astype(np.float32)


@given(
    kind=st.sampled_from(["log1p", "log2", "cpm", "median"]),
    seed=st.integers(0, 20),
    n_genes=st.sampled_from([80, 60, 30]),
)
@settings(max_examples=15, deadline=None)
def test_round_refuses_normalized_values(kind, seed, n_genes):
    with pytest.raises(DataError, match="not fractions of counts"):
        read_counts(store_of(normalized(kind, seed, n_genes)), rounding="nearest")


@given(seed=st.integers(0, 50), share=st.floats(0.01, 1), factor=st.sampled_from([1.0, 0.93, 0.5]))
@settings(max_examples=15, deadline=None)
def test_fractions_of_counts_are_not_called_normalized(seed, share, factor):
    rng = np.random.default_rng(seed)
    x = rng.poisson(2.0, (40, 60)) * factor
    x = np.where(rng.random(x.shape) < share, np.maximum(x - rng.random(x.shape), 0), x)
    assert sign_of_normalization(sp.csr_matrix(x)) is None


def test_whole_counts_in_another_matrix_are_preferred_to_fractions():
    x = fractions()
    adata = store_of(x).adata
    adata.layers["counts"], adata.X = sp.csr_matrix(x), sp.csr_matrix(np.floor(x))
    read = read_counts(AnnDataStore(adata), rounding="nearest")
    assert (read.source, read.rounding) == ("X", None)


def test_small_negative_values_become_zero_and_larger_ones_are_refused():
    x = np.arange(12.0).reshape(3, 4)
    x[0, 0] = -1e-6
    assert read_counts(store_of(x)).matrix.toarray()[0, 0] == 0
    x[0, 0] = -0.01
    with pytest.raises(DataError, match="negative"):
        read_counts(store_of(x), rounding="nearest")


def test_tolerance_equals_the_documented_value():
    x = np.array([1.0, 1.0009, 1.002, 5e5 + 0.4, 5e4 + 0.4])
    np.testing.assert_array_equal(not_whole(x), [False, False, True, False, True])


def test_every_command_rounds_as_in_the_training(tmp_path):
    data, whole = tmp_path / "fractions.h5ad", tmp_path / "whole.h5ad"
    adata = cells()
    x = adata.X.toarray()
    rng = np.random.default_rng(0)
    adata.X = sp.csr_matrix(np.where(rng.random(x.shape) < 0.1, x + 0.4 * rng.random(x.shape), x))
    adata.write_h5ad(data)
    assert run_cli("train", data, *TINY).code == 3
    found = json.loads(run_ok("check", data, "--round", "stochastic", "--json").out)
    assert found["rounding"] == "stochastic"
    outcome = run_ok("train", data, *TINY, "--round", "stochastic", "--genes", "all")
    assert "rounded up or down at random" in outcome.err
    model = json.loads((tmp_path / "fractions.scvae" / "config.json").read_text())
    assert model["facts"]["rounding"] == "stochastic"
    run_ok("embed", data)
    # The result is the same as for counts that are rounded before the training.
    other = adata.copy()
    other.X = read_counts(AnnDataStore(adata), rounding="stochastic").matrix
    other.write_h5ad(whole)
    run_ok("embed", whole, "-m", tmp_path / "fractions.scvae")
    first, second = ad.read_h5ad(data), ad.read_h5ad(whole)
    np.testing.assert_array_equal(first.obsm["X_scvae"], second.obsm["X_scvae"])
    assert json.loads(first.uns["scvae"]["runs"]["embed"])["rounding"] == "stochastic"
    assert json.loads(second.uns["scvae"]["runs"]["embed"])["rounding"] is None
    np.testing.assert_array_equal(first.X.toarray(), adata.X.toarray(), "the data keep their values")
