"""The embedding in expression space: the formula, the components, and the meaning of distances.

Letters in array shapes: n cells, g genes, j components, m random directions, b batches.
"""

from __future__ import annotations

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from command_line import run_ok
from handmade import random_vae, theta_of
from scipy.stats import spearmanr
from simulated import TINY, counts_of, learned, tiny_config, tree

import scvae_cli as scvae
from scvae_cli.data.minibatches import CellTable
from scvae_cli.errors import DataError, ModelError, ScvaeWarning
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.expression_space import NOISE_SHARE, RANDOM_DIRECTIONS, states_and_residuals
from scvae_cli.model.geometry import Geometry
from scvae_cli.session import Session
from scvae_cli.training.recipe import SMALL_NETWORK, USUAL_NETWORK, VERY_FEW_CELLS, settle

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return learned()[0].copy()


@pytest.fixture(scope="module")
def model():
    return learned()[1]


def plain_formula(
    vae, x_ng: np.ndarray, z_nk: torch.Tensor, batch_n: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the states y and residuals r by the formulas of `expression_space.py`, cell by cell."""
    theta_g, depth = theta_of(vae), float(vae.reference_library)
    theta_g = np.full(vae.n_genes, np.inf) if theta_g is None else theta_g.numpy()
    states, residuals = [], []
    for x_g, z_k, batch in zip(x_ng, z_nk, batch_n if batch_n is not None else [None] * len(x_ng), strict=True):
        with torch.no_grad():
            of_batch = [
                vae.decode(z_k[None], None if not vae.batches else torch.tensor([b])).logits_ng[0].numpy()
                for b in range(max(1, len(vae.batches)))
            ]
        share_b = vae.batch_share_b.numpy() if vae.batches else np.ones(1)
        # Averages of the decoder's outputs over batches are correct only without batch effects on the hidden layer.
        assert vae.decoder.batch is None or not vae.decoder.batch.hidden_bh.any()
        average_g = np.einsum("b,bg->g", share_b, np.stack(of_batch))
        own_g = average_g if batch is None or batch < 0 else of_batch[batch]
        mean_g, expected_g = (
            library * np.exp(logits_g) / np.exp(logits_g).sum()
            for logits_g, library in ((average_g, depth), (own_g, x_g.sum()))
        )
        with np.errstate(invalid="ignore"):
            curved_g = 2 * np.sqrt(theta_g) * np.arcsinh(np.sqrt(mean_g / theta_g))
        states.append(np.where(np.isinf(theta_g), 2 * np.sqrt(mean_g), curved_g))
        residuals.append(np.clip((x_g - expected_g) / np.sqrt(expected_g + expected_g**2 / theta_g), -10, 10))
    return np.stack(states), np.stack(residuals)


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("batches", [(), ("a", "b", "c")])
@pytest.mark.parametrize("n_layers", [1, 2])
def test_states_and_residuals_equal_the_plain_formula(likelihood, batches, n_layers):
    vae = random_vae(likelihood, n_layers=n_layers, batches=batches, k=3, g=7, seed=n_layers)
    if batches:
        torch.nn.init.zeros_(vae.decoder.batch.hidden_bh)
    random = np.random.default_rng(0)
    x_ng = random.poisson(3.0, (9, 7)).astype(np.float32)
    x_ng[0, 0] = 5000  # this residual is clipped
    adata = ad.AnnData(x_ng)
    batch_n = np.array([0, 1, 2, -1, 0, 1, 2, -1, 0]) if batches else None
    table = CellTable(counts_of(adata).matrix, batch_n, CPU)
    z_nk = torch.as_tensor(random.standard_normal((9, 3)))
    state_ng, residual_ng = states_and_residuals(vae, table.take(np.arange(9)), z_nk)
    expected_state_ng, expected_residual_ng = plain_formula(vae, x_ng.astype(float), z_nk, batch_n)
    np.testing.assert_allclose(state_ng, expected_state_ng, rtol=1e-6)
    np.testing.assert_allclose(residual_ng, expected_residual_ng, rtol=1e-5, atol=1e-6)


def test_real_numbers_are_scaled_by_the_noise():
    random = np.random.default_rng(1)
    adata = ad.AnnData(random.normal(size=(80, 3)) @ random.normal(size=(3, 12)) + random.normal(size=(80, 12)))
    model = scvae.train(adata, **TINY | {"max_epochs": 5}, likelihood="normal")
    embedding = scvae.embed(adata, model, inplace=False)
    assert embedding.position_nj.shape == (80, 12)
    table = CellTable(counts_of(adata).matrix, None, CPU, real=True)
    z_nk = posteriors(model, Session.open(adata, model).counts).mean_nk
    state_ng, residual_ng = states_and_residuals(model.vae, table.take(np.arange(80)), z_nk)
    sd_g = model.vae.decoder.head.log_sd_g.detach().exp().numpy()
    clipped = np.abs(residual_ng.numpy()) >= 10
    np.testing.assert_allclose(
        (state_ng + residual_ng).numpy()[~clipped], (adata.X / sd_g)[~clipped], rtol=2e-3, atol=1e-3
    )


def expression_of(cells: ad.AnnData, model) -> tuple[np.ndarray, np.ndarray]:
    """Decoded states and residuals of all cells, float64."""
    session = Session.open(cells, model)
    batch_n = np.searchsorted(model.batches, cells.obs["batch"].astype(str))
    table = CellTable(session.counts.matrix, batch_n, CPU)
    parts = states_and_residuals(model.vae, table.take(np.arange(cells.n_obs)), session.cells.mean_nk)
    return parts[0].double().numpy(), parts[1].double().numpy()


def test_components_equal_a_principal_component_analysis(cells, model):
    state_ng, residual_ng = expression_of(cells, model)
    training = ~model.held_out(cells.obs_names)
    weight = float(model.expression.residual_weight)
    expression_ng = state_ng + weight * residual_ng
    center_g = expression_ng[training].mean(0)
    centered_ng = state_ng[training] - state_ng[training].mean(0)
    singular, component = np.linalg.svd(centered_ng, full_matrices=False)[1:]
    component_jg = model.expression.component_jg.double().numpy()
    j = len(component_jg)
    np.testing.assert_allclose(component_jg @ component_jg.T, np.eye(j), atol=1e-5)
    # Nearly equal components may mix: compare the variance that they explain together.
    explained = np.square(centered_ng @ component_jg.T).sum(0)
    assert (np.diff(explained) < 0.02 * explained[:-1]).all()
    assert explained.sum() > 0.995 * np.square(singular[:j]).sum()
    overlap = np.abs(np.sum(component_jg[:3] * component[:3], axis=1))
    assert (overlap > 0.999).all()
    position_nj = scvae.embed(cells, model, inplace=False).position_nj
    expected_nj = (expression_ng - center_g) @ component_jg.T
    np.testing.assert_allclose(position_nj[:, :j], expected_nj, rtol=1e-3, atol=5e-3)
    np.testing.assert_array_equal(Session.open(cells, model).expression, position_nj[:, :j])
    position_nj = position_nj[:, :j]
    # New cells vary as much as the training cells do.
    spread = [np.square(position_nj[part] - position_nj[part].mean(0)).sum(1).mean() for part in (~training, training)]
    assert spread[0] > 0.8 * spread[1]
    assert (np.mean(position_nj[training] ** 3, axis=0) > -1e-2).all()


def test_residuals_have_at_most_their_share_of_the_variance(cells, model):
    state_ng, residual_ng = expression_of(cells, model)
    training = ~model.held_out(cells.obs_names)
    component_jg, weight = model.expression.component_jg.double().numpy(), float(model.expression.residual_weight)
    assert 0 < weight <= 1
    added = weight**2 * (residual_ng[training] @ component_jg.T).var(0).sum()
    assert added <= 1.01 * NOISE_SHARE * state_ng[training].var(0).sum()


def test_residuals_along_random_directions_have_their_share_of_the_variance(cells, model):
    state_ng, residual_ng = expression_of(cells, model)
    training = ~model.held_out(cells.obs_names)
    space = model.expression
    random_mg, component_jg = space.random_mg.double().numpy(), space.component_jg.double().numpy()
    assert random_mg.shape == (min(RANDOM_DIRECTIONS, model.vae.n_genes - len(component_jg)), model.vae.n_genes)
    np.testing.assert_allclose(random_mg @ component_jg.T, 0, atol=1e-4)
    np.testing.assert_allclose(
        random_mg @ random_mg.T / np.square(random_mg[0]).sum(), np.eye(len(random_mg)), atol=1e-4
    )
    position_nm = scvae.embed(cells, model, inplace=False).position_nj[:, len(component_jg) :]
    np.testing.assert_allclose(position_nm, residual_ng @ random_mg.T, rtol=1e-3, atol=5e-3)
    total = state_ng[training].var(0).sum()
    assert position_nm[training].var(0).sum() == pytest.approx(NOISE_SHARE * total, rel=1e-2)
    # New cells have as much noise as the training cells.
    assert position_nm[~training].var(0).sum() == pytest.approx(NOISE_SHARE * total, rel=0.25)


def test_distances_correlate_with_fisher_rao_lengths(cells, model):
    session = Session.open(cells, model)
    random = np.random.default_rng(0)
    pair_p2 = random.integers(0, cells.n_obs, (300, 2))
    pair_p2 = pair_p2[pair_p2[:, 0] != pair_p2[:, 1]]
    ends = session.cells.mean_nk[torch.as_tensor(pair_p2)]
    along_t = torch.linspace(0, 1, 17)[:, None, None]
    line_tpk = ends[None, :, 0] + along_t * (ends[:, 1] - ends[:, 0])[None]
    with torch.no_grad():
        y_tpg = Geometry(model.vae).coordinates(line_tpk.flatten(0, 1)).reshape(17, len(pair_p2), -1)
    length_p = y_tpg.diff(dim=0).norm(dim=2).sum(0).numpy()
    position_nj = session.embedding
    distance_p = np.linalg.norm(position_nj[pair_p2[:, 0]] - position_nj[pair_p2[:, 1]], axis=1)
    assert spearmanr(distance_p, length_p).statistic > 0.9


def test_position_does_not_depend_on_other_cells_or_their_order(cells, model):
    expected = scvae.embed(cells, model, inplace=False).position_nj
    order = np.random.default_rng(0).permutation(cells.n_obs)
    shuffled = scvae.embed(cells[order].copy()[:, ::-1].copy(), model, inplace=False).position_nj
    np.testing.assert_allclose(shuffled, expected[order], atol=1e-3)
    single = scvae.embed(cells[3:4].copy(), model, inplace=False).position_nj
    np.testing.assert_allclose(single, expected[3:4], atol=1e-3)


def test_cells_of_unknown_batches_get_the_average_batch(cells, model):
    some = cells[:6].copy()
    unlabeled = some.copy()
    del unlabeled.obs["batch"]
    with pytest.warns(ScvaeWarning, match="no column 'batch'"):
        average = scvae.embed(unlabeled, model, inplace=False).position_nj
    some.obs["batch"] = some.obs["batch"].astype(object)
    some.obs.iloc[0, some.obs.columns.get_loc("batch")] = "new"
    some.obs.iloc[1, some.obs.columns.get_loc("batch")] = None
    with (
        pytest.warns(ScvaeWarning, match="1 cell has no batch"),
        pytest.warns(ScvaeWarning, match="not in the training data"),
    ):
        got = scvae.embed(some, model, inplace=False).position_nj
    own = scvae.embed(cells[:6].copy(), model, inplace=False).position_nj
    np.testing.assert_allclose(got[:2], average[:2], atol=1e-4)
    np.testing.assert_allclose(got[2:], own[2:], atol=1e-4)
    assert np.abs(own[:2] - average[:2]).max() > 1e-2


def test_missing_genes_have_no_residual(cells, model):
    fewer = cells[:, 10:].copy()
    with pytest.warns(ScvaeWarning, match="missing"):
        session = Session.open(fewer, model)
    with_zeros = cells.copy()
    kept_g = (np.arange(cells.n_vars) >= 10).astype(np.float32)
    with_zeros.X = sp.csr_matrix(cells.X.multiply(kept_g))
    zeros = Session.open(with_zeros, model)
    state_ng, residual_ng = expression_of(with_zeros, model)
    residual_ng[:, :10] = 0
    expected = state_ng + float(model.expression.residual_weight) * residual_ng
    expected = (expected - model.expression.center_g.numpy()) @ model.expression.component_jg.numpy().T
    expected = np.hstack([expected, residual_ng @ model.expression.random_mg.numpy().T])
    np.testing.assert_allclose(session.embedding, expected, atol=5e-3)
    assert np.abs(session.embedding - zeros.embedding).max() > 0.01


def test_saved_model_gives_the_same_embedding(cells, model, tmp_path):
    model.save(tmp_path / "kept.scvae")
    np.testing.assert_array_equal(
        scvae.embed(cells, tmp_path / "kept.scvae", inplace=False).position_nj,
        scvae.embed(cells, model, inplace=False).position_nj,
    )


@pytest.mark.parametrize("n_cells", [10, 11, 40])
def test_few_cells_have_few_dimensions(n_cells):
    cells = tree(n_cells=60)[:n_cells].copy()
    model = scvae.train(cells, **TINY | {"max_epochs": 2}, genes="all")
    position_nj = scvae.embed(cells, model, inplace=False).position_nj
    components = min(30, model.facts["n_training"] - 1)
    assert position_nj.shape == (n_cells, components + min(RANDOM_DIRECTIONS, components))
    assert np.isfinite(position_nj).all()


def test_option_space_selects_the_embedding(bench):
    run_ok(*bench.args("embed"))
    expression = ad.read_h5ad(bench.data)
    run_ok(*bench.args("embed", "--space", "latent"))
    latent = ad.read_h5ad(bench.data)
    np.testing.assert_array_equal(latent.obsm["X_scvae"], latent.obsm["scvae_latent"])
    np.testing.assert_array_equal(latent.obsm["scvae_latent"], expression.obsm["scvae_latent"])
    assert expression.obsm["X_scvae"].shape[1] > expression.obsm["scvae_latent"].shape[1] == 4


@pytest.mark.parametrize("n_training", [10, VERY_FEW_CELLS - 1, VERY_FEW_CELLS, 10**6])
def test_size_of_the_network_depends_on_the_number_of_cells(n_training):
    def size_of(config):
        settled = settle(config, n_training).model
        return settled.n_latent, settled.n_hidden

    small = n_training < VERY_FEW_CELLS
    unset = tiny_config(n_latent=None, n_hidden=None)
    assert size_of(unset) == (SMALL_NETWORK if small else USUAL_NETWORK)
    assert size_of(tiny_config()) == (4, 32)
    assert size_of(tiny_config(n_hidden=None))[0] == 4


def test_model_of_an_earlier_version_has_only_the_latent_embedding(cells, model, tmp_path):
    folder = tmp_path / "earlier.scvae"
    replace(model, expression=None).save(folder)
    assert json.loads((folder / "config.json").read_text())["format"] == 3
    with pytest.raises(ModelError, match="earlier version"):
        scvae.embed(cells, folder, inplace=False)
    latent = scvae.embed(cells, folder, space="latent", inplace=False).position_nj
    np.testing.assert_array_equal(latent, scvae.embed(cells, model, space="latent", inplace=False).position_nj)


@pytest.mark.parametrize("options", [{}, {"space": "latent"}, {"umap": True}, {"refine": 2}])
def test_cells_without_a_finite_position_are_refused(options):
    random = np.random.default_rng(0)
    cells = ad.AnnData(random.normal(size=(60, 8)).astype(np.float32))
    model = scvae.train(cells, **TINY | {"max_epochs": 1}, likelihood="normal")
    cells.X[7, 3] = 1e30
    with pytest.raises(DataError, match=r"no finite position for 1 cell.*'7'"):
        scvae.embed(cells, model, **options)
    assert not cells.obsm.keys()


def test_cells_without_a_batch_are_counted_in_a_warning(cells, model):
    some = cells[:6].copy()
    some.obs["batch"] = [None, np.nan, *some.obs["batch"].astype(str)[2:]]
    with pytest.warns(ScvaeWarning, match=r"2 cells have no batch in obs\['batch'\]"):
        scvae.embed(some, model, inplace=False)
