"""Differential expression estimates the sizes of changes correctly, and calls few genes by mistake.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

import functools
import json

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from command_line import run_ok
from matplotlib.figure import Figure
from simulated import TINY, counts_of
from workbench import DATA, USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.errors import DataError
from scvae_cli.latent.posteriors import cell_table
from scvae_cli.model.bundle import Model
from scvae_cli.progress import silent
from scvae_cli.tools.de.cell_blocks import DecodedGenes
from scvae_cli.tools.de.donor_columns import donor_columns
from scvae_cli.tools.de.figure import de_figure
from scvae_cli.tools.de.group_means import group_mean, sample_sums
from scvae_cli.tools.de.result import DifferentialExpression

N_GENES, N_CHANGED = 200, 20
KEY = "rank_genes_groups_scvae"
OPTIONS = ("--groupby", "batch", "--group", "batch_1")


# --- cells ------------------------------------------------------------------------------------------------------------


def simulated(seed: int, *, changed: bool = True, batches: bool = False, n: int = 400) -> ad.AnnData:
    """Simulate groups A and B of one population with a gene program, and a third group; some genes change in A."""
    rng = np.random.default_rng(seed)
    group_n = np.resize(["A", "B", "other", "A", "B"], n)
    rate_ng = np.exp(rng.normal(0, 1, N_GENES) + rng.normal(size=(n, 1)) * rng.normal(0, 0.3, N_GENES))
    rate_ng[group_n == "other"] *= np.exp(rng.normal(0, 0.7, N_GENES))
    rate_ng /= rate_ng.sum(1, keepdims=True)
    change_g = np.zeros(N_GENES)
    if changed:
        change_g[:N_CHANGED] = np.resize([1.5, -1.5], N_CHANGED)
    rate_ng[group_n == "A"] *= 2**change_g
    batch_n = rng.integers(0, 2, n)
    if batches:
        for group, share in (("A", 0.2), ("B", 0.8)):
            batch_n[group_n == group] = rng.random((group_n == group).sum()) < share
        rate_ng *= np.exp(rng.normal(0, 0.7, (2, N_GENES)))[batch_n]
    theta, depth_n1 = 3.0, 1500 * np.exp(rng.normal(0, 0.5, (n, 1)))
    x_ng = rng.poisson(depth_n1 * rate_ng * rng.gamma(theta, 1 / theta, rate_ng.shape))
    adata = ad.AnnData(sp.csr_matrix(x_ng.astype(np.float32)))
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(n)], [f"g{i}" for i in range(N_GENES)]
    adata.obs["group"] = pd.Categorical(group_n)
    adata.obs["batch"] = pd.Categorical([f"batch_{b}" for b in batch_n])
    adata.var["change"] = change_g
    return adata


@functools.cache
def learned(**options: bool) -> tuple[ad.AnnData, Model]:
    """Simulated cells and a model of them; copy the cells before writing into them."""
    adata = simulated(0, **options)
    batch_key = "batch" if options.get("batches") else None
    return adata, scvae.train(adata, **TINY, genes="all", batch_key=batch_key)


def run_de(adata: ad.AnnData, model: Model, group="A", reference="B", **options) -> DifferentialExpression:
    arguments = {"groupby": "group", "group": group, "reference": reference, "inplace": False}
    result = scvae.de(adata, model, **arguments, **options)
    assert result is not None
    return result


def test_simulated_changes_are_found():
    adata, model = learned()
    found = run_de(adata, model)
    change_g = adata.var["change"].to_numpy()
    true_g = change_g != 0
    assert found.called[true_g].mean() >= 0.9
    assert found.called[~true_g].sum() <= 2
    right = found.called & true_g
    assert (np.sign(found.change_g[right]) == np.sign(change_g[right])).all()
    assert np.sqrt(np.mean((found.change_g - change_g)[true_g] ** 2)) < 0.35
    assert (found.low_g <= found.change_g)[right].all()
    assert (found.change_g <= found.high_g)[right].all()
    inside = (found.low_g <= change_g) & (change_g <= found.high_g)
    assert inside.mean() > 0.85
    # Shrunken ratios have a smaller mean squared error than raw ratios.
    assert np.mean((found.change_g - change_g) ** 2) < 0.6 * np.mean((found.raw_g - change_g) ** 2)
    assert found.false_sign_g[right].max() < 0.05
    np.testing.assert_allclose(found.probability_g, -np.expm1(found.log_null_g))
    assert found.expected_fdr_g[found.order[-1]] == pytest.approx(1 - found.probability_g.mean())


def test_no_gene_is_called_if_nothing_differs():
    adata, model = learned(changed=False)
    for seed in range(3):
        split = adata[adata.obs["group"] != "other"].copy()
        split.obs["group"] = np.random.default_rng(seed).permutation(np.resize(["A", "B"], split.n_obs))
        for threshold in (0.25, 0.0):
            found = run_de(split, model, threshold=threshold)
            assert found.called.sum() <= 1
            # The expected false discovery rate is high even for the first genes.
            assert found.expected_fdr_g.min() > 0.01
            assert found.unchanged_share > 0.8


def test_standard_errors_match_the_spread_of_estimates():
    """For unchanged genes, estimates spread as much as their standard errors say, in sparse and in dense genes."""
    adata, model = learned()
    found = run_de(adata, model)
    z_g = (found.estimate_g / found.error_g)[N_CHANGED:]
    assert 0.75 < np.sqrt(np.mean(z_g**2)) < 1.2
    assert np.abs(z_g).max() < 4.5


def test_swapping_the_groups_flips_all_signs():
    adata, model = learned()
    forward, reverse = run_de(adata, model), run_de(adata, model, group="B", reference="A")
    for name in ("estimate_g", "change_g", "raw_g"):
        np.testing.assert_allclose(getattr(forward, name), -getattr(reverse, name), atol=1e-6)
    np.testing.assert_allclose(forward.low_g, -reverse.high_g, atol=1e-4)
    np.testing.assert_allclose(forward.probability_g, reverse.probability_g, atol=1e-6)
    np.testing.assert_allclose(forward.mean_g, reverse.reference_mean_g)
    assert forward.common_change == pytest.approx(-reverse.common_change, abs=1e-6)


def test_unbalanced_batches_cause_no_calls():
    adata, model = learned(changed=False, batches=True)
    found = run_de(adata, model)
    assert found.called.sum() <= 1
    assert found.n_left_out == 0
    # Without the batches, many genes would have been called.
    raw_g = [np.asarray(adata[adata.obs["group"] == g].X.mean(0)).ravel() for g in "AB"]
    assert (np.abs(np.log2(raw_g[0] / raw_g[1])) > 0.4).mean() > 0.2
    assert (np.abs(found.raw_g) > 0.4).mean() < 0.1


def test_batch_with_only_one_group_is_left_out():
    adata, model = learned(changed=False, batches=True)
    some = adata[~((adata.obs["group"] == "A") & (adata.obs["batch"] == "batch_1"))].copy()
    found = run_de(some, model)
    assert found.n_left_out == ((some.obs["group"] == "B") & (some.obs["batch"] == "batch_1")).sum()
    some = some[~((some.obs["group"] == "B") & (some.obs["batch"] == "batch_0"))].copy()
    with pytest.raises(DataError, match="no batch has at least two cells each of 'A' and 'B'"):
        run_de(some, model)


def test_a_few_increasing_genes_do_not_change_the_other_genes():
    """If some genes take up a third of a group's counts, the shares of all other genes fall, but not their changes."""
    adata, model = learned()
    cells = adata.copy()
    x_ng, in_a = cells.X.toarray(), (cells.obs["group"] == "A").to_numpy()
    rng = np.random.default_rng(0)
    # The library size stays the same, so counts of other genes are lost.
    x_ng[in_a] = rng.binomial(x_ng[in_a].astype(int), 2 / 3)
    x_ng[in_a, :5] += rng.poisson(x_ng[in_a].sum(1, keepdims=True) / 10, (in_a.sum(), 5))
    cells.X = sp.csr_matrix(x_ng.astype(np.float32))
    found = run_de(cells, model)
    share = x_ng[in_a][:, 5:].sum() / x_ng[in_a].sum()
    assert found.common_change == pytest.approx(np.log2(share), abs=0.15)
    assert found.called[N_CHANGED:].mean() < 0.05
    assert found.centre == "bulk"
    shares = run_de(cells, model, centre="none")
    assert shares.called[N_CHANGED:].mean() > 0.3
    assert shares.common_change == found.common_change


