"""Results of a model for cells, compared with independent computations.

Letters in array shapes: n cells, g genes, k latent dimensions.
"""

import math

import numpy as np
import pytest
import torch
from plain_likelihood import zinb_log_prob
from simulated import TINY, tree

import scvae_cli as scvae
from scvae_cli.config import ModelConfig
from scvae_cli.data.slots import SlotNames
from scvae_cli.errors import DataError, ScvaeWarning
from scvae_cli.latent.posteriors import cell_table
from scvae_cli.model.vae import VAE
from scvae_cli.session import Session


@pytest.fixture(scope="module")
def adata():
    return tree(n_batches=2, n_cells=600)


@pytest.fixture(scope="module")
def model(adata):
    return scvae.train(adata, **TINY, batch_key="batch", genes="all")


@pytest.fixture(scope="module")
def one_dimensional(adata):
    return scvae.train(adata, **TINY | {"n_latent": 1}, genes="all")


def plain_log_likelihood(model, x_ng, z_nk):
    """Compute log p(x|z) in float64 by the plain formula, shape (n,)."""
    output = model.vae.decode(z_nk.float(), None)
    log_mu = torch.log_softmax(output.logits_ng.double(), 1) + x_ng.sum(1).log()[:, None]
    return zinb_log_prob(x_ng, log_mu, output.log_theta_g.double(), output.zero_logit_ng.double()).sum(1)


@torch.no_grad()
def test_importance_bound_approaches_the_marginal_likelihood(adata, one_dimensional):
    """With one latent dimension, log p(x) is an integral, which is computed on a fine grid."""
    some = adata[:12]
    x_ng = torch.as_tensor(some.X.toarray(), dtype=torch.float64)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    expected = []
    for x_g in x_ng:
        log_joint = plain_log_likelihood(one_dimensional, x_g.expand(len(grid), -1), grid[:, None])
        log_joint += -0.5 * grid.square() - 0.5 * math.log(2 * math.pi)
        expected.append(float(torch.logsumexp(log_joint, 0) + math.log(grid[1] - grid[0])))
    scores = scvae.score(some, one_dimensional, n_samples=5_000, n_simulated=100, inplace=False)
    np.testing.assert_allclose(scores.iwae, expected, atol=0.15)
    assert (scores.elbo <= np.asarray(expected) + 0.05).all()


@torch.no_grad()
def test_elbo_equals_its_definition(adata, one_dimensional):
    some = adata[:8]
    x_ng = torch.as_tensor(some.X.toarray(), dtype=torch.float64)
    embedding = scvae.embed(some, one_dimensional, inplace=False)
    mean, var = torch.as_tensor(embedding.mean_nk).double(), torch.as_tensor(embedding.var_nk).double()
    # Gauss–Hermite: E_q[log p(x|z)] without sampling.
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    expected = torch.zeros(len(some), dtype=torch.float64)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        expected += weight * plain_log_likelihood(one_dimensional, x_ng, mean + var.sqrt() * node)
    expected -= (0.5 * (mean.square() + var - 1 - var.log())).sum(1)
    got = scvae.score(some, one_dimensional, n_samples=5_000, n_simulated=100, inplace=False).elbo
    np.testing.assert_allclose(got, expected.numpy(), atol=0.3)


def test_more_samples_tighten_the_bound(adata, model):
    few = scvae.score(adata, model, n_samples=2, inplace=False)
    many = scvae.score(adata, model, n_samples=50, inplace=False)
    assert few.elbo.mean() < few.iwae.mean() < many.iwae.mean()


def test_embedding_does_not_depend_on_other_cells_order_or_batch(adata, model):
    expected = scvae.embed(adata, model, inplace=False).mean_nk
    order = np.random.default_rng(0).permutation(adata.n_obs)
    shuffled = scvae.embed(adata[order].copy()[:, ::-1].copy(), model, inplace=False).mean_nk
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-5)
    single = scvae.embed(adata[3:4].copy(), model, inplace=False).mean_nk
    np.testing.assert_allclose(single, expected[3:4], atol=1e-5)
    other_batch = adata[:5].copy()
    other_batch.obs["batch"] = "new"
    with pytest.warns(ScvaeWarning, match="not in the training data"):
        np.testing.assert_allclose(scvae.embed(other_batch, model, inplace=False).mean_nk, expected[:5], atol=1e-5)


