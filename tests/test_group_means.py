"""Denoised means of groups are compared with raw means, and markers must not appear in cell types that lack them."""

from __future__ import annotations

import functools
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from command_line import run_ok
from simulated import TINY, learned
from test_figure_layout import data as layout_data
from workbench import DATA, assert_refused

import scvae_cli as scvae
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.tools.denoise.group_means import GroupSums
from scvae_cli.tools.denoise.question import MANY


def means_of_groups(raw_ng, denoised_ng, label_n, scale_n=None, *, of_counts=True, block=37):
    """Compute the means of groups, with the cells added in blocks."""
    sums = GroupSums("type", label_n, [f"g{g}" for g in range(raw_ng.shape[1])], of_counts=of_counts)
    scale_n = np.ones(len(raw_ng)) if scale_n is None else scale_n
    for start in range(0, len(raw_ng), block):
        rows = slice(start, start + block)
        sums.add(raw_ng[rows], denoised_ng[rows], scale_n[rows])
    return sums.means()


def test_means_and_errors_equal_those_of_the_residuals():
    random = np.random.default_rng(0)
    mean_ng, scale_n = random.gamma(2, 1.0, (200, 5)), random.gamma(5, 0.2, 200)
    raw_ng = random.poisson(mean_ng * random.gamma(0.5, 2.0, mean_ng.shape)).astype(float)
    label_n = np.asarray(["b", "a", None, "b", "a"] * 39 + ["rare"] * 5, dtype=object)
    means = means_of_groups(raw_ng, scale_n[:, None] * mean_ng, label_n, scale_n)
    assert means.groups == ("a", "b"), "a group of five cells is too small"
    by_group = pd.Series(label_n)
    for p, group in enumerate(means.groups):
        in_group = (by_group == group).to_numpy()
        residual = scale_n[in_group, None] * (raw_ng - mean_ng)[in_group]
        np.testing.assert_allclose(means.error_pg[p], residual.std(0, ddof=1) / np.sqrt(in_group.sum()))
        np.testing.assert_allclose((means.denoised_pg - means.raw_pg)[p], -residual.mean(0))


def test_true_means_agree_and_wrong_means_are_found():
    """Skewed counts of a thousand genes: correct means are rarely called different, and wrong means are found."""
    random = np.random.default_rng(1)
    mean_g = np.exp(random.normal(-1, 1.5, 1000))
    mean_ng = np.tile(mean_g, (600, 1)) * random.gamma(8, 1 / 8, (600, 1))
    raw_ng = random.poisson(mean_ng * random.gamma(1.0, 1.0, mean_ng.shape)).astype(float)
    label_n = np.asarray(["large"] * 400 + ["small"] * 200, dtype=object)
    assert means_of_groups(raw_ng, mean_ng, label_n).differs_pg.sum() <= 1
    # Gene 7 has no counts in the small group, where 0.7 counts per cell are expected.
    raw_ng[400:, 7], mean_ng[400:, 7] = 0, 0.7
    wrong = means_of_groups(raw_ng, mean_ng, label_n)
    assert wrong.worst[0] == (1, 7)
    assert wrong.differs_pg.sum() <= 3


@functools.cache
def three_types():
    """Cells of three types, each with markers that the other types lack entirely, and a model of the cells."""
    random = np.random.default_rng(0)
    rate_pg = np.tile(random.gamma(2, 1.0, 90), (3, 1))
    for p in range(3):
        rate_pg[:, 20 * p : 20 * p + 20] = 0
        rate_pg[p, 20 * p : 20 * p + 20] = 3
    type_n = np.repeat([0, 1, 2], [400, 260, 40])
    x_ng = random.poisson(rate_pg[type_n] * random.gamma(3, 1 / 3, (700, 90)))
    adata = ad.AnnData(sp.csr_matrix(x_ng.astype(np.float32)), obs={"type": pd.Categorical([f"t{p}" for p in type_n])})
    adata.obs_names = [f"cell{n}" for n in range(700)]
    adata.var_names = [f"gene{g}" for g in range(90)]
    options = TINY | {"max_epochs": 40, "n_hidden": 64, "precision": "fp32"}
    return adata, scvae.train(adata, **options, genes="all")


def test_markers_do_not_appear_in_types_that_lack_them():
    adata, model = three_types()
    denoised = scvae.denoise(adata, model, inplace=False).rows.whole()
    without_inflation = scvae.denoise(adata, model, with_zero_inflation=False, inplace=False).rows.whole()
    small = (adata.obs["type"] == "t2").to_numpy()
    leaked, leaked_without = denoised[small, :40].mean(), without_inflation[small, :40].mean()
    assert leaked < 0.03 * 3
    assert leaked < 0.5 * leaked_without


def test_expected_counts_include_zero_inflation():
    import torch

    adata, model = learned()
    batch = model.batches[0]
    found = scvae.denoise(adata, model, library=500, batch_as=batch, inplace=False).rows.whole()
    scvae.embed(copied := adata.copy(), model, axes="training")
    z_nk = torch.as_tensor(np.asarray(copied.obsm["scvae_latent"]), dtype=torch.float32)
    with torch.no_grad():
        output = model.vae.decode(z_nk, torch.zeros(len(z_nk), dtype=torch.long))
        expected = (torch.softmax(output.logits_ng, 1) * torch.sigmoid(-output.zero_logit_ng)).numpy()
    np.testing.assert_allclose(found, 500 * expected / expected.sum(1, keepdims=True), rtol=1e-3)


