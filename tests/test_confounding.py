"""Columns of obs that are confounded with the batch are reported, and independent columns are not reported."""

from __future__ import annotations

import itertools
import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from command_line import TINY, run_ok
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

import scvae_cli
from scvae_cli.config import ModelConfig
from scvae_cli.data.confounding import (
    Confounded,
    _deviations_below,
    _PairSums,
    _same_group,
    confounded_columns,
    confounding_message,
)
from scvae_cli.data.h5ad import H5adFile
from scvae_cli.data.memory import AnnDataStore
from scvae_cli.errors import ScvaeWarning


def cells(n: int, **obs) -> ad.AnnData:
    """Make cells with Poisson counts and the given columns of obs."""
    matrix = sp.csr_matrix(np.random.default_rng(1).poisson(2.0, (n, 6)) + 1, dtype=np.float32)
    return ad.AnnData(matrix, obs=pd.DataFrame(obs, index=[f"cell_{i}" for i in range(n)]))


def confounded_by_name(batch, library_n=None, **obs) -> dict[str, Confounded]:
    """Return the confounded columns by name, in the order in which they are reported."""
    store = AnnDataStore(cells(len(batch), batch=batch, **obs))
    return {
        one.column: one for one in confounded_columns(store, store.obs_column("batch"), "batch", library_n=library_n)
    }


def relations(batch, **obs) -> dict[str, str]:
    return {name: one.relation for name, one in confounded_by_name(batch, **obs).items()}


