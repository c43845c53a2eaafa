"""Sampled cells: their densities and counts are compared with formulas, and the written files with the request.

Letters in array shapes: n cells, g genes, k latent dimensions.
"""

from __future__ import annotations

import dataclasses
import json

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from command_line import run_ok
from scipy import stats
from simulated import TINY, learned, tree
from test_density import random_mixture

import scvae_cli as scvae
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.latent.gene_moments import GeneMoments
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.session import Session
from scvae_cli.tools.sample.agreement import Comparison
from scvae_cli.tools.sample.figure import Points, sample_figure
from scvae_cli.tools.sample.options import SampleOptions
from scvae_cli.tools.sample.sampling import (
    accepted,
    calibrated_for_samples,
    reference_draws,
    sample,
    source_scores,
)


@pytest.fixture(scope="module")
def adata():
    cells = tree(n_batches=2, n_cells=500, n_genes=60)
    # One batch is rarer than the other.
    return cells[(cells.obs["batch"] == "batch_1") | (np.arange(500) % 3 == 0)].copy()


@pytest.fixture(scope="module")
def model(adata):
    return scvae.train(adata, **TINY, batch_key="batch", genes="all")


@pytest.fixture(scope="module")
def sampled(adata, model):
    return scvae.sample(adata, model, 1200)


# --- positions of cells -----------------------------------------------------------------------------------------------


def test_density_samples_have_the_moments_of_the_density():
    density, weight_c, mean_ck, cov_ckk = random_mixture(c=3, k=4)
    z_nk = density.sample(200_000, torch.Generator().manual_seed(0)).numpy()
    mean_k = weight_c @ mean_ck
    second_kk = np.einsum("c,cij->ij", weight_c, cov_ckk) + (weight_c[:, None] * mean_ck).T @ mean_ck
    cov_kk = second_kk - np.outer(mean_k, mean_k)
    scale_k = np.sqrt(np.diag(cov_kk))
    np.testing.assert_allclose(z_nk.mean(0) / scale_k, mean_k / scale_k, atol=0.015)
    np.testing.assert_allclose(
        np.cov(z_nk.T) / np.outer(scale_k, scale_k), cov_kk / np.outer(scale_k, scale_k), atol=0.02
    )


def test_density_samples_follow_each_component():
    density, _, mean_ck, cov_ckk = random_mixture(c=1, k=3)
    z_nk = density.sample(5000, torch.Generator().manual_seed(1)).numpy() - mean_ck[0]
    squared_n = np.einsum("ni,ij,nj->n", z_nk, np.linalg.inv(cov_ckk[0]), z_nk)
    assert stats.kstest(squared_n, stats.chi2(3).cdf).pvalue > 1e-3


def test_sources_are_compared_by_their_log_densities(adata, model):
    session = Session.open(adata, model)
    z_nk, heldout = reference_draws(model, session.counts, seed=0)
    scores = source_scores(model.density, z_nk, heldout=heldout)
    assert heldout
    assert scores.n_cells == len(model.heldout_cells)
    expected = stats.norm.logpdf(z_nk.numpy()).sum(1).mean()
    np.testing.assert_allclose(scores.prior, expected, rtol=1e-5)
    np.testing.assert_allclose(scores.density, model.density.log_prob(z_nk).double().mean(), rtol=1e-5)
    flipped = dataclasses.replace(scores, prior=scores.density, density=scores.prior)
    assert {scores.better, flipped.better} == {"prior", "density"}
    assert scores.gain == flipped.gain > 0


def test_all_cells_are_used_if_none_is_held_out(adata, model):
    others = adata[~adata.obs_names.isin(model.heldout_cells)].copy()
    z_nk, heldout = reference_draws(model, Session.open(others, model).counts, seed=0)
    assert not heldout
    assert len(z_nk) % others.n_obs == 0


def test_off_manifold_scores_of_posterior_samples_are_uniform(adata, model):
    """If posterior samples are drawn again from the calibration cells, their off-manifold scores are uniform."""
    session = Session.open(adata, model)
    density = calibrated_for_samples(model.density, reference_draws(model, session.counts, seed=0)[0])
    second_nk, _ = reference_draws(model, session.counts, seed=1)
    # The Kolmogorov–Smirnov distance of two samples of this size exceeds this value with a probability of 1%.
    limit = 1.63 * (2 / len(second_nk)) ** 0.5
    assert stats.kstest(density.off_manifold(second_nk).numpy(), "uniform").statistic < limit


