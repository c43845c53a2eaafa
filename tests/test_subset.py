"""`--subset` restricts a command to some of the cells."""

from __future__ import annotations

import numpy as np
import pytest
from simulated import learned

import scvae_cli as scvae
from scvae_cli.data.formats import open_store
from scvae_cli.data.subset import subset_mask
from scvae_cli.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def cells():
    adata = learned()[0].copy()
    adata.obs["day"] = np.arange(adata.n_obs) % 3
    adata.obs["place"] = np.where(np.arange(adata.n_obs) % 2 == 0, "a,b", "c=d")
    adata.obs.loc[adata.obs_names[:4], "place"] = None
    return adata


def test_conditions_are_combined_with_and(cells):
    store = open_store(cells)
    np.testing.assert_array_equal(subset_mask(store, ["day=0,2"]), cells.obs["day"] != 1)
    both = subset_mask(store, ["day=0.0", "place=a,b"])
    np.testing.assert_array_equal(both, (cells.obs["day"] == 0) & (cells.obs["place"] == "a,b"))
    np.testing.assert_array_equal(subset_mask(store, ["place=c=d"]), cells.obs["place"] == "c=d")
    assert subset_mask(store, []).all()


@pytest.mark.parametrize("condition", ["day", "=1", "day="])
def test_conditions_without_key_or_value_are_refused(cells, condition):
    with pytest.raises(ConfigError, match="subset is"):
        subset_mask(open_store(cells), [condition])


@pytest.mark.parametrize(
    ("conditions", "message"),
    [(["nowhere=1"], "no column"), (["day=1,9"], "'9'"), (["day=1", "day=2"], "no cell fulfills all")],
)
def test_conditions_that_no_cell_fulfills_are_refused(cells, conditions, message):
    with pytest.raises(DataError, match=message):
        subset_mask(open_store(cells), conditions)


def test_pseudotime_of_a_subset_equals_that_of_the_subset_alone(cells):
    model = learned()[1]
    options = {"groupby": "cell_type", "root": "stem", "ends": ["mature_1", "mature_2"]}
    all_cells, part = cells.copy(), cells[cells.obs["day"] != 1].copy()
    scvae.pseudotime(all_cells, model, subset=["day=0,2"], **options)
    scvae.pseudotime(part, model, **options)
    chosen = (all_cells.obs["day"] != 1).to_numpy()
    assert all_cells.obs["scvae_pseudotime_from_stem"].isna().to_numpy().tolist() == (~chosen).tolist()
    ours, expected = all_cells.obsm["scvae_ends_from_stem"][chosen], part.obsm["scvae_ends_from_stem"]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_scores_outside_the_subset_are_missing(cells):
    adata = cells.copy()
    scvae.score(adata, learned()[1], n_samples=2, subset=["day=1"])
    assert (adata.obs["scvae_elbo"].notna() == (adata.obs["day"] == 1)).all()


def test_trajectory_of_a_subset_equals_that_of_the_subset_alone(cells):
    model = learned()[1]
    options = {"groupby": "cell_type", "groups": ["stem", "mature_1"], "n_steps": 10, "inplace": False}
    part = cells[cells.obs["day"] != 1].copy()
    trajectory = scvae.interpolate(cells, model, subset=["day=0,2"], **options)
    expected = scvae.interpolate(part, model, **options)
    np.testing.assert_allclose(trajectory.z_tk, expected.z_tk, atol=1e-5)
    np.testing.assert_array_equal(np.isnan(trajectory.pseudotime_n), np.isnan(expected.pseudotime_n))


def test_group_outside_the_subset_is_not_found(cells):
    ends = ["stem", "mature_1"]
    with pytest.raises(DataError, match="mature_1"):
        scvae.interpolate(cells, learned()[1], groupby="cell_type", groups=ends, subset=["cell_type=stem,progenitor"])


@pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")
def test_optimization_uses_only_the_subset(cells):
    optimization = scvae.optimize(
        cells, learned()[1], toward=list(learned()[1].genes[:3]), groupby="cell_type", group="stem", subset=["day=1"],
        n_steps=5, inplace=False,
    )  # fmt: skip
    assert len(optimization.trajectory.pseudotime_n) == (cells.obs["day"] == 1).sum()


def test_diagnosis_of_a_subset_trains_no_models(cells):
    model = learned()[1]
    with pytest.raises(ConfigError, match="quick"):
        scvae.diagnose(cells, model, subset=["day=1"])
    diagnosis = scvae.diagnose(cells, model, subset=["day=1"], quick=True, n_samples=2, refine=1, inplace=False)
    assert diagnosis.n_cells == (cells.obs["day"] == 1).sum()