def test_functions_write_slots_in_memory(adata, model):
    cells = adata.copy()
    assert scvae.embed(cells, model) is None
    scvae.denoise(cells, model)
    scvae.score(cells, model, n_samples=2)
    scvae.interpolate(cells, model, groupby="cell_type", groups=["stem", "mature_1"], name="walk")
    names = SlotNames()
    assert cells.obsm[names.latent].shape == cells.obsm[names.latent_var].shape == (cells.n_obs, 4)
    assert cells.obsm[names.embedding].shape == (cells.n_obs, 50)
    assert (cells.obsm[names.latent_var] > 0).all()
    assert cells.layers[names.denoised].shape == cells.shape
    assert cells.var[names.modelled].all()
    assert {names.elbo, names.iwae, names.pseudotime("walk")} <= set(cells.obs.columns)
    for key in (names.path_genes("walk"), *names.path_band("walk")):
        assert cells.varm[key].shape == (cells.n_vars, 50)
    assert set(cells.uns["scvae"]["runs"]) == {"embed", "denoise", "score", "interpolate_walk"}
    scvae.embed(cells, model)  # slots of scvae are replaced
    cells.obsm["X_other"] = np.ones((cells.n_obs, 2))
    with pytest.raises(DataError, match="X_other"):
        scvae.embed(cells, model, key_added="other")


def test_denoised_counts_keep_the_library_size_and_are_reproducible(adata, model):
    first = scvae.denoise(adata, model, inplace=False).rows.whole()
    second = scvae.denoise(adata, model, inplace=False).rows.whole()
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first.sum(1), np.asarray(adata.X.sum(1)).ravel(), rtol=1e-4)
    fixed = scvae.denoise(adata, model, library=1234.0, inplace=False).rows.whole()
    np.testing.assert_allclose(fixed.sum(1), 1234.0, rtol=1e-4)
    median = scvae.denoise(adata, model, library="median", inplace=False).rows.whole()
    np.testing.assert_allclose(median.sum(1), float(model.vae.reference_library), rtol=1e-4)
    # Expected counts without zero inflation also sum to the library size.
    without_inflation = scvae.denoise(adata, model, with_zero_inflation=False, inplace=False).rows.whole()
    np.testing.assert_allclose(without_inflation.sum(1), np.asarray(adata.X.sum(1)).ravel(), rtol=1e-4)
    assert np.abs(without_inflation / first - 1).max() > 0.01


def test_denoised_average_equals_the_average_over_batches(adata, model):
    def mean_as(batch_as):
        return scvae.denoise(adata, model, batch_as=batch_as, with_zero_inflation=False, inplace=False).rows.whole()

    share = adata.obs["batch"].value_counts(normalize=True)
    training = adata[~adata.obs_names.isin(model.heldout_cells)]
    share = training.obs["batch"].value_counts(normalize=True)
    expected = sum(share[name] * mean_as(name) for name in model.batches)
    np.testing.assert_allclose(mean_as("average"), expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(mean_as("batch_1"), mean_as("batch_2"), rtol=1e-3)
    with pytest.raises(DataError, match="no batch 'batch_9'"):
        mean_as("batch_9")


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "normal"])
@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_averages_over_many_batches_equal_those_of_single_cells(likelihood, decoder):
    """The average over batches is computed in blocks of cells, and with one row of effects for all cells."""
    config = ModelConfig(likelihood=likelihood, decoder=decoder, n_latent=3, n_hidden=8, n_layers=2)
    vae = VAE(config, 20, [f"batch_{b}" for b in range(40)]).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in vae.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=random))
        vae.batch_share_b.copy_(torch.softmax(torch.randn(40, generator=random), 0))
        z_nk, library_n = torch.randn(300, 3, generator=random), 100 + 50 * torch.rand(300, generator=random)
        expected_ng = torch.zeros(300, 20)
        for b, share in enumerate(vae.batch_share_b.tolist()):
            output = vae.decode(z_nk, torch.full((300,), b))
            expected_ng += share * output.mean_ng(library_n, with_zero_inflation=True)
        if likelihood == "zinb":
            expected_ng *= (library_n / expected_ng.sum(1))[:, None]
        found_ng = vae.expected_counts(z_nk, library_n, None, with_zero_inflation=True)
    torch.testing.assert_close(found_ng, expected_ng, rtol=1e-5, atol=1e-6)