def random_batch(random: np.random.Generator, n: int) -> np.ndarray:
    """Draw batches of equal sizes, of few cells each, of one cell each except for a large batch, or of all sizes."""
    return [
        lambda: random.integers(random.integers(2, 10), size=n),
        lambda: random.integers(max(2, n // random.integers(1, 6)), size=n),
        lambda: np.where(random.random(n) < random.random(), 0, np.arange(n)),
        lambda: np.searchsorted(np.cumsum(random.dirichlet(np.full(n // 4, 0.1)))[:-1], random.random(n)),
    ][random.integers(4)]()


def random_columns(random: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Columns that are independent of every batch, among them columns with values of few cells and with outliers."""
    few = np.zeros(n)
    few[random.choice(n, random.integers(1, 6), replace=False)] = 1
    return {
        "groups": random.integers(random.integers(2, 20), size=n).astype(str),
        "rare": few.astype(int).astype(str),
        "skewed": random.geometric(0.1 + 0.8 * random.random(), size=n),
        "many": random.integers(max(2, n // 6), size=n).astype(str),
        "normal": random.standard_normal(n),
        "outliers": random.standard_cauchy(n),
        "spikes": few * 0.5,
        "wide": np.exp(3 * random.standard_normal(n)),
    }


def test_independent_columns_are_not_reported():
    random = np.random.default_rng(0)
    for _ in range(300):
        n = int(random.choice([20, 60, 200, 500]))
        batch = random_batch(random, n)
        store = AnnDataStore(cells(n, batch=batch, **random_columns(random, n)))
        assert confounded_columns(store, batch.astype(str), "batch") == []


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_conditions=st.integers(2, 6),
    per_condition=st.integers(1, 5),
    smallest=st.integers(5, 20),
)
def test_conditions_of_whole_batches_are_reported(seed, n_conditions, per_condition, smallest):
    random = np.random.default_rng(seed)
    n_batches = n_conditions * per_condition
    batch = np.repeat(np.arange(n_batches), random.integers(smallest, 60, size=n_batches))
    batch = np.append(batch, np.repeat([0, n_batches - 1], 8))
    random.shuffle(batch)
    condition = batch % n_conditions
    time = condition + 0.03 * random.standard_normal(len(batch))
    is_known = random.random(len(batch)) < 0.9
    columns = {
        "condition": np.where(is_known, np.char.add("c", condition.astype(str)).astype(object), None),
        "time": np.where(is_known, time, np.nan),
        "code": condition,
    } | random_columns(random, len(batch))
    expected = {"condition": "one_value_per_batch", "code": "one_value_per_batch", "time": "variance_between_batches"}
    if per_condition == 1:
        # The codes of the conditions are the names of the batches.
        expected = {"condition": "same_groups", "time": "variance_between_batches"}
    assert relations(batch, **columns) == expected


def test_batches_of_two_cells_can_be_nested_but_single_cells_cannot():
    condition = np.repeat(["control", "treated"], 100)
    assert relations(np.repeat(np.arange(100), 2), condition=condition) == {"condition": "one_value_per_batch"}
    assert relations(np.arange(200), condition=condition) == {}


def test_time_points_of_batches_are_reported_as_text_or_numbers():
    hour = np.repeat(np.arange(6), 30)
    batch = np.char.add("plate_", hour.astype(str))
    columns = {"hour": hour, "stage": np.char.add("E", hour.astype(str)), "half_hours": hour / 2}
    assert set(relations(batch, **columns)) == set(columns)
    # The times of the batches do not overlap, but each batch has many different minutes.
    minute = 60 * hour + np.tile(np.arange(30), 6) // 2
    assert relations(batch, minute=minute) == {"minute": "variance_between_batches"}


def test_renamed_batches_are_reported_as_same_groups():
    """The cells do not show whether a column renames the batches, or is a condition with one batch for each value."""
    batch = np.repeat(["a", "b", "c", "d"], 30)
    renamed = np.char.add("sample ", batch)
    code = np.unique(batch, return_inverse=True)[1]
    partial = np.where(np.arange(120) % 7 > 0, batch.astype(object), None)
    condition = np.where(code < 2, "control", "treated")
    columns = {"renamed": renamed, "code": code, "copy": batch, "part_of_copy": partial, "condition": condition}
    assert relations(batch, **columns) == {
        "condition": "one_value_per_batch",
        "renamed": "same_groups",
        "code": "same_groups",
    }
    with_one_error = np.where(np.arange(120) == 3, "sample b", renamed)
    assert relations(batch, with_one_error=with_one_error) == {"with_one_error": "one_value_per_batch"}
    message = confounding_message("batch", list(confounded_by_name(batch, renamed=renamed).values()))
    assert message.startswith("'renamed' divides the cells in the same way as batch key 'batch': unless")
    assert "confounded" not in message


def test_values_in_one_batch_only_are_a_weaker_relation():
    random = np.random.default_rng(0)
    batch = np.repeat(["a", "b"], 200)
    donor = np.where(batch == "a", random.integers(4, size=400), random.integers(4, 9, size=400)).astype(str)
    crossed = random.integers(4, size=400).astype(str)
    assert relations(batch, donor=donor, crossed=crossed) == {"donor": "one_batch_per_value"}
    # If one of eight donors is in both batches, the donor determines the batch of most cells; with three donors, it
    # does not.
    for mixed, expected in ((1, {"donor": "one_batch_per_value"}), (4, {})):
        donor = np.where(random.random(400) < mixed / 12, "shared", donor)
        assert relations(batch, donor=donor) == expected
    # If all cells but a few are in one batch, most values are in that batch by chance.
    large = np.where(np.arange(400) < 8, "b", "a")
    assert relations(large, many=random.integers(60, size=400).astype(str)) == {}


def test_shares_equal_scikit_learn_and_pandas():
    random = np.random.default_rng(0)
    batch = random.integers(5, size=600)
    condition = np.where(random.random(600) < 0.003, 1 - batch % 2, batch % 2).astype(str)
    time = batch + 0.3 * random.standard_normal(600)
    both = confounded_by_name(batch, condition=condition, time=time)
    assert both["condition"].share == pytest.approx(
        mutual_info_score(batch, condition) / mutual_info_score(condition, condition)
    )
    groups = pd.Series(time).groupby(batch)
    between = (groups.size() * (groups.mean() - time.mean()) ** 2).sum()
    assert both["time"].share == pytest.approx(between / ((time - time.mean()) ** 2).sum())


@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_condition_with_noise_below_the_documented_share_is_not_reported(noise):
    random = np.random.default_rng(0)
    batch = np.repeat(np.arange(8), 100)
    condition = np.where(random.random(800) < noise, random.integers(2, size=800), batch % 2).astype(str)
    share = mutual_info_score(batch, condition) / mutual_info_score(condition, condition)
    assert share < 0.95
    assert relations(batch, condition=condition) == {}


@pytest.mark.parametrize("seed", range(4))
def test_deviation_equals_that_over_all_permutations(seed):
    """The spread is compared with the spread over all assignments of six values to six cells."""
    random = np.random.default_rng(seed)
    n = 6
    batch = np.sort(random.integers(3, size=n))
    _, batch, size_b = np.unique(batch, return_inverse=True, return_counts=True)
    if len(size_b) == 1:
        batch, size_b = np.array([0, 0, 0, 0, 1, 1]), np.array([4, 2])
    weight = (batch[:, None] == batch) / size_b[batch] * (1 - np.eye(n))
    value, number = random.integers(3, size=n), random.standard_normal(n)
    for different in ((value[:, None] != value).astype(float), np.square(number[:, None] - number)):
        all_sums = [
            (weight * different[np.ix_(order, order)]).sum() for order in map(list, itertools.permutations(range(n)))
        ]
        sums = _PairSums(
            total=different.sum(), squares=np.square(different).sum(), rows=np.square(different.sum(1)).sum()
        )
        observed = all_sums[0]
        expected = (np.mean(all_sums) - observed) / np.std(all_sums)
        assert _deviations_below(observed, _same_group(size_b), sums, n) == pytest.approx(expected, abs=1e-9)


def test_measures_of_library_size_are_not_reported():
    random = np.random.default_rng(0)
    batch = np.repeat(np.arange(4), 100)
    library_n = np.rint(1000 * 3.0**batch * np.exp(0.1 * random.standard_normal(400)))
    columns = {
        "total_counts": library_n,
        "log1p_total_counts": np.log1p(library_n),
        "n_genes": np.rint(500 * (1 - np.exp(-library_n / 20_000)) * 10) + random.integers(-1, 2, size=400),
        "depth": np.log(3.0) * batch + 0.1 * random.standard_normal(400),
    }
    assert set(confounded_by_name(batch, library_n, **columns)) == {"depth"}
    assert set(confounded_by_name(batch, None, **columns)) >= {"depth", "log1p_total_counts"}


def test_cells_without_counts_are_ignored():
    batch = np.repeat(["a", "b"], 50)
    condition = batch.copy()
    condition[::5] = "c"
    library_n = np.ones(100)
    library_n[::5] = 0
    assert confounded_by_name(batch, np.ones(100), condition=condition) == {}
    assert confounded_by_name(batch, library_n, condition=condition)["condition"].share == 1


def test_type_of_a_column_does_not_matter(tmp_path):
    number = np.repeat([1, 2, 1, 2], 25)
    partial = pd.Series(number).where(np.arange(100) % 7 > 0)
    columns = {
        "text": np.char.add("c", number.astype(str)),
        "category": pd.Categorical(number.astype(str)),
        "category_of_numbers": pd.Categorical(number),
        "integer": number.astype(np.uint8),
        "whole_float": number.astype(np.float32),
        "missing_float": partial.to_numpy(),
        "nullable": pd.array(partial, dtype="Int64"),
        "boolean": number == 1,
        "nullable_boolean": pd.array((partial == 1).where(partial.notna()), dtype="boolean"),
    }
    in_memory = {
        "mixed": np.where(partial.isna(), None, partial.astype(object)),
        "interval": pd.cut(number, [0, 1, 2]),
        "date": pd.to_datetime("2024-05-01") + pd.to_timedelta(number, unit="D"),
    }
    batch = np.repeat(list("abcd"), 25)
    expected = dict.fromkeys(columns, "one_value_per_batch")
    assert relations(batch, **columns) == expected
    assert relations(batch, **in_memory) == dict.fromkeys(in_memory, "one_value_per_batch")
    path = tmp_path / "cells.h5ad"
    cells(100, batch=batch, **columns).write_h5ad(path)
    store = H5adFile(path)
    assert {one.column: one.relation for one in confounded_columns(store, batch, "batch")} == expected


def test_uninformative_columns_are_ignored():
    batch = np.repeat(["a", "b"], 40)
    uninformative = pd.DataFrame(
        {
            "constant": "x",
            "constant_number": 0.1,
            "nothing": np.nan,
            "none": None,
            "infinite": np.where(batch == "a", np.inf, -np.inf),
            "known_in_one_batch": np.where(batch == "a", 1.0, np.nan),
            "known_once": np.where(np.arange(80) == 3, 0.5, np.nan),
            "names": [f"cell {i}" for i in range(80)],
            "lists": [[1, 2]] * 80,
            "arrays": [np.arange(2)] * 80,
            "complex": np.where(batch == "a", 1j, 2j),
            "huge": np.where(np.arange(80) % 2 == 0, 1e308, -1e308),
            "periods": pd.period_range("2024-01", periods=80, freq="M"),
        }
    )
    adata = cells(80, batch=batch)
    uninformative.index = adata.obs_names
    duplicates = pd.DataFrame([["a", "b"]] * 80, index=adata.obs_names, columns=["twin", "twin"])
    adata.obs = pd.concat([adata.obs, uninformative, duplicates], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found_columns = confounded_columns(AnnDataStore(adata), batch, "batch")
    assert {one.column for one in found_columns} <= {"complex"}
    assert confounded_columns(AnnDataStore(adata), np.full(80, "a"), "batch") == []


def test_columns_with_few_values_come_first_and_message_names_five():
    batch = np.repeat(np.arange(12), 20)
    columns = {f"of_{k}": (batch % k).astype(str) for k in (12, 6, 4, 3, 2)} | {"time": batch + 0.5 * np.sin(batch)}
    columns["plate"] = np.char.add(batch.astype(str), np.tile(["x", "y"], 120))
    all_found = list(confounded_by_name(batch, **columns).values())
    assert [one.column for one in all_found[:4]] == ["of_2", "of_3", "of_4", "of_6"]
    assert all_found[-1].column == "plate"
    message = confounding_message("batch", all_found)
    assert len(all_found) == 6  # `of_12` is a copy of the batch
    assert sum(f"{column!r}" in message for column in columns) == 5
    assert "\n" not in message


def test_messages_describe_each_relation():
    same = Confounded(column="condition", relation="one_value_per_batch", share=0.99)
    time = Confounded(column="time", relation="variance_between_batches", share=0.978)
    donor = Confounded(column="donor", relation="one_batch_per_value", share=1.0)
    strong = (
        "batch key 'lane' is confounded with 'condition' and 'time': nearly all cells of a batch have the same value "
        "of 'condition', and 97% of the variance of 'time' is between batches, so correcting for the batch also "
        "removes differences in these columns"
    )
    weak = (
        "ost values of 'donor' occur in one batch only, so correcting for the batch may also remove differences "
        "between values from different batches"
    )
    assert confounding_message("lane", [same, time]) == strong
    assert confounding_message("lane", [same, time, donor]) == f"{strong}. M{weak}"
    assert confounding_message("lane", [donor]) == f"batch key 'lane' is partly confounded with 'donor': m{weak}"


@pytest.fixture
def nested_samples(tmp_path):
    """A file with two donors, two conditions, and a sample for each combination."""
    donor, condition = np.repeat(["d1", "d2"], 60), np.tile(np.repeat(["control", "treated"], 30), 2)
    adata = cells(120, donor=donor, condition=condition, sample=np.char.add(donor, condition))
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def test_check_and_train_report_the_same_confounding(nested_samples):
    expected = "batch key 'sample' is confounded with 'condition' and 'donor'"
    checked = json.loads(run_ok("check", nested_samples, "--batch-key", "sample", "--json").out)
    assert {one["column"] for one in checked["confounded"]} == {"condition", "donor"}
    assert set(checked["confounded"][0]) == {"column", "relation", "share"}
    (finding,) = [one for one in checked["findings"] if "confounded" in one["message"]]
    assert finding["level"] == "warn"
    assert finding["message"].startswith(expected)
    assert checked["ok"]
    assert f"warn: {expected}" in run_ok("check", nested_samples, "--batch-key", "sample").out

    trained = run_ok("train", nested_samples, "--batch-key", "sample", "--quiet", *TINY)
    (line,) = [line for line in trained.err.splitlines() if "confounded" in line]
    assert line == f"warning: {finding['message']}; {finding['hint']}"


def test_crossed_columns_are_not_reported(nested_samples):
    assert json.loads(run_ok("check", nested_samples, "--json").out)["confounded"] == []
    assert "confounded" not in run_ok("train", nested_samples, *TINY).err
    # The samples are nested in the donors, but the conditions are not nested in the donors.
    checked = json.loads(run_ok("check", nested_samples, "--batch-key", "donor", "--json").out)
    assert checked["confounded"] == [{"column": "sample", "relation": "one_batch_per_value", "share": 1.0}]
    adata = ad.read_h5ad(nested_samples)
    del adata.obs["sample"]
    scvae_cli.train(adata, batch_key="donor", n_hidden=8, n_latent=2, n_layers=1, max_epochs=1, device="cpu")


def test_python_warning_uses_argument_names(nested_samples):
    small = {"n_hidden": 8, "n_latent": 2, "n_layers": 1, "max_epochs": 1, "device": "cpu"}
    with pytest.warns(ScvaeWarning, match="confounded with 'condition' and 'donor'") as caught:
        scvae_cli.train(nested_samples, batch_key="sample", **small)
    (text,) = [str(one.message) for one in caught if "confounded" in str(one.message)]
    assert "train without batch_key" in text
    assert "--" not in text
    assert {one.column for one in scvae_cli.check(nested_samples, batch_key="sample").confounded} == {
        "condition",
        "donor",
    }


def test_tiny_and_single_batches_are_reported_by_check_and_train(nested_samples):
    adata = ad.read_h5ad(nested_samples)
    adata.obs["lane"] = np.where(np.arange(120) < 2, "small", "large")
    adata.obs["nothing"] = "same"
    adata.write_h5ad(nested_samples)
    few = "1 batch of obs['lane'] has fewer than 3 cells, for example 'small'"
    for key, message in (("lane", few), ("nothing", "obs['nothing'] has only one value")):
        checked = json.loads(run_ok("check", nested_samples, "--batch-key", key, "--json").out)
        (finding,) = [one for one in checked["findings"] if one["message"] == message]
        trained = run_ok("train", nested_samples, "--batch-key", key, "--force", *TINY)
        assert f"warning: {message}; {finding['hint']}\n" in trained.err


def test_confounding_is_reported_for_real_numbers(nested_samples):
    assert not ModelConfig(likelihood="normal").of_counts
    outcome = run_ok("train", nested_samples, "--batch-key", "sample", "--likelihood", "normal", *TINY)
    assert "confounded with 'condition' and 'donor'" in outcome.err
