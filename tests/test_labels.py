"""Labels from columns of obs of every type, columns that cannot be read, and float16 in memory and in a file."""

from __future__ import annotations

from datetime import datetime

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from scvae_cli.config import ComputeConfig, DataConfig, ModelConfig, RunConfig, TrainConfig
from scvae_cli.data.counts import read_counts
from scvae_cli.data.formats import open_store
from scvae_cli.data.h5ad import H5adFile
from scvae_cli.data.inspection import inspect
from scvae_cli.data.labels import as_label, labels_of, matching, positions_in, values_of
from scvae_cli.data.memory import AnnDataStore
from scvae_cli.data.obs_columns import obs_values, read_batch
from scvae_cli.errors import ConfigError, DataError, ScvaeWarning
from scvae_cli.latent.decoding_batch import decoding_mixture
from scvae_cli.latent.posteriors import known_batches
from scvae_cli.session import Session
from scvae_cli.tools.perturb.design import design
from scvae_cli.training.fit import fit_to_end
from scvae_cli.training.prepare import batch_codes

# --- conversion to labels ---------------------------------------------------------------------------------------------

# Ways to store a column of whole numbers; those in the first row cannot have missing values.
WHOLE = ("int8", "int64", "uint16", "object of ints")
MISSING = ("float32", "float64", "Int8", "Int64", "Float64", "category", "category of floats", "category of Int64")
MISSING += ("object", "object of floats", "int64[pyarrow]")
TRUTH = ("bool", "boolean", "object", "category", "object of np.bool_")
# Numbers that all of these types can represent.
SMALL = st.integers(0, 100)


def whole_column(numbers: list[int | None], kind: str) -> pd.Series:
    if kind == "category of floats":
        return pd.Series(pd.Categorical([np.nan if n is None else float(n) for n in numbers]))
    if kind == "category of Int64":
        return pd.Series(pd.array(numbers, dtype="Int64")).astype("category")
    if kind == "category":
        return pd.Series(numbers, dtype=object).astype("category")
    if kind == "object of floats":
        return pd.Series([None if n is None else float(n) for n in numbers], dtype=object)
    if kind.startswith("object"):
        return pd.Series(numbers, dtype=object)
    return pd.Series(numbers, dtype=kind)


@pytest.mark.parametrize("kind", [*WHOLE, *MISSING])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_whole_numbers_of_any_type_have_the_same_labels(kind, data):
    if "pyarrow" in kind:
        pytest.importorskip("pyarrow")
    one = SMALL if kind in WHOLE else st.none() | SMALL
    numbers = data.draw(st.lists(one, max_size=8))
    labels = labels_of(whole_column(numbers, kind))
    assert list(labels) == [None if n is None else str(n) for n in numbers]
    assert labels.dtype == object


@pytest.mark.parametrize("kind", TRUTH)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_truth_values_of_any_type_have_the_same_labels(kind, data):
    values = data.draw(st.lists(st.booleans() if kind == "bool" else st.none() | st.booleans(), max_size=8))
    of_numpy = kind == "object of np.bool_"
    column = pd.Series([np.bool_(v) if of_numpy and v is not None else v for v in values], dtype=kind.split()[0])
    assert list(labels_of(column)) == [None if v is None else str(v) for v in values]


# pandas treats a null character as the end of a string.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=5)


@given(st.lists(st.none() | TEXT | st.sampled_from(["1.0", "1", "True", "nan", "NA", ""]), max_size=8))
@settings(deadline=None)
def test_strings_are_not_changed(texts):
    columns = [pd.Series(texts, dtype=object), pd.Series(pd.Categorical(texts)), pd.Series(texts, dtype="string")]
    if None not in texts:
        columns.append(pd.Series([text.encode() for text in texts], dtype=object))
    for column in columns:
        assert list(labels_of(column)) == texts