def test_selected_genes_are_denoised(adata, model):
    genes = list(adata.var_names[[17, 4]])
    all_values = scvae.denoise(adata, model, inplace=False).rows.whole()
    result = scvae.denoise(adata, model, genes=genes, inplace=False)
    assert list(np.flatnonzero(result.modelled)) == [4, 17]
    assert list(result.columns.genes) == list(adata.var_names[[4, 17]])
    np.testing.assert_array_equal(result.rows.whole(), all_values[:, [4, 17]])
    wide = scvae.denoise(adata, model, genes=genes, all_genes=True, inplace=False).rows.whole()
    np.testing.assert_array_equal(wide[:, [4, 17]], all_values[:, [4, 17]])
    assert np.isnan(np.delete(wide, [4, 17], axis=1)).all()


def test_denoised_counts_are_nearer_to_the_truth_than_the_counts():
    from scvae_cli.data.simulation import true_mean

    adata = tree(n_cells=1500, n_genes=200, zero_inflation=0.0)
    model = scvae.train(adata, **TINY | {"max_epochs": 40, "n_hidden": 64}, likelihood="nb", genes="all")
    truth = true_mean(adata.obs, adata.varm)
    denoised = scvae.denoise(adata, model, inplace=False).rows.whole()

    def error(estimate):
        return np.mean((np.log1p(estimate) - np.log1p(truth)) ** 2)

    gene_means = np.asarray(adata.X.sum(0)) / adata.X.sum() * np.asarray(adata.X.sum(1))
    assert error(denoised) < 0.5 * error(np.asarray(gene_means))
    assert error(denoised) < 0.2 * error(adata.X.toarray())


def test_missing_genes_count_as_zero_and_too_many_are_refused(adata, model):
    most = adata[:, 10:].copy()
    with pytest.warns(ScvaeWarning, match="10 of the model's 120 genes"):
        got = scvae.embed(most, model, inplace=False).mean_nk
    zeroed = adata.copy()
    zeroed.X = zeroed.X.multiply(np.arange(120) >= 10).tocsr()
    np.testing.assert_allclose(got, scvae.embed(zeroed, model, inplace=False).mean_nk, atol=1e-5)
    few = adata[:, 60:].copy()
    with pytest.raises(DataError, match="60 of the model's 120 genes"):
        scvae.embed(few, model)
    with pytest.warns(ScvaeWarning):
        assert scvae.embed(few, model, inplace=False, allow_missing_genes=True) is not None


def test_loaded_model_gives_the_same_results(adata, model, tmp_path):
    model.save(tmp_path / "m.scvae")
    loaded = scvae.load(tmp_path / "m.scvae")
    assert loaded.config == model.config
    assert loaded.facts == model.facts
    assert loaded.heldout_cells == model.heldout_cells
    ours, theirs = (scvae.embed(adata, m, inplace=False).mean_nk for m in (model, loaded))
    assert np.array_equal(ours, theirs)


def test_cells_without_counts_in_modeled_genes_are_refused(adata, model):
    session = Session.open(adata, model)
    emptied = session.counts.genes(np.arange(3))
    with pytest.raises(DataError, match="no counts in the modeled genes"):
        cell_table(model, emptied)
