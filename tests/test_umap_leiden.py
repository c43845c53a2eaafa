"""UMAP and clusters, which scanpy computes from the embedding, are written to the right slots and no others."""

from __future__ import annotations

import json
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from command_line import run_cli, run_ok
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score
from workbench import DATA, USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.data.slots import SlotNames
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.tools.embed import umap_leiden as module
from scvae_cli.tools.embed.umap_leiden import MIN_CELLS, umap_leiden

BOTH = ("--umap", "--leiden")


def blobs(n_cells: int, n_groups: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Well separated groups of cells, and the group of each cell."""
    # The centers are far apart in 10 dimensions, whatever their number.
    centers = 20 * np.random.default_rng(seed).normal(size=(n_groups, 10))
    x, group = make_blobs(n_cells, centers=centers, cluster_std=1.0, random_state=seed)
    return x.astype(np.float32), group


@pytest.mark.parametrize(("n_neighbors", "resolution", "seed"), [(15, 1.0, 0), (5, 0.3, 7)])
def test_results_equal_scanpy(n_neighbors, resolution, seed):
    x, _ = blobs(200, 4)
    found = umap_leiden(x, umap=True, leiden=True, n_neighbors=n_neighbors, resolution=resolution, seed=seed)
    adata = ad.AnnData(x.copy(), obsm={"X_scvae": x})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(adata, n_neighbors=n_neighbors, use_rep="X_scvae", random_state=seed)
        sc.tl.umap(adata, random_state=seed)
        sc.tl.leiden(adata, resolution, random_state=seed, flavor="igraph", n_iterations=2, directed=False)
    np.testing.assert_array_equal(found.umap_n2, adata.obsm["X_umap"])
    assert list(found.cluster_n) == list(adata.obs["leiden"])


@pytest.mark.parametrize("n_groups", [2, 6])
def test_separated_groups_are_found(n_groups):
    x, group = blobs(60 * n_groups, n_groups)
    found = umap_leiden(x, umap=False, leiden=True, resolution=0.1)
    assert found.umap_n2 is None
    assert adjusted_rand_score(group, found.cluster_n) == 1


def test_larger_resolution_gives_more_clusters():
    x = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
    counts = [len(umap_leiden(x, umap=False, leiden=True, resolution=r).cluster_n.categories) for r in (0.2, 1, 5, 100)]
    assert counts == sorted(set(counts))
    assert counts[-1] > 100


@pytest.mark.slow
def test_many_neighbors_are_found_with_the_pinned_packages():
    """With pynndescent 0.7.0, the search fails if there are more cells than scanpy compares pair by pair."""
    x, group = blobs(12_000, 5, seed=1)
    found = umap_leiden(x, umap=False, leiden=True, resolution=0.01)
    assert adjusted_rand_score(group, found.cluster_n) == 1


@pytest.mark.parametrize("n_cells", [MIN_CELLS, 5, 14, 15, 16])
def test_fewer_cells_than_neighbors_are_accepted(n_cells):
    x = np.random.default_rng(0).normal(size=(n_cells, 3)).astype(np.float32)
    found = umap_leiden(x, umap=True, leiden=True)
    assert found.umap_n2.shape == (n_cells, 2)
    assert found.umap_n2.dtype == np.float32
    assert np.isfinite(found.umap_n2).all()
    assert len(found.cluster_n) == n_cells
    assert found.n_neighbors == min(n_cells, 15)


@pytest.mark.parametrize("n_cells", range(1, MIN_CELLS))
def test_too_few_cells_are_refused(n_cells):
    with pytest.raises(DataError, match=rf"at least 4 cells, and the data has {n_cells} cell"):
        umap_leiden(np.zeros((n_cells, 3), dtype=np.float32), umap=True, leiden=True)


def test_identical_cells_have_finite_positions():
    found = umap_leiden(np.zeros((30, 3), dtype=np.float32), umap=True, leiden=True)
    assert np.isfinite(found.umap_n2).all()


def test_slots_depend_on_the_options():
    x, _ = blobs(40, 2)
    paths = {(umap, leiden): [] for umap in (True, False) for leiden in (True, False) if umap or leiden}
    for umap, leiden in paths:
        found = umap_leiden(x, umap=umap, leiden=leiden).slots(SlotNames(key_added="wide"))
        assert [slot.path for slot in found] == ["obsm/X_umap_wide"] * umap + ["obs/wide_leiden"] * leiden


# --- in a file --------------------------------------------------------------------------------------------------------


def test_only_requested_slots_are_written(copied):
    before = ad.read_h5ad(copied.data)
    outcome = run_ok("embed", copied.data, "-m", copied.model, *BOTH, "--n-neighbors", "10", "--resolution", "0.5")
    after = ad.read_h5ad(copied.data)
    assert set(after.obsm) - set(before.obsm) == {"X_scvae", "scvae_latent", "scvae_latent_var", "X_umap_scvae"}
    assert set(after.obs) - set(before.obs) == {"scvae_leiden"}
    assert not after.obsp
    assert set(after.uns) - set(before.uns) == {"scvae"}
    clusters = after.obs["scvae_leiden"]
    assert isinstance(clusters.dtype, pd.CategoricalDtype)
    assert list(clusters.cat.categories) == [str(i) for i in range(len(clusters.cat.categories))]
    assert 'next: sc.pl.embedding(adata, basis="umap_scvae", color="scvae_leiden")' in outcome.err
    used = json.loads(after.uns["scvae"]["runs"]["embed"])["options"]
    assert used["umap"] is used["leiden"] is True
    assert (used["n_neighbors"], used["resolution"], used["seed"]) == (10, 0.5, 0)
    assert used["scanpy"] == sc.__version__
    assert {"umap-learn", "pynndescent", "igraph"} < set(used)
    # The suggested next command works.
    sc.pl.embedding(after, basis="umap_scvae", color="scvae_leiden", show=False)


def test_embed_without_umap_and_leiden_records_no_graph_options(copied):
    run_ok("embed", copied.data, "-m", copied.model)
    used = json.loads(ad.read_h5ad(copied.data).uns["scvae"]["runs"]["embed"])["options"]
    assert set(used) == {"space", "axes", "refine"}


def test_key_added_changes_the_names_of_the_slots(copied):
    outcome = run_ok("embed", copied.data, "-m", copied.model, *BOTH, "--key-added", "wide")
    after = ad.read_h5ad(copied.data)
    assert after.obsm["X_umap_wide"].shape == (after.n_obs, 2)
    assert "wide_leiden" in after.obs
    assert 'basis="umap_wide", color="wide_leiden"' in outcome.err


def test_earlier_umap_that_is_not_replaced_is_reported(copied):
    run_ok("embed", copied.data, "-m", copied.model, *BOTH)
    assert "obsm/X_umap_scvae" in run_ok("embed", copied.data, "-m", copied.model).err


@pytest.mark.parametrize(("flag", "path"), [("--umap", "obsm/X_umap_scvae"), ("--leiden", "obs/scvae_leiden")])
def test_slots_of_the_user_are_overwritten_only_with_force(bench, flag, path):
    def add_slots(adata):
        adata.obs["scvae_leiden"] = "mine"
        adata.obsm["X_umap_scvae"] = np.zeros((adata.n_obs, 2))

    bench.change(add_slots)
    hint = assert_refused(bench.folder, bench.args("embed", flag), DATA, path)
    assert "--force" in hint
    run_ok(*bench.args("embed", flag, "--force"))


def test_empty_cells_have_no_position_and_no_cluster(bench):
    from workbench import with_two_empty_cells

    bench.change(with_two_empty_cells)
    run_ok(*bench.args("embed", *BOTH, "--drop-empty", "--plot", bench.folder / "umap.png"))
    adata = ad.read_h5ad(bench.data)
    assert np.isnan(adata.obsm["X_umap_scvae"][:2]).all()
    assert np.isfinite(adata.obsm["X_umap_scvae"][2:]).all()
    assert list(adata.obs["scvae_leiden"].isna()) == [True, True] + [False] * (adata.n_obs - 2)


def test_too_few_cells_in_a_file_are_refused(bench):
    bench.change(lambda adata: adata[:3].copy())
    for options in (["--umap"], ["--leiden"], ["--plot", bench.folder / "umap.png"]):
        assert_refused(bench.folder, bench.args("embed", *options), DATA, "at least 4 cells, and the data has 3 cells")
    run_ok(*bench.args("embed"))


def test_number_of_neighbors_is_limited_by_the_number_of_cells(bench):
    bench.change(lambda adata: adata[:6].copy())
    outcome = run_ok(*bench.args("embed", "--umap"))
    assert "UMAP (6 neighbors)" in outcome.out
    assert "fewer than 15 cells" in outcome.err


def test_missing_igraph_is_reported(bench, monkeypatch):
    monkeypatch.setattr(module, "has_leiden", lambda: False)
    hint = assert_refused(bench.folder, bench.args("embed", "--leiden"), USAGE, "igraph, which is not installed")
    assert hint == "hint: pip install igraph"
    with pytest.raises(ConfigError, match="igraph"):
        scvae.embed(bench.data, bench.model, leiden=True)
    run_ok(*bench.args("embed", "--umap"))


def test_python_function_returns_umap_and_clusters(copied):
    adata = ad.read_h5ad(copied.data)
    result = scvae.embed(adata, copied.model, umap=True, leiden=True, inplace=False).umap_leiden
    assert "X_umap_scvae" not in adata.obsm
    assert result.umap_n2.shape == (adata.n_obs, 2)
    assert scvae.embed(adata, copied.model, inplace=False).umap_leiden is None


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--resolution", "2"], "--resolution was given without --leiden"),
        (["--umap", "--resolution", "2"], "--resolution was given without --leiden"),
        (["--leiden", "--resolution", "0"], "--resolution is 0"),
        (["--n-neighbors", "5"], "--n-neighbors was given without"),
        (["--umap", "--n-neighbors", "1"], "--n-neighbors is 1"),
        (["--umap", "--color", "batch"], "--color was given without --plot"),
        (["--plot", "umap.png", "--color", ","], "--color ',' contains no names"),
    ],
)
def test_options_without_effect_are_refused(bench, options, fragment):
    assert_refused(bench.folder, bench.args("embed", *options), USAGE, fragment)


def test_json_contains_the_number_of_clusters(copied):
    command = ["embed", copied.data, "-m", copied.model, "--json"]
    assert json.loads(run_cli(*command).out)["n_clusters"] is None
    facts = json.loads(run_cli(*command, "--leiden").out)
    assert facts["n_clusters"] == ad.read_h5ad(copied.data).obs["scvae_leiden"].nunique()
