"""The simulation reports the true parameters of its counts, and the written file contains the counts and parameters."""

import dataclasses
import json
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from scvae_cli.data.h5ad_create import create_h5ad
from scvae_cli.data.simulation import GRID_STEPS, SPLIT, Simulation, draw_zinb, simulate, true_mean
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.options import declarations


def small(**changes) -> Simulation:
    return simulate(SimulationConfig(**({"n_cells": 700, "n_genes": 60, "n_batches": 2, "seed": 3} | changes)))


def counts_of(simulation: Simulation, rows: int = 4096) -> np.ndarray:
    return sp.vstack(list(simulation.blocks(rows))).toarray()


@pytest.fixture(scope="module")
def many() -> tuple[Simulation, np.ndarray]:
    """Enough cells to test means: 3 batches, 3 branches, strong zero inflation."""
    simulation = small(n_cells=20_000, n_branches=3, n_batches=3, zero_inflation=0.2, depth=300)
    return simulation, counts_of(simulation)


def moments(simulation: Simulation) -> tuple[np.ndarray, np.ndarray]:
    """Compute expected count and variance of the ZINB, n × g, by the textbook formulas."""
    mu_ng = true_mean(simulation.obs, simulation.varm).astype(np.float64)
    pi_g, theta_g = simulation.var["true_zero_inflation"].to_numpy(), simulation.var["true_theta"].to_numpy()
    variance_ng = (1 - pi_g) * (mu_ng + mu_ng**2 / theta_g) + pi_g * (1 - pi_g) * mu_ng**2
    return (1 - pi_g) * mu_ng, variance_ng


# --- determinism ------------------------------------------------------------------------------------------------------


def test_result_depends_only_on_the_seed():
    first, second, other = small(), small(), small(seed=4)
    pd.testing.assert_frame_equal(first.obs, second.obs)
    pd.testing.assert_frame_equal(first.var, second.var)
    np.testing.assert_array_equal(counts_of(first), counts_of(second))
    np.testing.assert_array_equal(counts_of(first), counts_of(first))
    assert not np.array_equal(counts_of(first), counts_of(other))


