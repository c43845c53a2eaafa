"""The example of a polymer: two latent dimensions describe the shapes of the polymers.

Letters in array shapes: n polymers, g = 24 numbers, k = 2 latent dimensions.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import scvae_cli as scvae
from scvae_cli.model.normal import normal_nll

EXAMPLE = Path(__file__).parents[1] / "examples" / "polymer.py"

pytestmark = pytest.mark.filterwarnings("ignore::scvae_cli.errors.ScvaeWarning")


@pytest.fixture(scope="module")
def polymer():
    spec = importlib.util.spec_from_file_location("polymer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def learned_shapes(polymer):
    return polymer.trained(600)


def test_shapes_are_aligned(polymer):
    shapes_nb2 = polymer.shapes(50, seed=3)
    np.testing.assert_allclose(polymer.bonds(shapes_nb2.reshape(50, -1)), 1, rtol=1e-9)
    np.testing.assert_allclose(shapes_nb2.mean(1), 0, atol=1e-9)
    second_n22 = np.einsum("nbi,nbj->nij", shapes_nb2, shapes_nb2)
    np.testing.assert_allclose(second_n22[:, 0, 1], 0, atol=1e-9)
    assert (second_n22[:, 0, 0] > second_n22[:, 1, 1]).all()
    assert (shapes_nb2[:, -1, 0] > shapes_nb2[:, 0, 0]).all()
    # The result does not depend on the previous rotation, and is not the mirror image.
    angle = 2.2
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    for shape in shapes_nb2[:10]:
        np.testing.assert_allclose(polymer.turned(shape @ rotation + 5), shape, atol=1e-9)


def test_normal_loss_is_a_scaled_mean_squared_error():
    random = torch.Generator().manual_seed(0)
    x_ng, one_ng, two_ng = (torch.randn(7, 24, generator=random, dtype=torch.float64) for _ in range(3))
    log_sd_g = torch.full((24,), 0.5 * np.log(0.06), dtype=torch.float64)
    difference_n = (normal_nll(x_ng, one_ng, log_sd_g) - normal_nll(x_ng, two_ng, log_sd_g)).sum(1)
    error_n = [((x_ng - mean_ng) ** 2).mean(1) for mean_ng in (one_ng, two_ng)]
    torch.testing.assert_close(difference_n, 200 * (error_n[0] - error_n[1]))


def test_size_is_smooth_over_the_latent_plane(polymer, learned_shapes):
    adata, model = learned_shapes
    z_nk = scvae.embed(adata, model, inplace=False).mean_nk
    size_n = polymer.size(adata.X).numpy()
    assert polymer.roughness(z_nk, size_n) < 0.25
    assert polymer.roughness(np.random.default_rng(0).permutation(z_nk), size_n) > 0.9


def test_shapes_along_a_trajectory_keep_their_bonds(polymer, learned_shapes):
    adata, model = learned_shapes
    z_nk = scvae.embed(adata, model, inplace=False).mean_nk
    ends = [adata.obs_names[i] for i in z_nk[:, 0].argsort()[[30, -30]]]
    trajectory = scvae.interpolate(adata, model, cells=ends, n_steps=25, inplace=False)
    lengths = polymer.bonds(trajectory.mean_tg)
    assert float(lengths.min()) > 0.8
    assert float(lengths.max()) < 1.1
    # In the plain mean of two shapes, the bonds between beads are shorter than in the decoded shapes.
    two = adata[ends].X
    assert float(lengths.mean()) > float(polymer.bonds(two.mean(0, keepdims=True)).mean())


def test_optimization_finds_a_shape_more_compact_than_the_data(polymer, learned_shapes):
    adata, model = learned_shapes
    smallest = float(polymer.size(adata.X).min())
    constrained, unconstrained = (
        scvae.optimize(
            adata, model, toward=polymer.compactness, groupby="kind", group="shape", unconstrained=off, inplace=False
        )
        for off in (False, True)
    )
    assert (
        constrained.trajectory.steps.off_manifold_t.max() <= 0.95 < unconstrained.trajectory.steps.off_manifold_t.max()
    )
    assert constrained.extrapolated_from is None
    assert unconstrained.extrapolated_from is not None
    assert (
        float(polymer.size(constrained.trajectory.mean_tg[-1:]))
        > smallest
        > float(polymer.size(unconstrained.trajectory.mean_tg[-1:]))
    )
    lengths = polymer.bonds(unconstrained.trajectory.mean_tg[-1:])
    assert 0.6 < float(lengths.min()) < float(lengths.max()) < 1.2