def test_means_are_compared_in_the_observed_batches():
    adata, model = learned()
    options = {"groupby": "batch", "inplace": False}
    average, observed = (scvae.denoise(adata, model, batch_as=b, **options) for b in ("average", "observed"))
    with pytest.raises(ConfigError, match="after all rows were read"):
        average.group_means()
    for result in (average, observed):
        result.rows.whole()
    np.testing.assert_allclose(average.group_means().denoised_pg, observed.group_means().denoised_pg)
    assert scvae.denoise(adata, model, inplace=False).group_means() is None


def test_command_reports_differences_of_group_means(copied):
    adata = ad.read_h5ad(copied.data)
    adata.obs["kind"] = pd.Categorical(["even", "odd"] * (adata.n_obs // 2))
    adata.obs["single"] = [f"s{n}" for n in range(adata.n_obs)]
    adata.write_h5ad(copied.data)
    command = ("denoise", copied.data, "-m", copied.model)
    report = json.loads(run_ok(*command, "--groupby", "kind", "--json").out)["group_means"]
    assert (report["groupby"], report["n_groups"]) == ("kind", 2)
    assert report["n_different"] <= report["n_compared"] == 2 * adata.var_names.isin(copied_genes(copied)).sum()
    assert all(set(row) == {"gene", "group", "n_cells", "raw", "denoised", "error"} for row in report["worst"])
    assert json.loads(run_ok(*command, "--json").out)["group_means"] is None
    assert_refused(
        copied.data.parent, [*command, "--groupby", "single"], DATA, "no group of obs['single'] has 10 cells or more"
    )


def copied_genes(copied) -> list[str]:
    return list(scvae.load(copied.model).genes)


def test_leiden_clusters_are_the_default_groups():
    adata, model = three_types()
    adata = adata.copy()
    adata.obs["scvae_leiden"] = adata.obs["type"]
    result = scvae.denoise(adata, model, inplace=False)
    result.rows.whole()
    assert result.group_means().groups == ("t0", "t1", "t2")


def test_genes_outside_the_model_are_not_written(tmp_path):
    adata, model = three_types()
    wide = ad.concat([adata, ad.AnnData(sp.csr_matrix((700, 1000)), obs=adata.obs[[]])], axis=1)
    wide.obs = adata.obs
    wide.var_names = [*adata.var_names[:90], *(f"other{g}" for g in range(1000))]
    file, out = tmp_path / "wide.h5ad", tmp_path / "out.h5ad"
    wide.write_h5ad(file)
    model.save(tmp_path / "wide.scvae")
    run_ok("denoise", file, "-o", out)
    assert out.stat().st_size < file.stat().st_size + 1.2 * 700 * 90 * 4 + 50_000
    found = ad.read_h5ad(out)
    assert "scvae_denoised" not in found.layers
    # The lines for scanpy that the documentation shows.
    d = found[:, found.uns["scvae"]["denoised_genes"]].copy()
    d.layers["scvae_denoised"] = d.obsm["scvae_denoised"]
    plot = sc.pl.dotplot(d, ["gene3", "gene50"], groupby="type", layer="scvae_denoised", return_fig=True)
    means = pd.DataFrame(d.layers["scvae_denoised"], columns=d.var_names).groupby(d.obs["type"].to_numpy()).mean()
    np.testing.assert_allclose(plot.dot_color_df, means[["gene3", "gene50"]], rtol=1e-5)
    run_ok("denoise", out, "-m", tmp_path / "wide.scvae", "--all-genes")
    layer = ad.read_h5ad(out).layers["scvae_denoised"]
    np.testing.assert_array_equal(layer[:, :90], found.obsm["scvae_denoised"])
    assert np.isnan(layer[:, 90:]).all()


def test_unknown_groupby_is_refused():
    adata, model = three_types()
    with pytest.raises(DataError, match="no column 'tribe'"):
        scvae.denoise(adata.copy(), model, groupby="tribe")


def test_advice_on_many_differences_names_what_helps(tmp_path):
    """After two epochs, the model does not yet know the groups; after 80 epochs, it does."""
    adata, path = layout_data("short"), tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    shares, texts = {}, {}
    for epochs in (2, 80):
        model = tmp_path / f"{epochs}.scvae"
        scvae.train(adata, **TINY | {"max_epochs": epochs, "patience": 80}, genes="all").save(model)
        command = ["denoise", path, "-m", model, "--groupby", "group", "--force"]
        found = json.loads(run_ok(*command, "--json").out)["group_means"]
        shares[epochs] = found["n_different"] / found["n_compared"]
        texts[epochs] = run_ok(*command).out
        cell = json.loads(run_ok(*command, "--estimate", "cell", "--json").out)["group_means"]
        assert cell["n_different"] <= found["n_different"]
        assert "--estimate cell" not in run_ok(*command, "--estimate", "cell").out
        assert ("describes some of these groups badly" in texts[epochs]) == (shares[epochs] > MANY)
    assert shares[2] > 2 * shares[80]
    assert "train longer (the training ended at the limit of --max-epochs, 2)" in texts[2]
    assert "--n-latent, now 4" in texts[2]
    assert "use --estimate cell" in texts[2]