@pytest.mark.parametrize("rows", [1, 7, 255, 256, 300, 699, 700, 5000])
def test_counts_do_not_depend_on_block_size(rows):
    simulation = small()
    blocks = list(simulation.blocks(rows))
    assert [block.shape[0] for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
    assert 0 < blocks[-1].shape[0] <= rows
    np.testing.assert_array_equal(sp.vstack(blocks).toarray(), counts_of(simulation))


def test_blocks_of_the_true_mean_equal_the_true_mean():
    simulation = small()
    np.testing.assert_array_equal(
        np.vstack(list(simulation.true_mean_blocks(99))), true_mean(simulation.obs, simulation.varm)
    )


def test_genes_do_not_depend_on_the_number_of_cells():
    pd.testing.assert_frame_equal(small(n_cells=5).var, small(n_cells=50).var)


# --- counts -----------------------------------------------------------------------------------------------------------


def test_blocks_are_canonical_csr_matrices_of_whole_counts():
    for block in small().blocks(300):
        assert block.format == "csr"
        assert block.dtype == np.float32
        assert block.has_canonical_format
        assert block.data.min() >= 1
        np.testing.assert_array_equal(block.data, np.round(block.data))


# Means on both sides of 3, where the method changes, down to a gene that is almost never observed.
@pytest.mark.parametrize("mu", [1e-3, 0.05, 0.9, 2.9, 3.1, 40.0])
@pytest.mark.parametrize("theta", [0.2, 4.0, 100.0])
@pytest.mark.parametrize("pi", [0.0, 0.3])
def test_draws_follow_the_zinb_distribution(mu, theta, pi):
    n = 20_000
    rng = np.random.default_rng([int(mu * 1000), int(theta * 10), int(pi * 10)])
    drawn = draw_zinb(np.full((n, 1), mu), np.array([theta]), np.array([pi]), rng).toarray().ravel()
    top = int(drawn.max()) + 1
    pmf = (1 - pi) * stats.nbinom.pmf(np.arange(top + 1), theta, theta / (theta + mu))
    pmf[0] += pi
    pmf[-1] = 1 - pmf[:-1].sum()
    # Chi-square over bins of at least five expected counts.
    observed, expected, bin_observed, bin_expected = [], [], 0.0, 0.0
    for seen, share in zip(np.bincount(drawn.astype(int), minlength=top + 1), pmf, strict=True):
        bin_observed, bin_expected = bin_observed + seen, bin_expected + share * n
        if bin_expected >= 5:
            observed.append(bin_observed)
            expected.append(bin_expected)
            bin_observed = bin_expected = 0.0
    observed[-1] += bin_observed
    expected[-1] += bin_expected
    # 36 tests with fixed seeds; under the truth the smallest of 36 p-values is below 1e-4 in 0.4% of seeds.
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_counts_are_uncorrelated_between_cells_and_genes():
    counts_ng = draw_zinb(np.full((20_000, 6), 1.0), np.ones(6), np.full(6, 0.1), np.random.default_rng(1)).toarray()
    off = np.corrcoef(counts_ng, rowvar=False)[np.triu_indices(6, 1)]
    assert np.abs(off).max() < 5 / np.sqrt(20_000)
    following = [np.corrcoef(gene[:-1], gene[1:])[0, 1] for gene in counts_ng.T]
    assert np.abs(following).max() < 5 / np.sqrt(20_000)


def test_mean_of_zero_gives_no_counts():
    assert draw_zinb(np.zeros((50, 3)), np.ones(3), np.zeros(3), np.random.default_rng(0)).nnz == 0


# --- truth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["cell_type", "batch", "true_branch", "pseudotime"])
def test_means_of_counts_agree_with_the_truth(many, key):
    simulation, counts_ng = many
    groups = pd.cut(simulation.obs["true_pseudotime"], 40) if key == "pseudotime" else simulation.obs[key]
    mean_ng, variance_ng = moments(simulation)
    z = []
    for group in groups.cat.categories:
        cells = (groups == group).to_numpy()
        z.append((counts_ng - mean_ng)[cells].sum(0) / np.sqrt(variance_ng[cells].sum(0)))
    z = np.concatenate(z)
    assert np.abs(z).max() < 6  # rare genes have skewed sums
    assert 0.85 < z.std() < 1.15
    assert abs(z.mean()) < 5 / np.sqrt(z.size)


def test_variance_equals_that_of_the_zinb(many):
    simulation, counts_ng = many
    mean_ng, variance_ng = moments(simulation)
    squares_ng = (counts_ng - mean_ng) ** 2
    seen_g = counts_ng.mean(0) > 0.5
    z_g = (squares_ng - variance_ng).mean(0)[seen_g] / (squares_ng.std(0)[seen_g] / np.sqrt(len(counts_ng)))
    assert seen_g.sum() >= 15
    assert np.abs(z_g).max() < 5


def test_shares_of_zeros_equal_those_of_the_zinb(many):
    simulation, counts_ng = many
    mu_ng = true_mean(simulation.obs, simulation.varm)
    theta_g, pi_g = simulation.var["true_theta"].to_numpy(), simulation.var["true_zero_inflation"].to_numpy()
    zero_ng = pi_g + (1 - pi_g) * stats.nbinom.pmf(0, theta_g, theta_g / (theta_g + mu_ng))
    z_g = ((counts_ng == 0) - zero_ng).sum(0) / np.sqrt((zero_ng * (1 - zero_ng)).sum(0))
    assert np.abs(z_g).max() < 5
    assert pi_g.mean() == pytest.approx(0.2, abs=0.08)  # 60 draws of Beta(1, 4), whose sd is 0.16
    assert (small(zero_inflation=0).var["true_zero_inflation"] == 0).all()


def test_library_sizes_are_log_normal_about_the_depth():
    simulation = small(n_cells=5000, depth=800, n_batches=1)
    assert simulation.obs["true_library"].median() == pytest.approx(800, rel=0.05)
    # Without batch effects the means of a cell add up to its library size.
    total_n = true_mean(simulation.obs, simulation.varm).sum(1)
    np.testing.assert_allclose(total_n, simulation.obs["true_library"], rtol=1e-5)


def test_batches_differ_by_their_effects():
    simulation = small(n_genes=200)
    effect_gb = simulation.varm["true_batch_log_effect"]
    assert effect_gb.shape == (200, 2)
    np.testing.assert_allclose(effect_gb.sum(1), 0, atol=1e-6)
    one_cell = pd.concat([simulation.obs.iloc[[0]]] * 2)
    one_cell["batch"] = ["batch_1", "batch_2"]
    mu_ng = true_mean(one_cell, simulation.varm)
    np.testing.assert_allclose(np.log(mu_ng[0] / mu_ng[1]), effect_gb[:, 0] - effect_gb[:, 1], atol=1e-4)
    assert (small(n_batches=1).varm["true_batch_log_effect"] == 0).all()


def test_true_mean_is_linear_between_grid_points_and_accepts_subsets():
    simulation = small()
    genes = np.array([5, 1, 40])
    cells = (simulation.obs["true_branch"] == "branch_2").to_numpy()
    subset = simulation.obs[cells].copy()
    for column in subset.select_dtypes("category"):
        subset[column] = subset[column].cat.remove_unused_categories()
    some_varm = {key: value[genes] for key, value in simulation.varm.items()}
    mu_ng = true_mean(subset, some_varm)
    np.testing.assert_array_equal(mu_ng, true_mean(simulation.obs, simulation.varm)[cells][:, genes])

    grid_s = simulation.uns["simulation"]["pseudotime_grid"]
    batch_n = subset["batch"].map({"batch_1": 0, "batch_2": 1}).to_numpy().astype(int)
    for column, gene in enumerate(genes):
        rho_n = np.interp(subset["true_pseudotime"], grid_s, simulation.varm["true_rho_branch_2"][gene])
        factor_n = np.exp(simulation.varm["true_batch_log_effect"][gene, batch_n])
        np.testing.assert_allclose(mu_ng[:, column], subset["true_library"] * rho_n * factor_n, rtol=1e-4)


def test_lineages_share_the_trunk_and_differ_after_it():
    simulation = small(n_genes=300)
    first_gs, second_gs = (simulation.varm[f"true_rho_branch_{k}"] for k in (1, 2))
    at_split = round(SPLIT * (GRID_STEPS - 1))
    np.testing.assert_array_equal(first_gs[:, : at_split + 1], second_gs[:, : at_split + 1])
    assert np.abs(np.log(first_gs[:, -1] / second_gs[:, -1])).max() > 0.5
    np.testing.assert_allclose(first_gs.sum(0), 1, rtol=1e-5)
    on_trunk_n = simulation.obs["true_branch"] == "trunk"
    np.testing.assert_array_equal(on_trunk_n, simulation.obs["true_pseudotime"] < SPLIT)


def test_gene_curves_follow_their_pattern():
    simulation = small(n_genes=500)
    log_gs = np.log(simulation.varm["true_rho_branch_1"])
    # The proportion of every gene also changes when other genes change. Constant genes show this common shift.
    constant = (simulation.var["true_pattern"] == "constant").to_numpy()
    shift_s = log_gs[constant].mean(0)
    np.testing.assert_allclose(np.diff(log_gs[constant] - shift_s, axis=1), 0, atol=1e-4)
    change_g = (log_gs - shift_s)[:, -1] - (log_gs - shift_s)[:, 0]
    pattern = simulation.var["true_pattern"]
    assert (change_g[pattern == "rise"] > 0.3).all()
    assert (change_g[pattern == "fall"] < -0.3).all()
    own = (simulation.var["true_branch"] == "branch_1").to_numpy()
    other = (simulation.var["true_branch"] == "branch_2").to_numpy()
    assert (np.abs(change_g[own]) > 0.3).all()
    np.testing.assert_allclose(change_g[other], 0, atol=1e-4)


def test_simulation_of_one_branch_has_one_lineage():
    simulation = small(n_branches=1)
    assert [key for key in simulation.varm if key.startswith("true_rho")] == ["true_rho_branch_1"]
    assert list(simulation.obs["true_branch"].cat.categories) == ["trunk", "branch_1"]
    assert list(simulation.obs["cell_type"].cat.categories) == ["stem", "progenitor", "intermediate_1", "mature_1"]


def test_labels_follow_pseudotime_and_branch():
    obs = small(n_branches=3).obs
    assert obs.index.is_unique
    assert obs["true_pseudotime"].between(0, 1).all()
    ends = obs.groupby("cell_type", observed=True)["true_pseudotime"].agg(["min", "max"])
    assert ends.loc["stem", "max"] < ends.loc["progenitor", "min"] < ends.loc["mature_3", "min"]
    mature = obs[obs["cell_type"] == "mature_2"]
    assert set(mature["true_branch"]) == {"branch_2"}


def test_default_counts_resemble_real_counts():
    counts_ng = counts_of(simulate(SimulationConfig(n_cells=300)))
    assert 0.65 < (counts_ng == 0).mean() < 0.9  # Paul 2015: 0.74, PBMC 4k: 0.90
    assert np.median(counts_ng.sum(1)) == pytest.approx(1500, rel=0.15)
    assert counts_ng.sum(1).min() > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_cells", 0),
        ("n_genes", 9),
        ("n_branches", 0),
        ("n_batches", 0),
        ("depth", 0.0),
        ("depth", float("nan")),
        ("depth", float("inf")),
        ("zero_inflation", -0.1),
        ("zero_inflation", 1.0),
        ("zero_inflation", float("nan")),
        ("batch_sd", float("nan")),
        ("seed", -1),
    ],
)
def test_invalid_values_are_refused(name, value):
    spelled = {declared.name: declared.spelled for declared in declarations(SimulationConfig)}
    with pytest.raises(ConfigError, match=f"{spelled[name]} is") as caught:
        SimulationConfig(**{name: value})
    assert caught.value.hint


