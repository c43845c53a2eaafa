"""Baseline models and the stability of embeddings are compared with their definitions and with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import nbinom, ortho_group, poisson
from simulated import TINY, counts_of, learned, tiny_config, tree

import scvae_cli as scvae
from scvae_cli.config import ModelConfig, RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.evaluation.mean_model import MeanModel
from scvae_cli.evaluation.neighbors import nearest_neighbors, shared
from scvae_cli.evaluation.pca_model import PcaModel
from scvae_cli.evaluation.retraining import (
    Train,
    model_trained_on,
    requested_config,
    train_silently,
    with_linear_decoder,
)
from scvae_cli.evaluation.thinning import thin
from scvae_cli.tools.diagnose.baselines import LINEAR, MEAN, NO_DENOISING, PCA, VAE, compare_with_baselines
from scvae_cli.tools.diagnose.comparison_verdicts import baseline_verdicts
from scvae_cli.tools.diagnose.diagnosis import with_trainings
from scvae_cli.tools.diagnose.options import DiagnoseOptions
from scvae_cli.tools.diagnose.stability import axis_correlation, disparity, stability

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def draw_counts(mean_ng: np.ndarray, theta: float | None, seed: int = 0) -> Counts:
    """Counts of given means, Poisson or negative binomial."""
    random = np.random.default_rng(seed)
    rate_ng = mean_ng if theta is None else mean_ng * random.gamma(theta, 1 / theta, mean_ng.shape)
    matrix = sp.csr_matrix(random.poisson(rate_ng).astype(np.float32))
    n, g = mean_ng.shape
    return Counts(
        matrix=matrix,
        cell_names=np.asarray([f"c{i}" for i in range(n)], dtype=object),
        gene_names=np.asarray([f"g{i}" for i in range(g)], dtype=object),
        source="X",
    )


def one_cell_type(n: int = 500, g: int = 30, theta: float | None = None, seed: int = 0) -> Counts:
    """Cells that differ only in library size."""
    random = np.random.default_rng(seed)
    proportion_g = random.dirichlet(np.ones(g))
    return draw_counts(random.uniform(200, 800, n)[:, None] * proportion_g, theta, seed)


def recording_train(titles: list[str]) -> Train:
    """A training function that records its titles."""

    def train(title, counts, config):
        titles.append(title)
        return train_silently(title, counts, config)

    return train


# --- mean model -------------------------------------------------------------------------------------------------------


def test_poisson_mean_model_equals_gene_proportions():
    counts = one_cell_type()
    model = MeanModel(counts, None, tiny_config(likelihood="poisson"), CPU)
    x_ng, library_n = counts.matrix.toarray(), counts.library_n
    expected_ng = library_n[:, None] * x_ng.sum(0) / x_ng.sum()
    found_ng = np.concatenate(list(model.expected(counts, of_cell=False)))
    np.testing.assert_allclose(found_ng, expected_ng, rtol=0.05)
    exact = poisson.logpmf(x_ng, expected_ng).sum(1).mean()
    assert model.log_prob_n(counts, np.arange(500)).mean() == pytest.approx(exact, abs=0.02)


def test_mean_model_has_the_most_likely_dispersions():
    counts = one_cell_type(theta=2.0)
    model = MeanModel(counts, None, tiny_config(likelihood="nb"), CPU)
    x_ng, library_n = counts.matrix.toarray(), counts.library_n
    mean_ng = library_n[:, None] * x_ng.sum(0) / x_ng.sum()

    def best_log_prob(g: int) -> float:
        """Compute the log-probability of a gene at its best dispersion."""

        def negative(log_theta: float) -> float:
            theta = np.exp(log_theta)
            return -nbinom.logpmf(x_ng[:, g], theta, theta / (theta + mean_ng[:, g])).sum()

        return -minimize_scalar(negative, bounds=(-4, 8), method="bounded").fun

    best = sum(best_log_prob(g) for g in range(counts.n_genes)) / counts.n_cells
    found = model.log_prob_n(counts, np.arange(counts.n_cells)).mean()
    # The fitted mean model is at most a little better than the reference, and never worse.
    assert best - 0.05 < found < best + 0.5


def test_mean_model_uses_only_training_cells():
    counts = one_cell_type()
    other = replace(counts, matrix=counts.matrix.copy())
    other.matrix.data[other.matrix.indptr[400] :] += 50
    training = np.arange(400)
    config = tiny_config(likelihood="nb")
    first, second = (MeanModel(c, training, config, CPU).log_prob_n(counts, training) for c in (counts, other))
    assert np.array_equal(first, second)


# --- principal components ---------------------------------------------------------------------------------------------


def test_all_components_reconstruct_the_counts():
    counts = one_cell_type(n=120, g=12)
    pca = PcaModel(counts)
    x_ng = counts.matrix.toarray()
    least_ng = counts.library_n[:, None] * x_ng.sum(0) / x_ng.sum() * 0.1
    found_ng = np.concatenate(list(pca.expected(12)))
    detected = x_ng > 2 * least_ng
    np.testing.assert_allclose(found_ng[detected], x_ng[detected], rtol=0.25)
    np.testing.assert_allclose(found_ng.sum(1), counts.library_n, rtol=1e-6)


def test_pca_is_better_than_the_mean_model_for_two_cell_types():
    random = np.random.default_rng(1)
    kinds_kg = random.dirichlet(np.ones(40), size=2)
    counts = draw_counts(600 * kinds_kg[random.integers(2, size=600)], 5.0)
    thinned = thin(counts, seed=0)
    pca, mean = PcaModel(thinned.kept), MeanModel(thinned.kept, None, tiny_config(likelihood="nb"), CPU)
    loss = {
        "pca": thinned.poisson_loss(pca.expected(5)).mean(),
        "own": thinned.poisson_loss(pca.expected_of_cells(5)).mean(),
        "mean": thinned.poisson_loss(mean.expected(thinned.kept, of_cell=False)).mean(),
    }
    assert loss["own"] < loss["pca"] < loss["mean"]


# --- baselines --------------------------------------------------------------------------------------------------------


def test_baselines_are_ranked_as_expected():
    adata = tree(n_cells=600, n_genes=120, depth=4000)
    counts = counts_of(adata)
    from scvae_cli.training.fit import fit_to_end

    model = fit_to_end(counts, tiny_config(n_hidden=64, max_epochs=40, genes="all"))
    found = compare_with_baselines(model, counts)
    by_name = {one.name: one for one in found.models}
    assert list(by_name) == [VAE, LINEAR, PCA, MEAN, NO_DENOISING]
    assert by_name[VAE].vae_advantage_heldout == by_name[VAE].vae_advantage_thinned == (0.0, 0.0)
    assert (
        by_name[PCA].heldout_log_prob
        is by_name[NO_DENOISING].heldout_log_prob
        is by_name[NO_DENOISING].thinned_loss_cell
        is None
    )
    advantage, error = by_name[MEAN].vae_advantage_heldout
    assert advantage > 5 * error > 0, "cells of a tree differ"
    losses = [by_name[name].vae_advantage_thinned[0] for name in (VAE, MEAN, NO_DENOISING)]
    assert losses == sorted(losses)
    assert found.n_heldout == len(model.heldout_cells)


def test_vae_has_no_advantage_for_a_single_cell_type():
    counts = one_cell_type(n=400, theta=3.0)
    from scvae_cli.training.fit import fit_to_end

    model = fit_to_end(counts, tiny_config(likelihood="nb", genes="all"))
    mean = next(one for one in compare_with_baselines(model, counts).models if one.name == MEAN)
    assert mean.vae_advantage_heldout[0] < 3 * mean.vae_advantage_heldout[1] + 0.3
    assert abs(mean.vae_advantage_thinned[0]) < 0.2


def test_linear_baseline_uses_the_recipe_of_a_new_training():
    counts = counts_of(tree(n_cells=150, n_genes=40, depth=800))
    defaults = {"genes": "all", "device": "cpu", "threads": 1, "n_hidden": 16, "max_epochs": 5}
    from scvae_cli.training.fit import fit_to_end

    model = fit_to_end(counts, RunConfig.of(defaults))
    trained = []

    def record(title, counts, config):
        trained.append(fit_to_end(counts, config))
        return trained[-1]

    compare_with_baselines(model, counts, train=record)
    expected = fit_to_end(counts, RunConfig.of(defaults | {"decoder": "linear"})).config
    assert expected.train.weight_decay < model.config.train.weight_decay
    linear = [one.config for one in trained if one.config.model.decoder == "linear"]
    assert len(linear) == 2
    assert linear == [expected, expected]


def test_retraining_keeps_given_options_and_chooses_the_others_again():
    counts = counts_of(tree(n_cells=120, n_genes=40, depth=800))
    from scvae_cli.training.fit import fit_to_end

    given = {
        "genes": "all",
        "device": "cpu",
        "threads": 1,
        "n_hidden": 16,
        "batch_size": 32,
        "patience": 2,
        "beta": 2.0,
    }
    given["decoder_dropout"] = 0.1
    model = fit_to_end(counts, RunConfig.of(given))
    assert requested_config(model) == RunConfig.of(given)
    assert model.config.train.learning_rate is not None
    with_loadings = with_linear_decoder(requested_config(model))
    assert with_loadings.train == requested_config(model).train
    assert with_loadings.model == ModelConfig(decoder="linear", n_hidden=16)


def test_linear_decoder_is_not_compared_with_itself():
    counts = counts_of(tree(n_cells=200, n_genes=60, depth=1500))
    from scvae_cli.training.fit import fit_to_end

    titles: list[str] = []
    model = fit_to_end(counts, tiny_config(decoder="linear", genes="all"))
    found = compare_with_baselines(model, counts, train=recording_train(titles))
    assert [one.name for one in found.models] == [VAE, PCA, MEAN, NO_DENOISING]
    assert titles == ["Training on thinned counts (VAE)"]
    verdicts = baseline_verdicts(found, 1.0)
    assert len(verdicts) == 2
    assert not [verdict for verdict in verdicts if "linear" in verdict.sentence + verdict.remedy]


@pytest.mark.parametrize(("n_cells", "n_heldout"), [(12, 1), (60, 6)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_few_heldout_cells_give_no_clear_verdict(n_cells, n_heldout):
    counts = counts_of(tree(n_cells=n_cells, n_genes=40, depth=1500))
    from scvae_cli.training.fit import fit_to_end

    found = compare_with_baselines(fit_to_end(counts, tiny_config(max_epochs=2, genes="all")), counts)
    assert found.n_heldout == n_heldout
    mean = next(one for one in found.models if one.name == MEAN)
    assert np.isnan(mean.vae_advantage_heldout[1]) == (n_heldout == 1)
    likelihood, _ = baseline_verdicts(found, 1.0)
    assert likelihood.level == "watch"
    assert f"with only {n_heldout} held-out cell" in likelihood.sentence
    assert "nan" not in likelihood.sentence


# --- stability --------------------------------------------------------------------------------------------------------


def test_rotated_embedding_differs_only_in_its_axes():
    random = np.random.default_rng(0)
    z_nk = random.standard_normal((300, 4)) * [4, 3, 2, 1]
    rotated_nk = 2.5 * z_nk @ ortho_group.rvs(4, random_state=0) + 1
    assert disparity(z_nk, rotated_nk) < 1e-12
    assert disparity(z_nk, np.column_stack([rotated_nk, np.zeros(300)])) < 1e-12, (
        "the numbers of coordinates may differ"
    )
    assert shared(nearest_neighbors(z_nk), nearest_neighbors(rotated_nk)) == 1.0
    assert axis_correlation(z_nk, -z_nk) == pytest.approx(1)
    assert axis_correlation(z_nk, rotated_nk) < 0.9


def test_unrelated_embeddings_share_neighbors_by_chance():
    random = np.random.default_rng(0)
    a_nk, b_nk = random.standard_normal((2, 600, 5))
    assert disparity(a_nk, b_nk) > 0.95
    assert shared(nearest_neighbors(a_nk), nearest_neighbors(b_nk)) == pytest.approx(15 / 599, abs=0.01)


def test_trainings_on_a_tree_agree_better_than_chance():
    adata, model = learned()
    found = stability(model, counts_of(adata, "batch"), n_trainings=2)
    assert found.n_trainings == len(found.heldout_elbo) == 2
    assert found.heldout_elbo[0] == model.facts["heldout_elbo"]
    assert found.procrustes < 0.5 < 0.9 < found.procrustes_by_chance
    assert found.neighbors_shared > 5 * 15 / 800
    assert 15 / 800 < found.pca_neighbors_shared < 1
    assert TINY["n_latent"] == 4


# --- cells that the model was not trained on --------------------------------------------------------------------------


def test_training_cells_need_no_other_model(monkeypatch):
    adata, model = learned()
    counts = counts_of(adata, "batch")
    assert model_trained_on(model, counts)[0] is model
    monkeypatch.setattr("scvae_cli.evaluation.retraining.MAX_CELLS", 400)
    other, some = model_trained_on(model, counts)
    assert some.n_cells == other.facts["n_cells"] == 400
    assert set(other.heldout_cells) <= set(some.cell_names)


def test_other_cells_are_evaluated_with_a_model_trained_on_them():
    adata = tree(n_cells=400, n_genes=60, n_batches=2, depth=1500)
    model = scvae.train(adata, **TINY, batch_key="batch", genes="all")
    some = adata[:200].copy()
    counts = counts_of(some, "batch")
    titles: list[str] = []
    diagnosis = scvae.diagnose(some, model, n_samples=2, refine=1, quick=True, inplace=False)
    found = with_trainings(diagnosis, model, counts, DiagnoseOptions(n_trainings=2), train=recording_train(titles))
    assert titles.count("Training on these cells") == 1
    assert found.baselines.n_heldout == 20
    own, _ = model_trained_on(model, counts)
    assert found.stability.heldout_elbo[0] == own.facts["heldout_elbo"] != model.facts["heldout_elbo"]