def test_without_a_common_change_nothing_is_subtracted():
    adata, model = learned()
    cells = adata.copy()
    x_ng, in_a = cells.X.toarray().astype(int), (cells.obs["group"] == "A").to_numpy()
    rng = np.random.default_rng(0)
    x_ng[in_a] = rng.poisson(x_ng[in_a] * 2 ** rng.normal(0.5, 2, N_GENES))
    cells.X = sp.csr_matrix(x_ng.astype(np.float32))
    found = run_de(cells, model)
    assert found.near_common_share < 0.5
    assert found.centre == "none"
    same = run_de(cells, model, centre="none")
    np.testing.assert_array_equal(found.change_g, same.change_g)
    assert run_de(cells, model, centre="bulk").centre == "bulk"


def test_group_mean_of_many_counts_equals_the_mean_of_the_counts():
    """The mean of a gene with many counts equals the mean of count/library size, whatever the decoder predicts."""
    adata, model = learned()
    counts = counts_of(adata)
    rows = np.flatnonzero(adata.obs["group"] == "A")
    table = cell_table(model, counts)
    source = DecodedGenes(model, table, counts.library_n, n_samples=2, seed=0)
    with silent("", None) as advance:
        found = group_mean([sample_sums(source, rows, advance)], np.ones(1))
    x_ng = counts.matrix[rows].toarray().astype(float)
    raw_g = (x_ng / x_ng.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found.raw_g, raw_g)
    dense = x_ng.sum(0) > 200
    error_g = np.sqrt(found.variance_g)
    assert np.abs((found.log_mean_g - np.log(raw_g))[dense] / error_g[dense]).max() < 3
    # The error is never less than the error of the same number of Poisson counts.
    assert (error_g > 0.98 / np.sqrt(found.n_counts_g + 1.5)).all()