# --- file -------------------------------------------------------------------------------------------------------------


def write(path, simulation: Simulation, **changes) -> None:
    frames = {name: getattr(simulation, name) for name in ("obs", "var", "uns", "varm")}
    create_h5ad(path, **({**frames, "blocks": simulation.blocks(150)} | changes))


def test_file_contains_the_counts_and_the_truth(tmp_path):
    simulation = small()
    path = tmp_path / "made.h5ad"
    write(path, simulation, layer_blocks={"true_mean": simulation.true_mean_blocks(130)})
    assert [file.name for file in tmp_path.iterdir()] == ["made.h5ad"]
    adata = ad.read_h5ad(path)
    assert adata.X.format == "csr"
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), counts_of(simulation))
    pd.testing.assert_frame_equal(
        adata.obs, simulation.obs, check_index_type=False, check_column_type=False, check_categorical=False
    )
    pd.testing.assert_frame_equal(
        adata.var, simulation.var, check_index_type=False, check_column_type=False, check_categorical=False
    )
    np.testing.assert_array_equal(adata.layers["true_mean"], true_mean(adata.obs, adata.varm))
    assert json.loads(adata.uns["simulation"]["config"]) == dataclasses.asdict(simulation.config)
    backed = ad.read_h5ad(path, backed="r")
    np.testing.assert_array_equal(backed[100:110].to_memory().X.toarray(), counts_of(simulation)[100:110])
    backed.file.close()


