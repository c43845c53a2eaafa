"""Canonical latent axes are a rotation that is determined by the expression of the cells, so that two trainings agree.

Letters in array shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from command_line import run_ok
from handmade import random_vae
from workbench import USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.data.formats import open_store
from scvae_cli.errors import ConfigError
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.axes import CanonicalAxes, canonical_axes
from scvae_cli.model.bundle import load
from scvae_cli.model.geometry import Geometry
from scvae_cli.session import Session


def skewed(n: int = 400, k: int = 4, seed: int = 0) -> torch.Tensor:
    """Posterior means with a tail in every dimension."""
    return torch.as_tensor(np.random.default_rng(seed).gamma(2.0, 0.7, size=(n, k)) - 1.4, dtype=torch.float32)


@pytest.fixture(scope="module")
def vae():
    return random_vae(n_layers=2, batches=("a", "b"), k=4, g=30).float()


@pytest.fixture(scope="module")
def axes(vae) -> CanonicalAxes:
    return canonical_axes(Geometry(vae), skewed())


# --- computation ------------------------------------------------------------------------------------------------------


def test_axes_are_orthogonal_and_sorted_by_strength(axes):
    torch.testing.assert_close(axes.rotation_kk @ axes.rotation_kk.T, torch.eye(4), rtol=0, atol=1e-5)
    assert (axes.strength_k.diff() < 0).all()
    assert (axes.strength_k > 0).all()


def test_strengths_are_the_variances_that_a_regression_explains(vae, axes):
    """All axes together explain as much variance as a regression of expression on position with numpy's solver."""
    z_nk = skewed().double().numpy()
    y_ng = Geometry(vae).coordinates(skewed()).detach().double().numpy()
    design = np.column_stack([np.ones(len(z_nk)), z_nk])
    explained_ng = design @ np.linalg.lstsq(design, y_ng, rcond=None)[0]
    np.testing.assert_allclose(axes.strength_k.sum(), explained_ng.var(0).sum(), rtol=1e-4)
    cov_kk = np.cov(z_nk.T, bias=True)
    values, columns = np.linalg.eigh(cov_kk)
    whitened_kg = columns / np.sqrt(values) @ columns.T @ (z_nk - z_nk.mean(0)).T @ (y_ng - y_ng.mean(0)) / len(z_nk)
    left_kk, singular_k, _ = np.linalg.svd(whitened_kg, full_matrices=False)
    np.testing.assert_allclose(axes.strength_k, singular_k**2, rtol=1e-3)
    np.testing.assert_allclose(np.abs(axes.rotation_kk.numpy() @ left_kk), np.eye(4), atol=1e-2)


def test_axes_point_in_the_direction_of_the_longer_tail(axes):
    z_nk = axes.position(skewed())
    assert ((z_nk - z_nk.mean(0)).pow(3).mean(0) > 0).all()
    mirrored = axes.position(-skewed())
    assert ((mirrored - mirrored.mean(0)).pow(3).mean(0) < 0).all()


def test_variance_is_the_diagonal_of_the_rotated_covariance(axes):
    var_nk = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    rotation = axes.rotation_kk
    expected = torch.stack([(rotation @ torch.diag(var_k) @ rotation.T).diagonal() for var_k in var_nk])
    torch.testing.assert_close(axes.variance(var_nk), expected)
    torch.testing.assert_close(axes.variance(var_nk).sum(1), var_nk.sum(1))


def test_axes_of_many_cells_are_computed_from_a_subset(vae):
    """The axes of 20,000 cells are computed from every fourth cell."""
    z_nk = skewed(20_000)
    np.testing.assert_allclose(
        canonical_axes(Geometry(vae), z_nk).strength_k, canonical_axes(Geometry(vae), z_nk[::4]).strength_k, rtol=1e-6
    )


