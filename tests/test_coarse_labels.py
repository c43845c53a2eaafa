"""Coarse labels of `annotate`, and columns whose labels are numbers or booleans."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from command_line import run_ok
from simulated import learned

import scvae_cli as scvae
from scvae_cli.data.known_labels import values_by_label
from scvae_cli.errors import DataError
from scvae_cli.tools.annotate.back_off import CoarseLabels, back_off, back_off_quality

COARSE = {
    "stem": "immature", "progenitor": "immature", "intermediate_1": "branch 1", "mature_1": "branch 1",
    "intermediate_2": "branch 2", "mature_2": "branch 2",
}  # fmt: skip


def cells_with_coarse_labels(**renamed: str):
    """Cells of a tree with fine and coarse labels, and a model of the cells; every third cell has no label."""
    adata, model = learned()
    adata = adata.copy()
    kept_n = np.arange(adata.n_obs) % 3 > 0
    fine = adata.obs["cell_type"].astype(str)
    adata.obs["fine"] = fine.replace(renamed).astype(object).where(kept_n)
    adata.obs["coarse"] = fine.map(COARSE).astype(object).where(kept_n)
    return adata, model, fine.map(COARSE).to_numpy()


OPTIONS = {"labels_key": "fine", "coarse_key": "coarse"}


def test_coarse_probabilities_are_sums_and_uncertain_cells_get_coarse_labels():
    adata, model, coarse_n = cells_with_coarse_labels()
    scvae.annotate(adata, model, **OPTIONS, fine_probability=0.8, unknown_rate=0.05)
    obs, names = adata.obs, list(adata.uns["scvae"]["label_names"])
    p_nc = adata.obsm["scvae_label_probabilities"]
    p = pd.DataFrame(p_nc, columns=[COARSE[name] for name in names], index=adata.obs_names).T.groupby(level=0).sum().T
    np.testing.assert_allclose(obs["scvae_label_coarse_probability"], p.max(1), rtol=1e-5)
    unknown_n = obs["scvae_label"] == "unknown"
    assert 0 < unknown_n.sum() < 100
    for column in ("scvae_label_coarse", "scvae_label_backed_off"):
        assert (obs[column][unknown_n] == "unknown").all()
    assert (obs["scvae_label_coarse"] == p.idxmax(axis=1))[~unknown_n].all()
    assert (obs["scvae_label_coarse"] == coarse_n)[~unknown_n].mean() > 0.8
    kept_n = ~unknown_n & (obs["scvae_label_probability"] >= 0.8)
    assert 0 < kept_n.sum() < (~unknown_n).sum()
    assert (obs["scvae_label_backed_off"].astype(str) == obs["scvae_label"].astype(str))[kept_n].all()
    backed_off_n = ~unknown_n & ~kept_n
    assert (obs["scvae_label_backed_off"].astype(str) == obs["scvae_label_coarse"].astype(str))[backed_off_n].all()


def test_coarse_labels_do_not_change_fine_labels():
    adata, model, _ = cells_with_coarse_labels()
    with_coarse = scvae.annotate(adata, model, **OPTIONS, inplace=False)
    without_coarse = scvae.annotate(adata, model, labels_key="fine", inplace=False)
    np.testing.assert_array_equal(with_coarse.probability_nc, without_coarse.probability_nc)
    np.testing.assert_array_equal(with_coarse.set_nc, without_coarse.set_nc)
    assert without_coarse.back_off is None


def test_quality_of_backed_off_labels():
    coarse = CoarseLabels(names=("x", "y"), parent_c=np.array([0, 0, 1]))
    p_mc = np.array([[0.9, 0.05, 0.05], [0.5, 0.4, 0.1], [0.4, 0.15, 0.45], [0.1, 0.0, 0.9]])
    # The second cell gets a wrong label, but the right coarse label. The coarse label of the fourth cell is wrong, too.
    code_m, weight_m = np.array([0, 1, 0, 1]), np.array([1.0, 2.0, 1.0, 1.0])
    found = back_off_quality(p_mc, code_m, weight_m, coarse, 0.8)
    assert (found.kept, found.kept_right, found.coarse_right) == pytest.approx((2 / 5, 1 / 2, 1.0))
    assert found.labels.accuracy == pytest.approx(4 / 5)
    result = back_off(p_mc, coarse, 0.8, found)
    np.testing.assert_allclose(result.probability_nd[:, 0], [0.95, 0.9, 0.55, 0.1])
    assert list(result.kept_n) == [True, False, False, True]


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda obs: obs.assign(coarse=np.where(np.arange(len(obs)) % 2, "a", "b")), "is not coarser than"),
        (lambda obs: obs.assign(fine=obs["coarse"], coarse=obs["fine"]), "exchange them"),
        (lambda obs: obs.assign(coarse=obs["coarse"].where(obs["fine"] != "stem")), "no value for the cells labeled"),
        (lambda obs: obs.assign(coarse="blood"), "has only the value 'blood'"),
        (lambda obs: obs.assign(coarse=obs["fine"] + " cell"), "replaced by a coarser label"),
        (lambda obs: obs.assign(coarse=obs["coarse"].replace({"branch 1": "unknown"})), "of no known type"),
        (lambda obs: obs.assign(coarse=obs["coarse"].replace({"branch 1": "stem"})), "another name"),
    ],
)
def test_coarse_labels_that_are_not_nested_are_refused(change, fragment):
    adata, model, _ = cells_with_coarse_labels()
    adata.obs = change(adata.obs)
    before = set(adata.obs)
    with pytest.raises(DataError) as error:
        scvae.annotate(adata, model, **OPTIONS)
    assert fragment in f"{error.value} {error.value.hint}"
    assert "\n" not in str(error.value)
    assert set(adata.obs) == before


def test_coarse_label_may_equal_its_only_fine_label():
    adata, model, _ = cells_with_coarse_labels()
    adata.obs["coarse"] = adata.obs["coarse"].mask(adata.obs["fine"] == "stem", "stem")
    scvae.annotate(adata, model, **OPTIONS)
    categories = list(adata.obs["scvae_label_backed_off"].cat.categories)
    assert len(categories) == len(set(categories))


def test_command_writes_coarse_labels(copied):
    adata = ad.read_h5ad(copied.data)
    adata.obs["coarse"] = adata.obs["cell_type"].map(COARSE)
    adata.write_h5ad(copied.data)
    command = ["annotate", copied.data, "-m", copied.model, "--labels-key", "cell_type", "--coarse-key", "coarse"]
    report = json.loads(run_ok(*command, "--json").out)["coarse"]
    written = ad.read_h5ad(copied.data)
    assert list(written.obs["scvae_label_coarse"].cat.categories) == [*report["labels"], "unknown"]
    assert set(report["heldout"]) == {"labels", "kept", "kept_right", "coarse_right"}
    # A second run overwrites the columns of the first run, and does not suggest these columns as known labels.
    out = run_ok(*command).out
    assert "get a coarse label" in out
    with pytest.raises(DataError) as error:
        scvae.annotate(ad.read_h5ad(copied.data), copied.model, labels_key="nothing")
    suggested = error.value.hint.split(": ")[1].split(", ")
    assert {"cell_type", "coarse"} <= set(suggested)
    assert not [name for name in suggested if name.startswith("scvae_label")]


# --- labels that are not text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3, 10], [3, 10]), ([1.0, 10.0], [1.0, 10.0]), ([True, False], [False, True]), (["10", "9"], ["9", "10"])],
)
@pytest.mark.parametrize("as_categories", [False, True])
def test_predicted_labels_have_the_type_of_the_column(tmp_path, values, expected, as_categories):
    adata, model, _ = cells_with_coarse_labels()
    labels = [values[name.startswith("mature")] for name in adata.obs["cell_type"]]
    column = pd.Series(labels, index=adata.obs_names)
    adata.obs["known"] = column.astype("category") if as_categories else column
    scvae.annotate(adata, model, labels_key="known", unknown_rate=0.05)
    adata.write_h5ad(tmp_path / "written.h5ad")
    for written in (adata, ad.read_h5ad(tmp_path / "written.h5ad")):
        found = written.obs["scvae_label"]
        numbers = not isinstance(values[0], str)
        assert sorted(found.cat.categories[:2].tolist()) == sorted(expected)
        assert len(found.cat.categories) == (2 if numbers else 3)
        unknown_n = found.isna() if numbers else found == "unknown"
        assert 0 < unknown_n.sum() < 100
        assert (found.astype(object) == written.obs["known"].astype(object))[~unknown_n].mean() > 0.8
        assert set(written.uns["scvae"]["label_names"]) == {str(value).removesuffix(".0") for value in expected}


def test_labels_of_mixed_columns_are_text():
    mixed = np.array([1, "a"], dtype=object)
    assert values_by_label(mixed, ["1", "a"]) is None
    assert values_by_label(np.array([True, 2], dtype=object), ["2", "True"]) is None
    assert list(values_by_label(np.array([None, 7, 5], dtype=object), ["5", "7"])) == [5, 7]