def test_gene_without_counts_in_a_group_has_a_wide_interval():
    adata, model = learned()
    cells = adata.copy()
    x_ng = cells.X.toarray()
    x_ng[:, 30] = 0
    x_ng[np.flatnonzero(cells.obs["group"] == "A")[:3], 30] = 1
    x_ng[:, 31] = 0
    cells.X = sp.csr_matrix(x_ng)
    found = run_de(cells, model)
    assert found.error_g[30] > 1
    assert not found.called[30]
    assert not found.tested[31]
    assert np.isnan(found.probability_g[31])
    assert not found.called[31]
    assert found.raw_g[30] == np.inf


def test_normal_likelihood_is_refused():
    adata = simulated(0, n=60)
    adata.X = adata.X.log1p()
    model = scvae.train(adata, **TINY | {"max_epochs": 1}, genes="all", likelihood="normal")
    with pytest.raises(scvae.ConfigError, match="real numbers"):
        run_de(adata, model)


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_changes_are_found_with_other_count_likelihoods(likelihood):
    adata = simulated(0, n=200)
    model = scvae.train(adata, **TINY | {"max_epochs": 4}, genes="all", likelihood=likelihood)
    found = run_de(adata, model)
    assert found.called[:N_CHANGED].mean() > 0.5
    assert found.called[N_CHANGED:].mean() < 0.03


# --- files, scanpy, command line --------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    """Cells with two genes that the model lacks, and the folder of the model."""
    adata, model = learned()
    rng = np.random.default_rng(0)
    # The first new gene is three times as frequent in group A, and the second one has no counts.
    rate_n1 = np.where(adata.obs["group"] == "A", 15.0, 5.0)[:, None]
    new_n2 = np.hstack([rng.poisson(rate_n1), np.zeros_like(rate_n1)])
    more = ad.AnnData(sp.hstack([adata.X, sp.csr_matrix(new_n2)], format="csr"), obs=adata.obs)
    more.var_names = [*adata.var_names, "new_0", "new_1"]
    more.var["symbol"] = [f"s{i}" for i in range(N_GENES)] + ["NEW0", "NEW1"]
    more.write_h5ad(tmp_path / "cells.h5ad")
    model.save(tmp_path / "cells.scvae")
    return tmp_path / "cells.h5ad"


def test_scanpy_reads_and_plots_the_result(written):
    matplotlib.use("Agg")
    command = ["de", written, "--groupby", "group", "--group", "A"]
    run_ok(*command, "--reference", "B")
    run_ok(*command, "--key-added", "other")
    adata = ad.read_h5ad(written)
    assert {KEY, "rank_genes_groups_other"} <= set(adata.uns)
    frame = sc.get.rank_genes_groups_df(adata, group="A", key=KEY)
    assert set(frame["names"]) == set(adata.var_names)
    assert frame["pvals"].isna().all()
    assert frame["scores"].is_monotonic_decreasing
    found = scvae.de(
        adata, written.with_suffix(".scvae"), groupby="group", group="A", reference="B", inplace=False
    )  # fmt: skip
    rows = frame.set_index("names").loc[list(found.genes)]
    np.testing.assert_allclose(rows["logfoldchanges"], found.change_g, atol=1e-12)
    np.testing.assert_allclose(rows["pvals_adj"], found.expected_fdr_g)
    called = sc.get.rank_genes_groups_df(adata, group="A", key=KEY, pval_cutoff=found.options.fdr)
    assert set(called["names"]) == set(np.asarray(found.genes)[found.called])
    assert np.isnan(rows.loc["new_1", "logfoldchanges"])
    stored = adata.uns[KEY]
    assert stored["probability"].dtype.names == ("A",)
    assert dict(zip(stored["names"]["A"], stored["source"]["A"], strict=True)) == {
        gene: "modeled" if gene in learned()[1].genes else "counts" for gene in adata.var_names
    }
    first = frame["names"].iloc[0]
    assert stored["probability"]["A"][0] == found.probability_g[found.genes.index(first)]
    assert stored["params"]["reference"] == "B"
    assert adata.uns["rank_genes_groups_other"]["params"]["reference"] == "rest"
    sc.pl.rank_genes_groups(adata, key=KEY, show=False)
    sc.pl.rank_genes_groups_dotplot(adata, key=KEY, n_genes=4, show=False)
    matplotlib.pyplot.close("all")


def test_results_of_several_contrasts_can_be_stored(written):
    command = ["de", written, "--groupby", "group", "--group", "A"]
    run_ok(*command, "--reference", "B")
    run_ok(*command, "--reference", "B", "--threshold", "0.5")  # replaces the result of the same contrast
    other = [*command, "--reference", "other"]
    assert "--name" in assert_refused(written.parent, other, DATA, "holds another result, of 'de'")
    run_ok(*other, "--name", "A vs other")
    adata = ad.read_h5ad(written)
    assert adata.uns[KEY]["params"]["reference"] == "B"
    assert adata.uns[KEY]["params"]["threshold"] == 0.5
    assert adata.uns[f"{KEY}_A_vs_other"]["params"]["reference"] == "other"
    assert set(adata.uns["scvae"]["runs"]) == {"de", "de_A_vs_other"}
    # In memory, another contrast is refused, too, unless `force` is True.
    model = written.with_suffix(".scvae")
    with pytest.raises(DataError, match="holds another result"):
        scvae.de(adata, model, groupby="group", group="other")
    scvae.de(adata, model, groupby="group", group="other", force=True)
    assert adata.uns[KEY]["params"]["reference"] == "rest"


def test_table_json_and_figure_agree(written):
    table, plot = written.with_name("table.csv"), written.with_name("plot.png")
    command = ["de", written, "--groupby", "group", "--group", "A", "--reference", "B"]
    values = json.loads(run_ok(*command, "--table", table, "--plot", plot, "--json").out)
    frame = pd.read_csv(table)
    assert list(frame["gene"][:5]) == [row["gene"] for row in values["genes"][:5]]
    assert frame["called"].sum() == values["called"] == values["up"] + values["down"]
    assert values["n_tested"] == N_GENES + 1
    assert values["n_counted"] == 1
    assert values["n_genes"] == N_GENES + 2
    assert (values["n_group"], values["n_reference"]) == (160, 160)
    called = frame[frame["called"]]
    assert called.index.max() == len(called) - 1, "the called genes come first"
    assert called["bound"].is_monotonic_decreasing
    np.testing.assert_allclose(called["bound"], np.maximum(called["low"], -called["high"]).clip(0))
    assert (1 - called["probability"]).mean() <= values["fdr"]
    assert plot.stat().st_size > 10_000
    text = run_ok(*command, "--table", table, "--force", "--sort", "probability", "--gene-symbols", "symbol").out
    assert pd.read_csv(table)["expected_fdr"].dropna().is_monotonic_increasing
    assert f"{values['called']} of {N_GENES + 1} genes" in text
    assert "tested by their counts alone: 1 gene that" in text
    assert "not tested: 1 gene " in text
    assert "NEW0" in text
    run_ok(*command, "--table", table, "--force", "--sort", "change")
    changes = pd.read_csv(table).query("called")["change"].abs()
    assert changes.is_monotonic_decreasing


def test_no_called_gene_is_reported_in_one_line(written):
    command = ["de", written, "--groupby", "batch", "--group", "batch_1"]
    text = run_ok(*command).out
    assert "no gene is called; the most certain is " in text
    assert "90% interval  P(changed)" not in text
    assert len(json.loads(run_ok(*command, "--json").out)["genes"]) == 20


# --- genes that the model lacks ---------------------------------------------------------------------------------------


def test_genes_that_the_model_lacks_are_tested_accurately():
    """Changes and errors are as accurate for genes that the model lacks as for modeled genes."""
    adata = simulated(0)
    model = scvae.train(adata[:, ::2].copy(), **TINY, genes="all")
    found = run_de(adata, model)
    assert list(found.genes) == [*adata.var_names[::2], *adata.var_names[1::2]]
    change_g = adata.var["change"].loc[list(found.genes)].to_numpy()
    counted = found.source_g == "counts"
    assert counted.sum() == N_GENES / 2
    for kind in (counted, ~counted):
        assert found.called[kind & (change_g != 0)].mean() >= 0.8
        assert found.called[kind & (change_g == 0)].sum() <= 2
        z_g = (found.estimate_g / found.error_g)[kind & (change_g == 0)]
        assert 0.75 < np.sqrt(np.mean(z_g**2)) < 1.25
    # Means of both kinds of genes refer to library sizes over all genes of the data.
    library = np.asarray(adata.X.sum(1)).ravel()
    expected_g = np.asarray(adata[adata.obs["group"] == "A"].X.mean(0)).ravel() / library.mean()
    ratio_g = found.mean_g / pd.Series(expected_g, adata.var_names).loc[list(found.genes)].to_numpy()
    assert ratio_g[counted].mean() == pytest.approx(ratio_g[~counted].mean(), rel=0.05)


def test_batches_are_adjusted_for_in_genes_that_the_model_lacks():
    adata = simulated(0, changed=False, batches=True)
    model = scvae.train(adata[:, ::2].copy(), **TINY, genes="all", batch_key="batch")
    assert run_de(adata, model).called.sum() <= 2


# --- replicates -------------------------------------------------------------------------------------------------------


def donors(*, paired: bool, n: int = 5, sd: float = 0.5, seed: int = 0, changed: bool = True) -> ad.AnnData:
    """Groups A and B with several donors each; every gene differs between donors by random factors."""
    rng = np.random.default_rng(seed)
    change_g = np.zeros(N_GENES)
    if changed:
        change_g[:N_CHANGED] = np.resize([2.0, -2.0], N_CHANGED)
    base_g = np.exp(rng.normal(0, 1, N_GENES))
    blocks, obs = [], []
    for group in "AB":
        for d in range(n):
            donor = f"d{d}" if paired else f"{group}{d}"
            own_g = np.random.default_rng([seed, d, 0 if paired else ord(group)]).normal(0, sd, N_GENES)
            rate_g = base_g * np.exp(own_g + rng.normal(0, 0.1, N_GENES)) * 2 ** (change_g * (group == "A"))
            n_cells = int(rng.integers(15, 60))
            blocks.append(rng.poisson(2000 * rate_g / base_g.sum() * rng.gamma(3, 1 / 3, (n_cells, N_GENES))))
            obs += [(group, donor)] * n_cells
    adata = ad.AnnData(sp.csr_matrix(np.vstack(blocks).astype(np.float32)))
    adata.obs_names, adata.var_names = [f"c{i}" for i in range(adata.n_obs)], [f"g{i}" for i in range(N_GENES)]
    adata.obs["group"], adata.obs["donor"] = (pd.Categorical(values) for values in zip(*obs, strict=True))
    adata.var["change"] = change_g
    return adata


@functools.cache
def learned_donors(*, paired: bool) -> tuple[ad.AnnData, Model]:
    """Cells of donors, and a model of half of their genes."""
    adata = donors(paired=paired)
    return adata, scvae.train(adata[:, ::2].copy(), **TINY | {"max_epochs": 4}, genes="all")


@pytest.mark.parametrize("paired", [True, False])
def test_differences_between_donors_are_not_called(paired):
    adata, model = learned_donors(paired=paired)
    found = run_de(adata, model, replicate_key="donor")
    assert found.replicates.paired == paired
    assert (found.replicates.n_group, found.replicates.n_reference) == (5, 5)
    true_g = adata.var["change"].loc[list(found.genes)].to_numpy() != 0
    assert found.called[~true_g].sum() <= 1
    assert found.called[true_g].mean() > (0.8 if paired else 0.3)
    z_g = ((found.estimate_g - found.common_change) / found.error_g)[~true_g]
    assert 0.8 < np.sqrt(np.mean(z_g**2)) < 1.25
    # In natural logs, donors differ by 0.5, and their changes by 0.1 · √2.
    assert found.replicates.spread == pytest.approx((0.14 if paired else 0.51) / np.log(2), abs=0.12)
    if not paired:
        with pytest.warns(scvae.ScvaeWarning, match=r"obs\['donor'\] looks like replicates"):
            cells = run_de(adata, model)
        assert cells.called[~true_g].mean() > 0.3, "cells are not independent"


def test_unpaired_donors_are_left_out():
    adata, model = learned_donors(paired=True)
    some = adata[~((adata.obs["donor"] == "d4") & (adata.obs["group"] == "A"))].copy()
    with pytest.warns(scvae.ScvaeWarning, match=r"left out: 1 replicate of obs\['donor'\]"):
        found = run_de(some, model, replicate_key="donor")
    assert found.replicates.left_out == ("d4",)
    assert found.n_left_out == (some.obs["donor"] == "d4").sum()


def test_replicates_of_one_cell_and_cells_without_replicate():
    """A replicate may consist of a single cell; cells without a replicate are left out."""
    adata, model = learned_donors(paired=False)
    some = adata.copy()
    first = np.flatnonzero(some.obs["donor"] == "A0")
    some = some[np.setdiff1d(np.arange(some.n_obs), first[1:])].copy()
    some.obs["donor"] = some.obs["donor"].astype(object)
    missing = np.flatnonzero(some.obs["donor"] == "B1")[:7]
    some.obs.iloc[missing, list(some.obs.columns).index("donor")] = None
    options = {"groupby": "group", "group": "A", "reference": "B", "replicate_key": "donor"}
    with pytest.warns(scvae.ScvaeWarning, match="left out: 7 cells without a value in obs\\['donor'\\]"):
        found = scvae.de(some, model, **options, inplace=False)
    assert found.replicates.n_group == 5
    assert np.isfinite(found.error_g[found.tested]).all()
    true_g = some.var["change"].loc[list(found.genes)].to_numpy() != 0
    assert found.called[~true_g].sum() <= 1
    one_cell_each = some.copy()
    one_cell_each.obs["donor"] = [f"cell{i}" for i in range(one_cell_each.n_obs)]
    found = scvae.de(one_cell_each, model, **options, inplace=False)
    assert found.replicates.n_group == found.n_group
    assert found.called[true_g].mean() > 0.5


def test_subsampling_keeps_cells_of_small_replicates():
    adata, model = learned_donors(paired=False)
    found = run_de(adata, model, replicate_key="donor", max_cells=60)
    assert found.n_group == found.n_reference == 60
    sizes = adata.obs["donor"].to_numpy()[found.contrast.group_cells]
    assert min(np.unique(sizes, return_counts=True)[1]) >= 10


def test_two_replicates_give_a_warning_and_one_is_refused():
    adata, model = learned_donors(paired=False)
    options = {"groupby": "group", "group": "A", "reference": "B", "replicate_key": "donor"}
    two = adata[adata.obs["donor"].isin(["A0", "A1", "B0", "B1"])].copy()
    with pytest.warns(scvae.ScvaeWarning, match="only 2 replicates"):
        scvae.de(two, model, **options)
    one = adata[adata.obs["donor"].isin(["A0", "B0", "B1"])].copy()
    with pytest.raises(DataError, match=r"'A' of obs\['group'\] has 1 replicate in obs\['donor'\] \('A0'\)"):
        scvae.de(one, model, **options)
    with pytest.raises(DataError, match=r"1 replicate in obs\['group'\]"):
        scvae.de(adata, model, **options | {"replicate_key": "group"})
    with pytest.raises(DataError, match="no column 'patient'"):
        scvae.de(adata, model, **options | {"replicate_key": "patient"})


def test_column_of_donors_is_suggested_as_replicates():
    adata, model = learned_donors(paired=False)
    options = {"groupby": "group", "group": "A", "reference": "B"}
    with pytest.warns(scvae.ScvaeWarning, match=r"obs\['donor'\] looks like replicates.*replicate_key|--replicate-key"):
        scvae.de(adata.copy(), model, **options)
    assert donor_columns(["Patient_ID", "patient_age", "sample", "mouse", "n_samples_x"]) == [
        "Patient_ID", "mouse", "sample",
    ]  # fmt: skip


def test_batches_are_covariates_if_each_replicate_is_in_one_batch():
    adata = donors(paired=False, n=6, sd=0.1, changed=False)
    late = adata.obs["donor"].isin(["A0", "A1", "B0", "B1", "B2", "B3"]).to_numpy()
    adata.obs["batch"] = pd.Categorical(np.where(late, "late", "early"))
    x_ng, rng = adata.X.toarray(), np.random.default_rng(1)
    x_ng[late] = rng.poisson(x_ng[late] * np.exp(rng.normal(0, 1.0, N_GENES)))
    adata.X = sp.csr_matrix(x_ng.astype(np.float32))
    model = scvae.train(adata[:, ::2].copy(), **TINY | {"max_epochs": 2}, genes="all", batch_key="batch")
    found = run_de(adata, model, replicate_key="donor")
    assert found.replicates.batches
    assert found.called.sum() <= 1
    assert found.replicates.spread < 0.5


@pytest.mark.parametrize(
    ("dtype", "group"),
    [
        ("float", 1),
        ("int", 1),
        ("bool", True),
        ("Int64", 1),
        ("boolean", True),
        ("category of int", 1),
        ("category of float", 1),
        ("category of bool", True),
    ],
)
def test_warning_contains_code_that_makes_categories_for_scanpy_plots(dtype, group):
    adata, model = learned()
    cells = adata.copy()
    column = (cells.obs["group"] == "A").astype(dtype.removeprefix("category of "))
    cells.obs["cluster"] = column.astype("category") if dtype.startswith("category") else column
    with pytest.warns(scvae.ScvaeWarning, match="scanpy's plots need categories") as warned:
        scvae.de(cells, model, groupby="cluster", group=group)
    code = next(str(w.message) for w in warned if "categories" in str(w.message)).split(": ", 1)[1]
    exec(code, {"adata": cells})
    matplotlib.use("Agg")
    sc.pl.rank_genes_groups_dotplot(cells, key=KEY, n_genes=4, show=False)
    sc.pl.rank_genes_groups_violin(cells, key=KEY, n_genes=2, show=False)
    matplotlib.pyplot.close("all")


def test_within_restricts_the_compared_cells(written):
    command = ["de", written, "--groupby", "group", "--group", "A", "--within", "batch=batch_1", "--cells", "50"]
    values = json.loads(run_ok(*command, "--json").out)
    adata = ad.read_h5ad(written)
    inside = adata.obs["batch"] == "batch_1"
    assert values["n_group"] == min(50, int((inside & (adata.obs["group"] == "A")).sum()))
    assert values["n_reference"] == 50
    assert values["within"] == {"batch": "batch_1"}


def test_labels_of_groups_may_be_numbers():
    """If the reference is 0, cells are compared with the group labeled 0, and not with all other cells."""
    adata, model = learned()
    cells = adata.copy()
    cells.obs["cluster"] = (cells.obs["group"] == "A").astype(int)
    cells.obs["kind"] = cells.obs["batch"] == "batch_1"
    options = {"groupby": "cluster", "group": 1, "reference": 0, "within": {"kind": True}, "max_cells": 30}
    found = scvae.de(cells, model, **options, inplace=False)
    assert (found.contrast.group, found.contrast.reference) == ("1", "0")
    assert cells.obs["kind"].to_numpy()[found.contrast.reference_cells].all()
    with pytest.warns(scvae.ScvaeWarning, match="scanpy's plots need categories"):
        scvae.de(cells, model, **options)
    recorded = json.loads(cells.uns["scvae"]["runs"]["de"])["options"]
    assert {name: recorded[name] for name in ("group", "reference", "within")} == {
        "group": "1",
        "reference": "0",
        "within": {"kind": "True"},
    }
    assert cells.uns[KEY]["params"]["reference"] == "0"


def test_invalid_options_are_refused_before_a_file_is_opened():
    for options, message in (
        ({"reference": "A"}, "compared with itself"),
        ({"threshold": -1}, "threshold is -1"),
        ({"max_cells": 2}, "max_cells is 2"),
        ({"within": {"donor": ["a", "b"]}}, "within is"),
    ):
        with pytest.raises(scvae.ConfigError, match=message):
            scvae.de("nowhere.h5ad", "nowhere.scvae", **{"groupby": "group", "group": "A"} | options)


def test_figure_shows_the_result():
    found = run_de(*learned())
    figure = de_figure(found)
    assert isinstance(figure, Figure)
    volcano, intervals, calls = figure.axes
    dots = np.concatenate([part.get_offsets() for part in volcano.collections])
    assert len(dots) == N_GENES
    assert intervals.get_yticklabels()[0].get_text() == found.genes[found.ranked[0]]
    np.testing.assert_allclose(calls.lines[0].get_ydata(), found.expected_fdr_g[found.order])
    de_figure(run_de(*learned(changed=False), threshold=0.0))


@pytest.mark.parametrize(
    ("code", "fragment", "options"),
    [
        (DATA, "no cells with obs['cell_type'] == 'nobody'", ["--groupby", "cell_type", "--group", "nobody"]),
        (
            DATA,
            "no cells with obs['cell_type'] == 'nobody'",
            ["--groupby", "cell_type", "--group", "stem", "--reference", "nobody"],
        ),
        (DATA, "no column 'kind'", ["--groupby", "kind", "--group", "stem"]),
        (USAGE, "compared with itself", [*OPTIONS, "--reference", "batch_1"]),
        (USAGE, "--threshold is -0.5", [*OPTIONS, "--threshold", "-0.5"]),
        (USAGE, "--threshold is nan", [*OPTIONS, "--threshold", "nan"]),
        (USAGE, "--fdr is 1.5", [*OPTIONS, "--fdr", "1.5"]),
        (USAGE, "--centre is 'mean'", [*OPTIONS, "--centre", "mean"]),
        (USAGE, "--sort is 'size'", [*OPTIONS, "--sort", "size"]),
        (DATA, "no column 'kind'", [*OPTIONS, "--replicate-key", "kind"]),
        (DATA, "has 1 replicate in obs['batch']", [*OPTIONS, "--replicate-key", "batch"]),
        (USAGE, "--cells is 2", [*OPTIONS, "--cells", "2"]),
        (USAGE, "--samples is 0", [*OPTIONS, "--samples", "0"]),
        (USAGE, "--seed is -1", [*OPTIONS, "--seed", "-1"]),
        (USAGE, "--within is 'stem'", [*OPTIONS, "--within", "stem"]),
        (USAGE, "given twice for 'a'", [*OPTIONS, "--within", "a=1", "--within", "a=2"]),
        (USAGE, "--group is missing", ["--groupby", "batch"]),
        (DATA, "no column 'kind'", [*OPTIONS, "--within", "kind=stem"]),
        (DATA, "has 0 cells to compare", [*OPTIONS, "--within", "batch=batch_2"]),
        (USAGE, "does not end in .csv", [*OPTIONS, "--table", "genes.txt"]),
        (USAGE, "does not have the extension of a figure", [*OPTIONS, "--plot", "genes.doc"]),
        (DATA, "is not a folder", [*OPTIONS, "--table", "none/genes.csv"]),
    ],
)
def test_invalid_comparisons_are_refused(bench, code, fragment, options):
    assert_refused(bench.folder, bench.args("de", *options), code, fragment)


def test_groups_that_are_too_small_or_contain_all_cells_are_refused(bench):
    def add_columns(adata: ad.AnnData) -> None:
        adata.obs["few"] = ["two"] * 2 + ["more"] * (adata.n_obs - 2)
        adata.obs["one"] = "all"

    bench.change(add_columns)
    assert_refused(
        bench.folder, bench.args("de", "--groupby", "few", "--group", "two"), DATA, "'two' of obs['few'] has 2"
    )
    assert_refused(
        bench.folder, bench.args("de", "--groupby", "few", "--group", "more"), DATA, "'rest' of obs['few'] has 2"
    )
    assert_refused(
        bench.folder, bench.args("de", "--groupby", "one", "--group", "all"), DATA, "all cells have obs['one']"
    )


def test_comparison_of_batches_is_refused(bench_with_batches):
    command = bench_with_batches.args("de", "--groupby", "batch", "--group", "batch_1", "--reference", "batch_2")
    hint = assert_refused(bench_with_batches.folder, command, DATA, "no batch has at least two cells each of")
    assert "--batch-key" in hint


def test_results_of_other_programs_are_overwritten_only_with_force(bench):
    def add_result(adata: ad.AnnData) -> None:
        adata.uns[KEY] = {"mine": 1}

    bench.change(add_result)
    command = bench.args("de", "--groupby", "batch", "--group", "batch_1")
    assert "--force" in assert_refused(bench.folder, command, DATA, "was not written by scvae")
    run_ok(*command, "--force")