def test_axes_of_a_one_dimensional_latent_space(vae):
    del vae
    axes = canonical_axes(Geometry(random_vae(k=1).float()), -skewed(k=1))
    assert axes.rotation_kk.tolist() == [[-1.0]]
    assert axes.near_ties() == []


@pytest.mark.parametrize(
    ("strength", "ties"),
    [
        ([4.0, 3.9, 1.0], [0]),
        ([4.0, 3.7, 3.6], [1]),
        ([4.0, 4.0, 4.0], [0, 1]),
        ([4.0, 2.0, 1.0], []),
        ([4.0, 1e-3, 1e-3], []),
        ([0.0, 0.0], []),
    ],
)
def test_near_ties_are_neighboring_axes_of_similar_strength(strength, ties):
    assert CanonicalAxes(torch.eye(len(strength)), torch.tensor(strength)).near_ties() == ties


# --- use --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rotated_model_has_the_same_canonical_axes(trained, tmp_path, seed):
    """If the latent space of a model is rotated and mirrored, cells keep their positions along the canonical axes."""
    data = ad.read_h5ad(trained.data)
    rotation_kk = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))).Q
    plain, rotated = load(trained.model), load(trained.model)
    with torch.no_grad():
        posterior = rotated.vae.encoder.posterior
        posterior.weight[:4] = rotation_kk @ plain.vae.encoder.posterior.weight[:4]
        posterior.bias[:4] = rotation_kk @ plain.vae.encoder.posterior.bias[:4]
        for weight in (rotated.vae.decoder.first.weight, rotated.vae.decoder.head.outputs.weight[:, -4:]):
            weight.copy_(weight @ rotation_kk.T)
    found = []
    for model in (plain, rotated):
        session = Session.open(data, model, device="cpu")
        mean_nk = posteriors(model, session.counts).mean_nk
        axes = canonical_axes(Geometry(model.vae), mean_nk)
        found.append((axes.position(mean_nk), axes.strength_k))
    scale = float(found[0][0].std(0).max())
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=2e-3 * scale)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


def test_canonical_axes_only_rotate_the_embedding(trained):
    data, model = ad.read_h5ad(trained.data), load(trained.model)
    plain = scvae.embed(data, model, axes="training", inplace=False)
    canonical = scvae.embed(data, model, inplace=False)
    session = Session.open(data, model)
    mean_nk, var_nk = posteriors(model, session.counts)
    np.testing.assert_array_equal(plain.mean_nk, mean_nk)
    np.testing.assert_array_equal(plain.var_nk, var_nk)
    rotation = model.axes.rotation_kk.numpy()
    np.testing.assert_allclose(canonical.mean_nk, plain.mean_nk @ rotation.T, atol=1e-5)
    np.testing.assert_allclose(canonical.var_nk, plain.var_nk @ (rotation**2).T, rtol=1e-4)
    np.testing.assert_allclose(
        np.linalg.norm(canonical.mean_nk - canonical.mean_nk[0], axis=1),
        np.linalg.norm(plain.mean_nk - plain.mean_nk[0], axis=1),
        atol=1e-4,
    )
    with pytest.raises(ConfigError, match="axes is 'umap'"):
        scvae.embed(data, model, axes="umap", inplace=False)


def test_embed_option_axes_selects_the_axes(bench):
    hint = assert_refused(bench.folder, bench.args("embed", "--axes", "umap"), USAGE, "axes is 'umap'")
    assert "canonical, training" in hint
    written = {}
    for axes in ("training", "canonical"):
        run_ok(*bench.args("embed", "--axes", axes))
        written[axes] = ad.read_h5ad(bench.data).obsm["scvae_latent"]
        record = open_store(bench.data).uns_text("scvae/runs/embed")
        assert f'"axes": "{axes}"' in record
    rotation = load(bench.model).axes.rotation_kk.numpy()
    np.testing.assert_allclose(written["canonical"], written["training"] @ rotation.T, atol=1e-5)