@given(st.integers() | st.booleans() | st.text() | st.none() | st.floats() | st.binary() | st.datetimes())
def test_label_of_a_label_is_the_label_itself(value):
    label = as_label(value)
    assert label is None or as_label(label) == label
    if not isinstance(value, int) or abs(value) < 2**63:
        in_column = np.empty(1, dtype=object)
        in_column[0] = value
        assert labels_of(in_column)[0] == label
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
        assert as_label(np.asarray(value)[()]) == label == as_label(np.asarray(value))


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_float_is_matched_by_its_label(number):
    label = as_label(number)
    assert float(label) == number
    assert matching(number, [label, "7.125"]) == label


def test_labels_of_a_column_of_mixed_types():
    column = np.array([1, 1.0, True, "1.0", np.int8(1), None, np.nan, pd.NA, pd.NaT, b"B", [1]], dtype=object)
    assert list(labels_of(column)) == ["1", "1", "True", "1.0", "1", None, None, None, None, "B", "[1]"]


def test_labels_of_dates_and_large_integers():
    days = pd.Series(pd.to_datetime(["2024-05-31", None]))
    for column in (days, days.astype("category"), days.astype(object)):
        assert list(labels_of(column)) == ["2024-05-31", None]
    assert matching(datetime(2024, 5, 31), ["2024-05-31"]) == "2024-05-31"
    large = 2**53 + 1
    for dtype in ("Int64", "category"):
        column = pd.Series([large, None], dtype=object if dtype == "category" else dtype).astype(dtype)
        assert list(labels_of(column)) == [str(large), None]
    assert matching(large, [str(large - 1), str(large)]) == str(large)


# --- values given by the caller ---------------------------------------------------------------------------------------


@given(n=SMALL, others=st.sets(SMALL))
def test_number_in_any_form_matches_a_column_of_numbers(n, others):
    forms = [n, float(n), np.int64(n), np.float32(n), np.array(n), str(n), f"{n}.0", f" {n}", str(n).encode()]
    for given_as in forms:
        assert matching(given_as, {str(other) for other in others | {n}}) == str(n)
        assert matching(given_as, {f"{other}.0" for other in others | {n}}) == f"{n}.0"
        assert matching(given_as, {str(other) for other in others - {n}}) is None


def test_true_and_false_are_matched():
    for yes in (True, np.True_, 1, 1.0, "True", "true", "TRUE", "1", np.array(True)):
        assert matching(yes, ["False", "True"]) == "True"
        assert matching(yes, ["0", "1"]) == "1"
    assert matching(False, ["False", "True"]) == matching(0, ["False", "True"]) == "False"
    assert matching(2, ["False", "True"]) is None


def test_strings_are_not_matched_as_numbers():
    assert matching("100", ["1E2", "B1"]) is None
    assert matching("1", ["01", "02"]) is None
    assert matching("1.0", ["1", "1.0"]) == "1.0"
    assert matching(1.0, ["1.0", "T cell"]) == "1.0"
    assert matching("1_0", ["10"]) is None
    assert matching(None, ["None"]) is matching(np.nan, ["nan"]) is None


def test_positions_of_batches_of_a_model():
    labels = labels_of(pd.Series([2.0, np.nan, 1.0, 3.0]))
    assert list(positions_in(("1", "2"), labels)) == [1, -1, 0, -1]
    assert list(positions_in(("1.0", "2.0"), labels)) == [1, -1, 0, -1]
    assert positions_in(("1",), np.array([], dtype=object)).shape == (0,)


# --- in memory and in a file ------------------------------------------------------------------------------------------


def some_cells(n: int = 6, g: int = 4) -> ad.AnnData:
    counts = np.random.default_rng(0).poisson(3, (n, g)).astype(np.float32)
    return ad.AnnData(counts, obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]))


@pytest.fixture
def columns() -> dict[str, pd.Series]:
    index = [f"c{i}" for i in range(6)]
    lanes = [1, 2, None, 3, 1, 2]
    kinds = [kind for kind in MISSING if not kind.startswith("object") and "pyarrow" not in kind]
    made = {kind: whole_column(lanes, kind) for kind in kinds}
    return {kind: pd.Series(column.array, index=index) for kind, column in made.items()}