@pytest.mark.parametrize("source", ["prior", "density"])
def test_requested_source_is_used(adata, model, source):
    session = Session.open(adata, model)
    result = sample(model, session.counts, SampleOptions(n=4000, source=source))
    assert result.source == source
    scores = result.scores
    z_nk = torch.as_tensor(result.z_nk) @ model.axes.rotation_kk
    if source == "prior":
        assert stats.kstest(z_nk.numpy().ravel(), stats.norm.cdf).pvalue > 1e-3
    else:
        # Positions drawn from the density are as likely under the density as posterior samples of the cells.
        assert abs(float(model.density.log_prob(z_nk).mean()) - scores.density) < 1.0
    auto = sample(model, session.counts, SampleOptions(n=5))
    assert auto.source == scores.better


def test_holes_are_counted_and_can_be_avoided(adata, model):
    session = Session.open(adata, model)
    options = SampleOptions(n=900, source="prior")
    plain = sample(model, session.counts, options)
    kept = sample(model, session.counts, dataclasses.replace(options, avoid_holes=True))
    assert plain.rejected == 0
    assert plain.in_holes > 0
    assert kept.in_holes == 0
    assert kept.off_manifold_n.max() <= OFF_MANIFOLD
    assert len(kept.z_nk) == 900
    assert abs(kept.rejected - plain.in_holes) < 0.06


def test_draws_only_from_holes_are_refused():
    density = random_mixture(c=1, k=2)[0]

    def far_away(m):
        return torch.full((m, 2), 1e3, dtype=torch.float64), None

    with pytest.raises(DataError, match=r"100\.0% of the draws lie in holes"):
        accepted(density, far_away, 10, avoid_holes=True)
    # If holes are not avoided, the cells in them are marked.
    z_nk, _, score_n, n_proposed = accepted(density, far_away, 10, avoid_holes=False)
    assert len(z_nk) == n_proposed == 10
    assert (score_n > OFF_MANIFOLD).all()


# --- groups, batches, library sizes -----------------------------------------------------------------------------------


def test_samples_of_a_group_follow_the_cells_of_the_group():
    adata, model = learned()
    drawn = scvae.sample(adata, model, 400, groupby="cell_type", group="stem")
    in_group = (adata.obs["cell_type"] == "stem").to_numpy()
    library_n = np.asarray(adata.X.sum(1)).ravel()
    assert set(drawn.obs["scvae_library"]) <= set(library_n[in_group])
    assert set(drawn.obs["cell_type"]) == {"stem"}
    # The means and variances are those of the aggregated posterior of the group.
    mean_nk, var_nk = posteriors(model, Session.open(adata[in_group].copy(), model).counts)
    expected_k = model.axes.position(mean_nk.mean(0, keepdim=True)).numpy()[0]
    total_k = model.axes.position(mean_nk).var(0).numpy() + model.axes.variance(var_nk).mean(0).numpy()
    got = drawn.obsm["scvae_latent"]
    np.testing.assert_allclose((got.mean(0) - expected_k) / np.sqrt(total_k), 0, atol=0.25)
    # The variances agree only approximately, because posterior variances along rotated axes ignore covariances.
    np.testing.assert_allclose(got.var(0).sum(), total_k.sum(), rtol=0.15)


def test_samples_of_a_group_of_one_cell(adata, model):
    cells = adata.copy()
    cells.obs["alone"] = ["one"] + ["other"] * (cells.n_obs - 1)
    made = scvae.sample(cells, model, 5, groupby="alone", group="one")
    assert set(made.obs["scvae_library"]) == {float(cells.X[0].sum())}
    # Each cell is decoded in its own batch.
    assert set(made.obs["batch"]) == {cells.obs["batch"].iloc[0]}


def test_batches_are_drawn_in_proportion_to_their_share(adata, model, sampled):
    share_b = model.vae.batch_share_b.numpy()
    got = sampled.obs["batch"].value_counts(normalize=True)
    np.testing.assert_allclose([got[name] for name in model.batches], share_b, atol=0.05)