def test_written_files_are_reproducible(tmp_path):
    for name in ("a.h5ad", "b.h5ad"):
        write(tmp_path / name, small())
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("a bug"), DataError("no", "no")])
def test_failed_write_leaves_no_file_and_keeps_the_old_file(tmp_path, failure):
    simulation = small()

    def failing_blocks():
        yield next(simulation.blocks(150))
        raise failure

    with pytest.raises(type(failure)):
        write(tmp_path / "new.h5ad", simulation, blocks=failing_blocks())
    assert list(tmp_path.iterdir()) == []

    old = tmp_path / "old.h5ad"
    old.write_bytes(b"precious")
    with pytest.raises(type(failure)):
        write(old, simulation, blocks=failing_blocks(), force=True)
    assert old.read_bytes() == b"precious"
    assert [file.name for file in tmp_path.iterdir()] == ["old.h5ad"]


def test_blocks_must_cover_every_cell(tmp_path):
    simulation = small()
    with pytest.raises(AssertionError):
        write(tmp_path / "short.h5ad", simulation, blocks=[next(simulation.blocks(150))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size_limit", [1_000, 60_000, 180_000])
def test_full_disk_gives_one_line_and_leaves_no_file(tmp_path, size_limit):
    # The system limits the size of files in a separate process, because HDF5 may crash on failed writes, and because
    # the limit would otherwise hold for the test runner, too.
    script = f"""
import resource, sys
from pathlib import Path
from scvae_cli.data.h5ad_create import create_h5ad
from scvae_cli.data.simulation import simulate
from scvae_cli.options import declarations
from scvae_cli.data.simulation_config import SimulationConfig
from scvae_cli.errors import DataError
made = simulate(SimulationConfig(n_cells=1500, n_genes=100))
resource.setrlimit(resource.RLIMIT_FSIZE, ({size_limit}, resource.RLIM_INFINITY))
try:
    create_h5ad(Path(sys.argv[1]), obs=made.obs, var=made.var, uns=made.uns, varm=made.varm, blocks=made.blocks(100))
except DataError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "new.h5ad")], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "is full" in done.stdout
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_existing_file_requires_force(tmp_path):
    path = tmp_path / "made.h5ad"
    path.write_bytes(b"precious")
    with pytest.raises(DataError, match=r"made\.h5ad") as caught:
        write(path, small())
    assert "--force" in caught.value.hint
    assert path.read_bytes() == b"precious"
    write(path, small(), force=True)
    assert ad.read_h5ad(path).shape == (700, 60)


@pytest.mark.parametrize("name", ["missing/made.h5ad", "made.h5", "made"])
def test_invalid_paths_are_refused(tmp_path, name):
    with pytest.raises(DataError) as caught:
        write(tmp_path / name, small())
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []
