"""Composition of a new batch: which populations of the training cells it contains, in spite of a common shift."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvae_cli.training.composition import clusters, composition_weights, shares

CENTERS = np.array([[0, 0, 6, 0], [6, 0, 0, 0], [0, 6, 0, 0], [-6, 0, 0, 3]], dtype=float)


def cells(rng: np.random.Generator, share_p: list[float], n: int) -> tuple[torch.Tensor, np.ndarray]:
    population_n = rng.choice(len(share_p), n, p=share_p)
    return torch.as_tensor(CENTERS[population_n] + rng.normal(size=(n, 4)), dtype=torch.float32), population_n


def test_clusters_have_cells_of_one_population():
    position_sk, population_s = cells(np.random.default_rng(0), [0.4, 0.3, 0.2, 0.1], 1000)
    label_s = clusters(position_sk.double(), 10, seed=0).numpy()
    assert all((np.bincount(population_s[label_s == c]) > 0).sum() == 1 for c in range(label_s.max() + 1))


@pytest.mark.parametrize(
    "share_p", [[0.25, 0.25, 0.25, 0.25], [1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.05, 0.1, 0.05, 0.8]]
)
@pytest.mark.parametrize("shift", [0.0, 1.5])
@pytest.mark.parametrize("n", [40, 2000])
def test_weights_follow_the_populations_of_a_shifted_batch(share_p, shift, n):
    rng = np.random.default_rng(1)
    simulated_sk, population_s = cells(rng, [0.4, 0.3, 0.2, 0.1], 1000)
    batch_nk, population_n = cells(rng, share_p, n)
    shifted_nk = batch_nk + shift * torch.tensor([0.5, -0.5, 0.5, 0.5])
    own_bn = torch.ones(1, n, dtype=torch.bool)
    (weight_s,) = composition_weights(shifted_nk, own_bn, simulated_sk, seed=0)
    assert weight_s.shape == (1000,)
    assert weight_s.sum() == pytest.approx(1)
    found_p = np.bincount(population_s, weights=weight_s, minlength=4)
    true_p = np.bincount(population_n, minlength=4) / n
    np.testing.assert_allclose(found_p, true_p, atol=0.03 + 5 / n)


def test_few_cells_have_nearly_the_composition_of_the_training():
    rng = np.random.default_rng(2)
    simulated_sk, population_s = cells(rng, [0.4, 0.3, 0.2, 0.1], 1000)
    batch_nk, _ = cells(rng, [1.0, 0, 0, 0], 2)
    share_p = shares(batch_nk.double(), simulated_sk.double(), torch.as_tensor(population_s))
    np.testing.assert_allclose(share_p, np.bincount(population_s) / 1000, atol=0.15)