def test_library_sizes_are_drawn_from_the_batch(adata, model, sampled):
    library_n = np.asarray(adata.X.sum(1)).ravel()
    for batch in model.batches:
        theirs = set(library_n[(adata.obs["batch"] == batch).to_numpy()])
        assert set(sampled.obs["scvae_library"][sampled.obs["batch"] == batch]) <= theirs
    one = scvae.sample(adata, model, 50, batch_as="batch_2")
    assert set(one.obs["batch"]) == {"batch_2"}
    as_group = scvae.sample(adata, model, 50, groupby="batch", group="batch_2")
    assert set(as_group.obs["batch"]) == {"batch_2"}


def test_sampling_does_not_require_batches_in_the_data(adata, model):
    without_batches = adata.copy()
    del without_batches.obs["batch"]
    made = scvae.sample(without_batches, model, 300)
    assert set(made.obs["batch"]) == set(model.batches)
    without_batches.obs["batch"] = [None] + ["batch_1"] * (without_batches.n_obs - 1)
    assert Session.open(without_batches, model).counts_and_batches().batch is None


@pytest.mark.parametrize(("library", "expected"), [("median", None), ("777", 777.0), (1234.5, 1234.5)])
def test_requested_library_size_is_used(adata, model, library, expected):
    made = scvae.sample(adata, model, 600, library=library)
    expected = expected or float(model.vae.reference_library)
    assert set(made.obs["scvae_library"]) == {expected}
    # Zero inflation removes a few counts.
    assert 0.85 < made.X.sum(1).mean() / expected < 1.02


# --- counts -----------------------------------------------------------------------------------------------------------


def test_sampled_counts_resemble_the_data(adata, model, sampled):
    assert sampled.shape == (1200, adata.n_vars)
    assert list(sampled.obs_names[:2]) == ["sample_0", "sample_1"]
    assert list(sampled.var_names) == list(model.genes)
    assert sampled.X.dtype == np.float32
    assert sp.isspmatrix_csr(sampled.X)
    assert (sampled.X.data == np.rint(sampled.X.data)).all()
    assert (sampled.X.data > 0).all()
    assert sampled.obs["scvae_off_manifold"].between(0, 1).all()
    real_g, made_g = (np.asarray(x.mean(0)).ravel() for x in (adata.X, sampled.X))
    assert np.corrcoef(np.log(real_g + 0.01), np.log(made_g + 0.01))[0, 1] > 0.95


def test_same_seed_gives_the_same_cells(adata, model, sampled):
    second = scvae.sample(adata, model, 1200)
    assert (second.X != sampled.X).nnz == 0
    np.testing.assert_array_equal(second.obsm["scvae_latent"], sampled.obsm["scvae_latent"])
    assert second.obs.equals(sampled.obs)
    other = scvae.sample(adata, model, 1200, seed=1)
    assert (other.X != sampled.X).nnz > 0


def test_means_equal_averages_of_draws(adata, model):
    group = {"groupby": "cell_type", "group": "stem", "library": "median"}
    means = scvae.sample(adata, model, 300, mean=True, **group)
    drawn = scvae.sample(adata, model, 300, **group)
    assert means.X.dtype == np.float32
    np.testing.assert_array_equal(means.obsm["scvae_latent"], drawn.obsm["scvae_latent"])
    np.testing.assert_allclose(np.asarray(drawn.X.mean(0)).ravel().sum(), means.X.mean(0).sum(), rtol=0.05)
    assert (means.X > 0).all()


def test_prototype_is_the_mean_of_the_prior(adata, model):
    made = scvae.sample(adata, model, prototype=True, batch_as="batch_1")
    assert made.obs_names.tolist() == ["prototype"]
    assert (made.obsm["scvae_latent"] == 0).all()
    zero = torch.zeros(1, 4)
    with torch.no_grad():
        expected = model.vae.expected_counts(
            zero, model.vae.reference_library[None], torch.tensor([0]), with_zero_inflation=True
        )
    np.testing.assert_allclose(made.X, expected, rtol=1e-5)
    average = scvae.sample(adata, model, prototype=True)
    assert average.obs["batch"].tolist() == ["average"]