def test_labels_in_a_file_and_in_memory_are_equal(tmp_path, columns):
    adata = some_cells()
    for kind, column in columns.items():
        if kind != "Float64":  # anndata does not write this type
            adata.obs[kind] = column
    adata.obs["boolean"] = pd.array([True, None, False, True, True, False], dtype="boolean")
    adata.obs["bool"] = [True, False] * 3
    adata.var["score"] = [1.0, 2.0, np.nan, 4.0]
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    memory, file = AnnDataStore(adata), H5adFile(path)
    for kind in columns.keys() - {"Float64"}:
        for store in (memory, file):
            assert list(labels_of(store.obs_column(kind))) == ["1", "2", None, "3", "1", "2"], kind
    for key in ("boolean", "bool"):
        assert list(labels_of(memory.obs_column(key))) == list(labels_of(file.obs_column(key)))
    assert list(labels_of(file.obs_column("boolean")))[:3] == ["True", None, "False"]
    assert memory.obs_column("bool").dtype == file.obs_column("bool").dtype == bool
    np.testing.assert_array_equal(memory.var_column("score"), file.var_column("score"))
    assert inspect(memory).obs == inspect(file).obs
    # A column of type Float64 is read as numbers.
    assert values_of(columns["Float64"]).dtype == np.float64


def test_whole_floats_are_groups_and_measurements_are_not():
    adata = some_cells()
    adata.obs["lane"] = np.array([1, 2, np.nan, 1, 2, 1], dtype=np.float32)
    adata.obs["score"] = [0.5, 1, 1, 0.5, 1, 1]
    adata.obs["nothing"] = np.nan
    store = AnnDataStore(adata)
    assert inspect(store).obs == {"lane": 2}
    with pytest.raises(DataError) as caught:
        obs_values(store, "other", purpose="--groupby")
    assert caught.value.hint == "--groupby takes one of: lane"


def test_types_of_complete_columns_are_kept():
    for dtype, plain in (("Int16", np.int16), ("boolean", bool), ("Float32", np.float32)):
        assert values_of(pd.Series([1, 0], dtype=dtype)).dtype == plain


def test_duplicate_columns_are_refused():
    adata = some_cells()
    adata.obs = pd.DataFrame([["a", "b", "c"]] * 6, index=adata.obs_names, columns=["kind", "kind", "lane"])
    adata.var = pd.DataFrame([["a", "b"]] * 4, index=adata.var_names, columns=["symbol", "symbol"])
    store = AnnDataStore(adata)
    for read in (store.obs_column, store.obs_order, lambda key: read_batch(store, key)):
        with pytest.raises(DataError, match="2 columns of obs are called 'kind'") as caught:
            read("kind")
        assert "duplicated" in caught.value.hint
    with pytest.raises(DataError, match="2 columns of var are called 'symbol'"):
        store.var_column("symbol")
    with pytest.raises(DataError, match="no column 'other' in obs") as caught:
        obs_values(store, "other", purpose="--groupby")
    assert caught.value.hint == "--groupby takes one of: lane"
    assert inspect(store, batch_key="lane").obs == {"lane": 1}
    for read in (store.obs_column, store.var_column):
        with pytest.raises(DataError, match="no column 'other'"):
            read("other")


def test_name_of_a_column_may_be_a_number():
    adata = some_cells()
    adata.obs[7] = "a"
    assert list(AnnDataStore(adata).obs_column("7")) == ["a"] * 6


@pytest.mark.parametrize("place", ["X", "layer"])
@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix, sp.csc_matrix], ids=["dense", "csr", "csc"])
@pytest.mark.parametrize("dtype", ["float16", "bool", ">f4", ">i2"])
def test_storage_types_are_read_equally_from_memory_and_file(tmp_path, place, make, dtype):
    adata = some_cells()
    values = np.minimum(adata.X, 1) if dtype == "bool" else adata.X
    if make is np.asarray:
        stored = values.astype(dtype)
    elif dtype.startswith(">"):
        pytest.skip("scipy has no such sparse matrix")
    else:
        stored = make(values)
        stored.data = stored.data.astype(dtype)
    layer = "some" if place == "layer" else None
    if layer:
        adata.layers[layer] = stored
    else:
        adata.X = stored
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    for store in (open_store(adata), open_store(path)):
        counts = read_counts(store, layer=layer)
        assert counts.matrix.dtype == np.float32
        np.testing.assert_array_equal(counts.matrix.toarray(), values)


