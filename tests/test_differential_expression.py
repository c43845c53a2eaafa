"""Differential expression: sizes of changes, and few false calls.

Shapes: n cells, g genes.
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
from command_line import run_well
from matplotlib.figure import Figure
from simulated import TINY, counts_of
from workbench import DATA, USAGE, refused

import scvae_cli as scvae
from scvae_cli.errors import DataError
from scvae_cli.latent.posteriors import cell_table
from scvae_cli.model.bundle import Model
from scvae_cli.progress import silent
from scvae_cli.tools.de.figure import de_figure
from scvae_cli.tools.de.group_means import group_mean
from scvae_cli.tools.de.result import DifferentialExpression

N_GENES, N_CHANGED = 200, 20
KEY = "rank_genes_groups_scvae"
ASKED = ("--groupby", "batch", "--group", "batch_1")


# --- cells ------------------------------------------------------------------------------------------------------------


def simulated(seed: int, *, changed: bool = True, batches: bool = False, n: int = 400) -> ad.AnnData:
    """Two groups of a population with a gene program, the first of which has changed genes, and a third group."""
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


def compared(adata: ad.AnnData, model: Model, group="A", reference="B", **options) -> DifferentialExpression:
    asked = {"groupby": "group", "group": group, "reference": reference, "inplace": False}
    result = scvae.de(adata, model, **asked, **options)
    assert result is not None
    return result


def test_planted_changes_are_found():
    adata, model = learned()
    found = compared(adata, model)
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
    # Shrinkage lowers the mean squared error below that of the raw ratio.
    assert np.mean((found.change_g - change_g) ** 2) < 0.6 * np.mean((found.raw_g - change_g) ** 2)
    assert found.false_sign_g[right].max() < 0.05
    np.testing.assert_allclose(found.probability_g, -np.expm1(found.log_null_g))
    assert found.expected_fdr_g[found.order[-1]] == pytest.approx(1 - found.probability_g.mean())


def test_nothing_is_called_where_nothing_differs():
    adata, model = learned(changed=False)
    for seed in range(3):
        split = adata[adata.obs["group"] != "other"].copy()
        split.obs["group"] = np.random.default_rng(seed).permutation(np.resize(["A", "B"], split.n_obs))
        for threshold in (0.25, 0.0):
            found = compared(split, model, threshold=threshold)
            assert found.called.sum() <= 1
            # The expected false discovery rate is high even for the first genes.
            assert found.expected_fdr_g.min() > 0.01
            assert found.unchanged_share > 0.8


def test_errors_are_those_of_the_estimate():
    """The spread of estimates of unchanged genes equals their errors, in sparse and in dense genes."""
    adata, model = learned()
    found = compared(adata, model)
    z_g = (found.estimate_g / found.error_g)[N_CHANGED:]
    assert 0.75 < np.sqrt(np.mean(z_g**2)) < 1.2
    assert np.abs(z_g).max() < 4.5


def test_swapping_the_groups_flips_all_signs():
    adata, model = learned()
    one, other = compared(adata, model), compared(adata, model, group="B", reference="A")
    for name in ("estimate_g", "change_g", "raw_g"):
        np.testing.assert_allclose(getattr(one, name), -getattr(other, name), atol=1e-6)
    np.testing.assert_allclose(one.low_g, -other.high_g, atol=1e-4)
    np.testing.assert_allclose(one.probability_g, other.probability_g, atol=1e-6)
    np.testing.assert_allclose(one.mean_g, other.reference_mean_g)
    assert one.common_change == pytest.approx(-other.common_change, abs=1e-6)


def test_unevenly_shared_batches_cause_no_calls():
    adata, model = learned(changed=False, batches=True)
    found = compared(adata, model)
    assert found.called.sum() <= 1
    assert found.n_left_out == 0
    # Ignoring the batches would have caused many.
    raw_g = [np.asarray(adata[adata.obs["group"] == g].X.mean(0)).ravel() for g in "AB"]
    assert (np.abs(np.log2(raw_g[0] / raw_g[1])) > 0.4).mean() > 0.2
    assert (np.abs(found.raw_g) > 0.4).mean() < 0.1


def test_a_batch_with_one_group_is_left_out():
    adata, model = learned(changed=False, batches=True)
    some = adata[~((adata.obs["group"] == "A") & (adata.obs["batch"] == "batch_1"))].copy()
    found = compared(some, model)
    assert found.n_left_out == ((some.obs["group"] == "B") & (some.obs["batch"] == "batch_1")).sum()
    some = some[~((some.obs["group"] == "B") & (some.obs["batch"] == "batch_0"))].copy()
    with pytest.raises(DataError, match="no batch has at least two cells each of 'A' and 'B'"):
        compared(some, model)


def test_a_few_rising_genes_do_not_make_the_others_fall():
    """Genes that take up a third of one group's counts lower all other shares; changes are relative to the others."""
    adata, model = learned()
    cells = adata.copy()
    x_ng, in_a = cells.X.toarray(), (cells.obs["group"] == "A").to_numpy()
    rng = np.random.default_rng(0)
    # The library size stays the same, so counts of other genes are lost.
    x_ng[in_a] = rng.binomial(x_ng[in_a].astype(int), 2 / 3)
    x_ng[in_a, :5] += rng.poisson(x_ng[in_a].sum(1, keepdims=True) / 10, (in_a.sum(), 5))
    cells.X = sp.csr_matrix(x_ng.astype(np.float32))
    found = compared(cells, model)
    share = x_ng[in_a][:, 5:].sum() / x_ng[in_a].sum()
    assert found.common_change == pytest.approx(np.log2(share), abs=0.15)
    assert found.called[N_CHANGED:].mean() < 0.05
    assert found.centre == "bulk"
    shares = compared(cells, model, centre="none")
    assert shares.called[N_CHANGED:].mean() > 0.3
    assert shares.common_change == found.common_change


def test_without_a_common_change_nothing_is_subtracted():
    adata, model = learned()
    cells = adata.copy()
    x_ng, in_a = cells.X.toarray().astype(int), (cells.obs["group"] == "A").to_numpy()
    rng = np.random.default_rng(0)
    x_ng[in_a] = rng.poisson(x_ng[in_a] * 2 ** rng.normal(0.5, 2, N_GENES))
    cells.X = sp.csr_matrix(x_ng.astype(np.float32))
    found = compared(cells, model)
    assert found.near_common_share < 0.5
    assert found.centre == "none"
    same = compared(cells, model, centre="none")
    np.testing.assert_array_equal(found.change_g, same.change_g)
    assert compared(cells, model, centre="bulk").centre == "bulk"


def test_the_group_mean_of_many_counts_is_that_of_the_counts():
    """With many counts, the mean of a gene is that of counts over library size, whatever the decoder predicts."""
    adata, model = learned()
    counts = counts_of(adata)
    rows = np.flatnonzero(adata.obs["group"] == "A")
    table = cell_table(model, counts)
    with silent("", None) as advance:
        found = group_mean(model, table, [rows], np.ones(1), n_samples=2, seed=0, advance=advance)
    x_ng = counts.matrix[rows].toarray().astype(float)
    raw_g = (x_ng / x_ng.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(found.raw_g, raw_g)
    dense = x_ng.sum(0) > 200
    error_g = np.sqrt(found.variance_g)
    assert np.abs((found.log_mean_g - np.log(raw_g))[dense] / error_g[dense]).max() < 3
    # The error is never less than that of as many Poisson counts.
    assert (error_g > 0.98 / np.sqrt(found.n_counts_g + 1.5)).all()


def test_a_gene_without_counts_in_a_group_has_a_wide_interval():
    adata, model = learned()
    cells = adata.copy()
    x_ng = cells.X.toarray()
    x_ng[:, 30] = 0
    x_ng[np.flatnonzero(cells.obs["group"] == "A")[:3], 30] = 1
    x_ng[:, 31] = 0
    cells.X = sp.csr_matrix(x_ng)
    found = compared(cells, model)
    assert found.error_g[30] > 1
    assert not found.called[30]
    assert not found.tested[31]
    assert np.isnan(found.probability_g[31])
    assert not found.called[31]
    assert found.raw_g[30] == np.inf


def test_real_numbers_are_refused():
    adata = simulated(0, n=60)
    adata.X = adata.X.log1p()
    model = scvae.train(adata, **TINY | {"max_epochs": 1}, genes="all", likelihood="normal")
    with pytest.raises(scvae.ConfigError, match="real numbers"):
        compared(adata, model)


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_other_likelihoods_of_counts(likelihood):
    adata = simulated(0, n=200)
    model = scvae.train(adata, **TINY | {"max_epochs": 4}, genes="all", likelihood=likelihood)
    found = compared(adata, model)
    assert found.called[:N_CHANGED].mean() > 0.5
    assert found.called[N_CHANGED:].mean() < 0.03


# --- files, scanpy, command line --------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    """Cells with two genes that the model does not know, and its folder."""
    adata, model = learned()
    more = ad.AnnData(sp.hstack([adata.X, sp.csr_matrix(np.ones((adata.n_obs, 2)))], format="csr"), obs=adata.obs)
    more.var_names = [*adata.var_names, "new_0", "new_1"]
    more.write_h5ad(tmp_path / "cells.h5ad")
    model.save(tmp_path / "cells.scvae")
    return tmp_path / "cells.h5ad"


def test_scanpy_reads_and_draws_what_was_written(written):
    matplotlib.use("Agg")
    asked = ["de", written, "--groupby", "group", "--group", "A"]
    run_well(*asked, "--reference", "B")
    run_well(*asked, "--key-added", "other")
    adata = ad.read_h5ad(written)
    assert {KEY, "rank_genes_groups_other"} <= set(adata.uns)
    frame = sc.get.rank_genes_groups_df(adata, group="A", key=KEY)
    assert set(frame["names"]) == set(adata.var_names)
    assert frame["pvals"].isna().all()
    assert frame["pvals_adj"].isna().all()
    assert frame["scores"].is_monotonic_decreasing
    found = compared(learned()[0], learned()[1])
    np.testing.assert_allclose(
        frame.set_index("names").loc[list(found.genes), "logfoldchanges"], found.change_g, atol=1e-12
    )
    assert frame.set_index("names").loc[["new_0", "new_1"], "logfoldchanges"].isna().all()
    stored = adata.uns[KEY]
    assert stored["probability"].dtype.names == ("A",)
    first = frame["names"].iloc[0]
    assert stored["probability"]["A"][0] == found.probability_g[found.genes.index(first)]
    assert stored["params"]["reference"] == "B"
    assert adata.uns["rank_genes_groups_other"]["params"]["reference"] == "rest"
    sc.pl.rank_genes_groups(adata, key=KEY, show=False)
    sc.pl.rank_genes_groups_dotplot(adata, key=KEY, n_genes=4, show=False)
    matplotlib.pyplot.close("all")
    # A second time, over our own result, and in memory.
    run_well(*asked, "--reference", "other")
    scvae.de(adata, written.with_suffix(".scvae"), groupby="group", group="A", reference="other")
    assert adata.uns[KEY]["params"]["reference"] == "other"
    assert sc.get.rank_genes_groups_df(adata, group="A", key=KEY)["scores"].iloc[0] > 0


def test_table_json_and_figure_agree(written):
    table, plot = written.with_name("table.csv"), written.with_name("plot.png")
    asked = ["de", written, "--groupby", "group", "--group", "A", "--reference", "B"]
    values = json.loads(run_well(*asked, "--table", table, "--plot", plot, "--json").out)
    frame = pd.read_csv(table)
    assert list(frame["gene"][:5]) == [row["gene"] for row in values["genes"][:5]]
    assert frame["called"].sum() == values["called"] == values["up"] + values["down"]
    assert values["n_tested"] == N_GENES
    assert values["n_genes"] == N_GENES + 2
    assert (values["n_group"], values["n_reference"]) == (160, 160)
    assert frame["expected_fdr"].is_monotonic_increasing
    called = frame[frame["called"]]
    assert (1 - called["probability"]).mean() <= values["fdr"]
    assert plot.stat().st_size > 10_000
    text = run_well(*asked, "--table", table, "--force").out
    assert f"{values['called']} of {N_GENES} genes" in text
    assert "not tested: 2 genes" in text
    assert frame["gene"][0] in text


def test_only_cells_within_are_compared(written):
    asked = ["de", written, "--groupby", "group", "--group", "A", "--within", "batch=batch_1", "--cells", "50"]
    values = json.loads(run_well(*asked, "--json").out)
    adata = ad.read_h5ad(written)
    inside = adata.obs["batch"] == "batch_1"
    assert values["n_group"] == min(50, int((inside & (adata.obs["group"] == "A")).sum()))
    assert values["n_reference"] == 50
    assert values["within"] == {"batch": "batch_1"}


def test_labels_may_be_numbers():
    """A reference of 0 is a group, and not all other cells."""
    adata, model = learned()
    cells = adata.copy()
    cells.obs["cluster"] = (cells.obs["group"] == "A").astype(int)
    cells.obs["kind"] = cells.obs["batch"] == "batch_1"
    asked = {"groupby": "cluster", "group": 1, "reference": 0, "within": {"kind": True}, "max_cells": 30}
    found = scvae.de(cells, model, **asked, inplace=False)
    assert (found.contrast.group, found.contrast.reference) == ("1", "0")
    assert cells.obs["kind"].to_numpy()[found.contrast.reference_cells].all()
    scvae.de(cells, model, **asked)
    recorded = json.loads(cells.uns["scvae"]["runs"]["de"])["options"]
    assert {name: recorded[name] for name in ("group", "reference", "within")} == {
        "group": "1",
        "reference": "0",
        "within": {"kind": "True"},
    }
    assert cells.uns[KEY]["params"]["reference"] == "0"


def test_options_are_refused_before_anything_is_opened():
    for wrong, message in (
        ({"reference": "A"}, "compared with itself"),
        ({"threshold": -1}, "threshold is -1"),
        ({"max_cells": 2}, "max_cells is 2"),
        ({"within": {"donor": ["a", "b"]}}, "within is"),
    ):
        with pytest.raises(scvae.ConfigError, match=message):
            scvae.de("nowhere.h5ad", "nowhere.scvae", **{"groupby": "group", "group": "A"} | wrong)


def test_figure_draws_what_was_found():
    found = compared(*learned())
    figure = de_figure(found)
    assert isinstance(figure, Figure)
    volcano, intervals, calls = figure.axes
    dots = np.concatenate([part.get_offsets() for part in volcano.collections])
    assert len(dots) == N_GENES
    assert intervals.get_yticklabels()[0].get_text() == found.genes[found.order[0]]
    np.testing.assert_allclose(calls.lines[0].get_ydata(), found.expected_fdr_g[found.order])
    de_figure(compared(*learned(changed=False), threshold=0.0))


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
        (USAGE, "compared with itself", [*ASKED, "--reference", "batch_1"]),
        (USAGE, "--threshold is -0.5", [*ASKED, "--threshold", "-0.5"]),
        (USAGE, "--threshold is nan", [*ASKED, "--threshold", "nan"]),
        (USAGE, "--fdr is 1.5", [*ASKED, "--fdr", "1.5"]),
        (USAGE, "--centre is 'mean'", [*ASKED, "--centre", "mean"]),
        (USAGE, "--cells is 2", [*ASKED, "--cells", "2"]),
        (USAGE, "--samples is 0", [*ASKED, "--samples", "0"]),
        (USAGE, "--seed is -1", [*ASKED, "--seed", "-1"]),
        (USAGE, "--within is 'stem'", [*ASKED, "--within", "stem"]),
        (USAGE, "given twice for 'a'", [*ASKED, "--within", "a=1", "--within", "a=2"]),
        (USAGE, "--group is missing", ["--groupby", "batch"]),
        (DATA, "no column 'kind'", [*ASKED, "--within", "kind=stem"]),
        (DATA, "has 0 cell(s) to compare", [*ASKED, "--within", "batch=batch_2"]),
        (USAGE, "does not end in .csv", [*ASKED, "--table", "genes.txt"]),
        (USAGE, "does not have the extension of a figure", [*ASKED, "--plot", "genes.doc"]),
        (DATA, "is not a folder", [*ASKED, "--table", "none/genes.csv"]),
    ],
)
def test_refused_comparisons(bench, code, fragment, options):
    refused(bench.folder, bench.ask("de", *options), code, fragment)


def test_groups_that_are_too_small_or_too_large(bench):
    def name(adata: ad.AnnData) -> None:
        adata.obs["few"] = ["two"] * 2 + ["more"] * (adata.n_obs - 2)
        adata.obs["one"] = "all"

    bench.changed(name)
    refused(bench.folder, bench.ask("de", "--groupby", "few", "--group", "two"), DATA, "'two' of obs['few'] has 2")
    refused(bench.folder, bench.ask("de", "--groupby", "few", "--group", "more"), DATA, "'rest' of obs['few'] has 2")
    refused(bench.folder, bench.ask("de", "--groupby", "one", "--group", "all"), DATA, "all cells have obs['one']")


def test_a_comparison_of_batches_is_refused(bench_with_batches):
    asked = bench_with_batches.ask("de", "--groupby", "batch", "--group", "batch_1", "--reference", "batch_2")
    hint = refused(bench_with_batches.folder, asked, DATA, "no batch has at least two cells each of")
    assert "--batch-key" in hint


def test_slots_of_other_programs_are_kept(bench):
    def mine(adata: ad.AnnData) -> None:
        adata.uns[KEY] = {"mine": 1}

    bench.changed(mine)
    asked = bench.ask("de", "--groupby", "batch", "--group", "batch_1")
    assert "--force" in refused(bench.folder, asked, DATA, "was not written by scvae")
    run_well(*asked, "--force")