# --- comparison with real cells ---------------------------------------------------------------------------------------


def test_moments_of_blocks_equal_those_of_the_whole_matrix():
    x_ng = np.random.default_rng(0).poisson(0.7, (50, 6)).astype(np.float32)
    moments = GeneMoments(6)
    for start in range(0, 50, 20):
        moments.add(sp.csr_matrix(x_ng[start : start + 20]))
    np.testing.assert_allclose(moments.mean_g, x_ng.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.variance_g, x_ng.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(moments.zero_g, (x_ng == 0).mean(0), rtol=1e-6)


def test_agreement_distinguishes_different_cells_from_equal_ones():
    random = np.random.default_rng(0)
    mu_g = random.gamma(1, 2, 80)
    real, same, other = (sp.csr_matrix(random.poisson(mu_g * f, (400, 80)).astype(np.float32)) for f in (1, 1, 2))
    for cells, is_same in ((same, True), (other, False)):
        comparison = Comparison(real, 400, seed=0)
        assert sum(block.shape[0] for block in comparison.watch([cells[:150], cells[150:]])) == 400
        verdict = comparison.agreement()
        assert verdict.n_cells == verdict.n_real == 200
        assert comparison.samples.n_cells == 400
        assert (verdict.samples.mean < 2 * verdict.real.mean) == is_same
        assert (verdict.samples.zero_fraction < 2 * verdict.real.zero_fraction) == is_same
    assert abs(verdict.samples.mean - 1) < 0.15  # twice as much is a log2 ratio of 1
    assert Comparison(real[:30], 400, seed=0).agreement() is None


# --- files ------------------------------------------------------------------------------------------------------------


def test_written_file_equals_the_result_in_memory(adata, model, sampled, tmp_path):
    assert scvae.sample(adata, model, 1200, output=tmp_path / "new.h5ad") is None
    read = anndata.read_h5ad(tmp_path / "new.h5ad")
    assert (read.X != sampled.X).nnz == 0
    assert read.obs.equals(sampled.obs)
    assert read.var_names.equals(sampled.var_names)
    np.testing.assert_array_equal(read.obsm["scvae_latent"], sampled.obsm["scvae_latent"])
    assert read.uns["scvae"]["runs"]["sample"] == sampled.uns["scvae"]["runs"]["sample"]
    scvae.sample(adata, model, 30, mean=True, output=str(tmp_path / "new.h5ad"), force=True)
    assert isinstance(anndata.read_h5ad(tmp_path / "new.h5ad").X, np.ndarray)


def test_counts_are_drawn_in_blocks(adata, model):
    result = sample(model, Session.open(adata, model).counts, SampleOptions(n=1300))
    first = next(result.blocks)
    assert first.shape[0] < 1300
    assert first.shape[0] + sum(block.shape[0] for block in result.blocks) == 1300


def test_sampled_cells_can_be_embedded():
    adata, model = learned()
    cells = scvae.sample(adata, model, 500)
    embedded = scvae.embed(cells, model, inplace=False).mean_nk
    # The position from which a cell was drawn correlates with the position at which it is encoded.
    assert np.corrcoef(embedded[:, 0], cells.obsm["scvae_latent"][:, 0])[0, 1] > 0.5


def test_figure_shows_every_gene_and_marks_holes(adata, model):
    result = sample(model, Session.open(adata, model).counts, SampleOptions(n=300, source="prior"))
    comparison = Comparison(sp.csr_matrix(adata.X), 300, seed=0)
    list(comparison.watch(result.blocks))
    hole_n = result.off_manifold_n > OFF_MANIFOLD
    points = Points(real_n2=np.zeros((7, 2)), sampled_n2=result.z_nk[:, :2], in_hole_n=hole_n)
    figure = sample_figure(points, result, comparison.real, comparison.samples)
    panels = {axes.get_label(): axes for axes in figure.axes}
    for name, statistic in (("mean", "mean_g"), ("variance", "variance_g"), ("zero fraction", "zero_g")):
        (dots,) = [dots for dots in panels[name].collections if dots.get_gid() == "genes"]
        x_g, y_g = dots.get_offsets().T
        seen_g = (getattr(comparison.real, statistic) > 0) & (getattr(comparison.samples, statistic) > 0)
        np.testing.assert_allclose(x_g[seen_g], getattr(comparison.real, statistic)[seen_g])
        np.testing.assert_allclose(y_g[seen_g], getattr(comparison.samples, statistic)[seen_g])
        assert len(x_g) == len(model.genes)
    shown = {dots.get_gid(): len(dots.get_offsets()) for dots in panels["plane"].collections}
    assert shown == {"real": 7, "sampled": (~hole_n).sum(), "holes": hole_n.sum()}
    assert np.isclose(sum(bar.get_height() for bar in panels["scores"].patches), 1)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_figure_file_is_reproducible(trained, tmp_path, kind):
    plot = tmp_path / f"sampled.{kind}"
    run_ok("sample", trained.data, "-n", "40", "-o", tmp_path / "new.h5ad", "--plot", plot, "--avoid-holes")
    assert plot.stat().st_size > 10_000
    first = plot.read_bytes()
    run_ok("sample", trained.data, "-n", "40", "-o", tmp_path / "new.h5ad", "--plot", plot, "--force", "--avoid-holes")
    assert plot.read_bytes() == first


def test_invalid_arguments_are_refused_in_python(adata, model, tmp_path):
    with pytest.raises(ConfigError, match="no number of cells"):
        scvae.sample(adata, model)
    with pytest.raises(ConfigError, match="n is 0"):
        scvae.sample(adata, model, 0)
    for library in (0, -1.0, "0"):
        for options in ({"n": 3}, {"prototype": True}):
            with pytest.raises(ConfigError, match="library is"):
                scvae.sample(adata, model, library=library, **options)
    with pytest.raises(DataError, match="no batch 'average'"):
        scvae.sample(adata, model, 5, batch_as="average")
    with pytest.raises(DataError, match=r"does not end in \.h5ad"):
        scvae.sample(adata, model, 5, output=tmp_path / "new.txt")
    with pytest.raises(ConfigError, match="plot needs drawn counts"):
        scvae.sample(adata, model, 5, mean=True, plot=tmp_path / "new.png")
    with pytest.raises(ConfigError, match="groupby was given without group"):
        scvae.sample(adata, model, 5, groupby="cell_type")
    with pytest.raises(TypeError):
        scvae.sample(adata, model, 5, inplace=False)
    assert not list(tmp_path.iterdir())


def test_command_and_function_draw_the_same_figure(trained, tmp_path):
    typed, passed = tmp_path / "typed.png", tmp_path / "passed.png"
    run_ok("sample", trained.data, "-n", "40", "-o", tmp_path / "new.h5ad", "--plot", typed)
    made = scvae.sample(trained.data, trained.model, 40, plot=passed)
    assert made.n_obs == 40
    assert typed.read_bytes() == passed.read_bytes()


def test_real_cells_are_compared_only_for_a_report_or_a_figure(adata, model, tmp_path, monkeypatch):
    comparisons = []
    watch = Comparison.watch
    monkeypatch.setattr(Comparison, "watch", lambda self, blocks: comparisons.append(self) or watch(self, blocks))
    scvae.sample(adata, model, 40)
    scvae.sample(adata, model, 40, output=tmp_path / "new.h5ad")
    assert not comparisons
    scvae.sample(adata, model, 40, plot=tmp_path / "new.png")
    assert [comparison.samples.n_cells for comparison in comparisons] == [40]


def test_label_of_a_group_may_be_a_number(adata, model):
    cells = adata.copy()
    cells.obs["cluster"] = np.arange(cells.n_obs) % 3
    made = scvae.sample(cells, model, 20, groupby="cluster", group=1)
    assert set(made.obs["cluster"]) == {"1"}


def test_genes_of_the_prototype_are_shown_by_their_symbols(copied):
    cells = anndata.read_h5ad(copied.data)
    cells.var["symbol"] = [f"Symbol{i}" for i in range(cells.n_vars)]
    cells.write_h5ad(copied.data)
    command = ["sample", copied.data, "-m", copied.model, "--prototype", "-o", copied.data.with_name("new.h5ad")]
    rows = json.loads(run_ok(*command, "--gene-symbols", "symbol", "--json").out)["genes"]
    assert all(row["gene"].startswith("Symbol") for row in rows)