# --- groups and time points of a session ------------------------------------------------------------------------------


@pytest.fixture
def labeled_cells(trained):
    """The cells with further columns of several types, which contain the number of the batch."""
    adata = ad.read_h5ad(trained.data)
    lane = adata.obs["batch"].astype(str).str[-1].astype(int)
    adata.obs["lane"] = lane
    adata.obs["float"] = lane.astype(np.float32)
    adata.obs["nullable"] = lane.astype("Int64")
    adata.obs.loc[adata.obs_names[0], "nullable"] = pd.NA
    adata.obs["boolean"] = (lane == 1).astype("boolean")
    adata.obs["flag"] = lane == 1
    adata.obs["category"] = pd.Categorical(lane.astype(float))
    adata.obs["text"] = lane.map({1: "1.0", 2: "2.0"})
    return adata


@pytest.mark.parametrize("key", ["lane", "float", "nullable", "category", "text", "boolean", "flag"])
def test_groups_are_found_in_any_form(trained, labeled_cells, key):
    session = Session.open(labeled_cells, trained.model, device="cpu")
    in_first = np.flatnonzero((labeled_cells.obs["lane"] == 1) & labeled_cells.obs[key].notna())
    for given_as in (1, 1.0, np.int64(1), np.float32(1), True, "1", "1.0"):
        population = session.populations([given_as], groupby=key)[0]
        np.testing.assert_array_equal(population.cells, in_first)
        assert population.label == {"text": "1.0", "boolean": "True", "flag": "True"}.get(key, "1")
    with pytest.raises(DataError, match=f"no cells with obs\\['{key}'\\] == '7'"):
        session.populations([7.0], groupby=key)
    with pytest.raises(DataError, match="== None"):
        session.populations([None], groupby=key)


def test_time_points_are_in_order(trained, labeled_cells):
    labeled_cells.obs["ordered"] = pd.Categorical(
        labeled_cells.obs["lane"].astype(float), categories=[2.0, 1.0], ordered=True
    )
    session = Session.open(labeled_cells, trained.model, device="cpu")
    for key in ("lane", "float", "nullable", "category"):
        assert session.time_points(key) == ["1", "2"]
    assert session.time_points("text") == ["1.0", "2.0"]
    assert session.time_points("ordered") == ["2", "1"]


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lanes(trained_on_batches):
    """Cells whose batches are numbers, and a model that was trained with the batches."""
    adata = ad.read_h5ad(trained_on_batches.data)
    lane = adata.obs["batch"].astype(str).str[-1].astype(int)
    adata.obs["lane"] = lane
    config = RunConfig(
        data=DataConfig(batch_key="lane"),
        model=ModelConfig(n_latent=2, n_hidden=8),
        train=TrainConfig(max_epochs=2),
        compute=ComputeConfig(device="cpu"),
    )
    counts = read_counts(AnnDataStore(adata), batch_key="lane")
    return adata, fit_to_end(counts, config)


@pytest.mark.parametrize("dtype", ["int32", "float32", "Int64", "category", "category of floats", "str"])
def test_batches_are_recognized_in_columns_of_any_type(lanes, dtype):
    adata, model = lanes
    assert model.batches == ("1", "2")
    adata = adata.copy()
    lane = adata.obs["lane"]
    adata.obs["lane"] = lane.astype(float).astype("category") if dtype == "category of floats" else lane.astype(dtype)
    # A warning about new batches would fail the test.
    session = Session.open(adata, model, device="cpu")
    counts = session.counts_and_batches()
    np.testing.assert_array_equal(known_batches(model, counts), lane - 1)
    assert batch_codes(read_counts(session.store, batch_key="lane"))[0] == ("1", "2")
    for batch_as in (1, 1.0, True, "1", "1.0"):
        assert decoding_mixture(model, batch_as).batch_b.tolist() == [0]
    with pytest.raises(DataError, match="the model has no batch '7'"):
        decoding_mixture(model, "7")


def test_new_batches_give_a_warning_and_are_refused(lanes):
    adata, model = lanes
    adata = adata.copy()
    adata.obs["lane"] = adata.obs["lane"].astype(float) + 1
    with pytest.warns(ScvaeWarning, match=r"1 batch was not in the training data \(3\)"):
        session = Session.open(adata, model, device="cpu")
    with pytest.raises(DataError, match="was not trained on batch '3'"):
        known_batches(model, session.counts_and_batches())


# --- combinations -----------------------------------------------------------------------------------------------------


def perturbed_cells(*labels: str) -> dict[str, np.ndarray]:
    """Five cells of each label in groups a and b."""
    group_n = np.repeat(np.array(["a", "b"], dtype=object), 5 * len(labels))
    return {"group_n": group_n, "label_n": np.tile(np.repeat(np.array(labels, dtype=object), 5), 2)}


@given(
    parts=st.permutations(["A", "B", "ctrl"]),
    spaced=st.booleans(),
    single=st.sampled_from(["{}", "{}+ctrl", "ctrl+{}", "ctrl + {}"]),
    n_controls=st.integers(0, 1),
)
def test_unseen_combination_is_recognized_in_any_order(parts, spaced, single, n_controls):
    named = [part for part in parts if part != "ctrl" or n_controls]
    treated = (" + " if spaced else "+").join(named)
    singles = [single.format(part) for part in "AB"]
    found = design("a", "ctrl", treated, **perturbed_cells("ctrl", *singles), perturbation_key="what")
    assert set(found.parts) == set(singles)
    assert found.treated == "+".join(part for part in named if part != "ctrl")


@pytest.mark.parametrize("label", ["A+ctrl", "ctrl+A", "A", "ctrl + A"])
@pytest.mark.parametrize("given_as", ["A+ctrl", "ctrl+A", "A", " A + ctrl"])
def test_control_as_a_part_of_a_combination_is_ignored(label, given_as):
    found = design("a", "ctrl", given_as, **perturbed_cells("ctrl", label), perturbation_key="what")
    assert (found.treated, found.parts) == (label, ())


def test_cells_of_one_combination_are_pooled():
    found = design("a", "ctrl", "B+A", **perturbed_cells("ctrl", "A", "B", "A+B", "B+A"), perturbation_key="what")
    assert len(found.rows("a", "B+A")) == 10
    assert (found.treated, found.parts) == ("B+A", ("B", "A"))
    # A label that some cells have is found as it is, although its part A is a label, too.
    found = design("a", "ctrl", "A+ctrl", **perturbed_cells("ctrl", "A", "A+ctrl"), perturbation_key="what")
    assert (found.treated, len(found.rows("b", "A+ctrl"))) == ("A+ctrl", 5)


def test_perturbations_may_be_numbers_or_end_in_a_plus_sign():
    found = design("a", 0, 1.0, **perturbed_cells("0", "1"), perturbation_key="what")
    assert (found.control, found.treated) == ("0", "1")
    found = design("a", "False", True, **perturbed_cells("False", "True"), perturbation_key="what")
    assert (found.control, found.treated) == ("False", "True")
    found = design("a", "CD4-", "CD4+", **perturbed_cells("CD4-", "CD4+"), perturbation_key="what")
    assert (found.treated, found.parts) == ("CD4+", ())


def test_message_explains_how_combinations_are_named():
    cells = perturbed_cells("ctrl", "A", "B")
    with pytest.raises(DataError, match=r"== 'A\+D', nor with its part 'D' alone") as caught:
        design("a", "ctrl", "A+D", **cells, perturbation_key="what")
    assert caught.value.hint.startswith(
        "to name a combination, join the labels of its parts by +, in any order, such as A+B"
    )
    for same in ("ctrl", "ctrl+ctrl", "ctrl "):
        with pytest.raises((ConfigError, DataError)):
            design("a", "ctrl", same, **cells, perturbation_key="what")
    with pytest.raises(ConfigError, match="different perturbations"):
        design("a", "ctrl", "A+ctrl+A", **cells, perturbation_key="what")
