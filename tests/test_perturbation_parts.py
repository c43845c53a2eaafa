"""The single steps of `scvae perturb` are compared with known results."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.stats import nbinom, poisson

from scvae_cli.data.counts import Counts
from scvae_cli.tools.perturb.design import Design, design
from scvae_cli.tools.perturb.expected_log import mean_log1p
from scvae_cli.tools.perturb.latent_shift import LatentShifts
from scvae_cli.tools.perturb.observed_change import Observed, accuracy
from scvae_cli.tools.perturb.pooling import between_variance, combined, pooled
from scvae_cli.tools.perturb.result import Recipe
from scvae_cli.tools.perturb.validation import candidates, choose


def groups_and_labels(*sizes: tuple[str, str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Groups and labels of some cells."""
    groups = np.concatenate([[group] * n for group, _, n in sizes]).astype(object)
    return groups, np.concatenate([[label] * n for _, label, n in sizes]).astype(object)


def test_optimal_transport_and_centroids_agree_if_all_cells_shift_equally():
    group_n, label_n = groups_and_labels(("a", "0", 30), ("b", "0", 40), ("b", "1", 40), ("c", "0", 25), ("c", "1", 25))
    rng = np.random.default_rng(0)
    z_nk = rng.normal(size=(160, 3))
    step_k = np.array([1.0, -2.0, 0.5])
    for group in "bc":
        start = z_nk[(group_n == group) & (label_n == "0")]
        z_nk[(group_n == group) & (label_n == "1")] = rng.permutation(start + step_k)
    tested_design = design("a", "0", "1", group_n=group_n, label_n=label_n, perturbation_key="what")
    latent = LatentShifts(torch.as_tensor(z_nk, dtype=torch.float32))
    for method in ("centroid", "ot"):
        np.testing.assert_allclose(latent.shift(tested_design, method), np.tile(step_k, (30, 1)), atol=1e-5)


def test_near_groups_have_larger_weights():
    group_n, label_n = groups_and_labels(*((group, label, 5) for group in "abc" for label in "01"))
    x_n = np.repeat([0.0, 9.0, 1.0, 2.0, 8.0, 12.0], 5)[:, None]
    latent = LatentShifts(torch.as_tensor(x_n, dtype=torch.float32))
    tested_design = design("a", "0", "1", group_n=group_n, label_n=label_n, perturbation_key="what")
    near, far = latent.weights(tested_design, ("b", "c"))
    squared = np.array([1.0, 64.0])
    expected = np.exp(-2 * squared / squared.mean())
    np.testing.assert_allclose([near, far], expected / expected.sum())
    np.testing.assert_allclose(latent.shift(tested_design, "centroid"), np.full((5, 1), near * 1 + far * 4), rtol=1e-5)


def test_all_contributing_groups_are_listed():
    """Groups b and c have undergone B+C, but only c has also undergone B and C; b helps to learn the change of B+C."""
    cells = [("a", "0"), ("a", "B"), ("a", "C"), ("b", "0"), ("b", "B+C"), *(("c", x) for x in ("0", "B", "C", "B+C"))]
    group_n, label_n = groups_and_labels(*((group, label, 5) for group, label in cells))
    tested_design = design("a", "0", "B+C", group_n=group_n, label_n=label_n, perturbation_key="what")
    assert tested_design.learned_from == {"B+C": ("b", "c"), "B": ("a", "c"), "C": ("a", "c")}


def test_pooled_change_is_the_posterior_mean():
    """A pooled change has a smaller error than any fixed mixture of the group's own change and the groups' mean."""
    rng = np.random.default_rng(0)
    n_groups, n_genes = 12, 4000
    spread_g = np.repeat([0.0, 0.5], n_genes // 2)
    error_sg = rng.uniform(0.05, 0.4, (n_groups, n_genes))
    true_sg = rng.normal(0, 1, n_genes) + spread_g * rng.standard_normal((n_groups, n_genes))
    seen_sg = true_sg + np.sqrt(error_sg) * rng.standard_normal((n_groups, n_genes))
    wide = spread_g > 0
    found_g = between_variance(seen_sg, error_sg)
    assert found_g[wide].mean() == pytest.approx(0.25, rel=0.03)
    assert found_g[~wide].mean() < 0.05
    fixed = [share * seen_sg[0] + (1 - share) * seen_sg[1:].mean(0) for share in np.linspace(0, 1, 21)]
    least = min(np.square(guess_g - true_sg[0]).mean() for guess_g in fixed)
    assert np.square(pooled(seen_sg, error_sg) - true_sg[0]).mean() < 0.9 * least
    # If the variance between groups is known, the pooled change is the posterior mean of a normal distribution.
    known = pooled(seen_sg[:, wide], error_sg[:, wide])
    prior_g = 0.25 + 1 / (1 / (error_sg[1:, wide] + 0.25)).sum(0)
    others_g = np.average(seen_sg[1:, wide], axis=0, weights=1 / (error_sg[1:, wide] + 0.25))
    ideal_g = (prior_g * seen_sg[0, wide] + error_sg[0, wide] * others_g) / (prior_g + error_sg[0, wide])
    ideal, reached = (np.square(guess_g - true_sg[0, wide]).mean() for guess_g in (ideal_g, known))
    assert reached < 1.15 * ideal
    np.testing.assert_array_equal(pooled(seen_sg[:1], error_sg[:1]), seen_sg[0])
    exact = np.array([[2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    np.testing.assert_allclose(pooled(exact, np.zeros((3, 2))), exact[0])


def test_errors_of_effects_equal_those_of_repeated_samples():
    """A gene without counts has an error above zero."""
    rng = np.random.default_rng(0)
    n_genes, n_cells, n_samples = 5, 60, 400
    members = {("a", "0"): np.arange(n_cells), ("a", "1"): np.arange(n_cells, 2 * n_cells)}
    tested_design = Design(group="a", control="0", treated="1", parts=(), members=members)

    def effect(shown: np.ndarray, pseudo: float):
        names = [np.asarray([f"{i}" for i in range(n)]) for n in shown.shape]
        matrix = sp.csr_matrix(shown, dtype=np.float32)
        counts = Counts(matrix=matrix, cell_names=names[0], gene_names=names[1], source="X")
        return Observed(counts).effect(tested_design, "a", "1", pseudo=pseudo)

    effects = []
    for _ in range(n_samples):
        shown = rng.poisson(np.array([4.0, 40.0, 200.0, 9.0, 900.0]) * rng.gamma(5, 1 / 5, (2 * n_cells, n_genes)))
        effects.append(effect(shown, 1e-6))
    change, error = (np.stack(parts) for parts in zip(*effects, strict=True))
    np.testing.assert_allclose(error.mean(0), change.var(0), rtol=0.25)
    shown[:, 0] = 0
    change_g, error_g = effect(shown, 1e-4)
    assert change_g[0] == 0
    # Both rates equal the pseudo-count 1e-4, which is 1e-4 · 60 · 1150 = 6.9 molecules in 60 cells of 1150 counts.
    assert error_g[0] == pytest.approx(2 / 6.9, rel=0.3)


def test_combined_change_adds_half_of_other_changes_in_the_same_direction():
    single = np.array([[2.0, 2.0, -1.0, 0.0], [1.0, -1.0, -3.0, 4.0]])
    np.testing.assert_array_equal(combined(single), [2.5, 1.0, -3.5, 4.0])
    np.testing.assert_array_equal(combined(single[:1]), single[0])
    np.testing.assert_array_equal(combined(np.array([[1.0], [1.0], [-2.0], [1.0]])), [0.0])


def test_expected_logs_equal_sums_over_counts():
    mean = np.array([1e-3, 0.3, 4.0, 30.0, 300.0])
    theta, keep, scale = np.array([0.5, 3.0, 0.2, 8.0, 20.0]), np.array([1.0, 0.7, 1.0, 0.5, 1.0]), 5.0
    x = np.arange(20_000)
    tensors = [torch.as_tensor(values)[None] for values in (mean, keep)]
    one = torch.tensor([scale], dtype=torch.float64)
    found = mean_log1p(tensors[0], torch.as_tensor(theta), tensors[1], one)[0]
    for g in range(5):
        pmf = nbinom.pmf(x, theta[g], theta[g] / (theta[g] + mean[g]))
        assert float(found[g]) == pytest.approx(keep[g] * (pmf @ np.log1p(scale * x)), rel=0.01)
    found = mean_log1p(tensors[0], None, torch.ones(1, 5), one)[0]
    for g in range(5):
        assert float(found[g]) == pytest.approx(poisson.pmf(x, mean[g]) @ np.log1p(scale * x), rel=0.003)


@pytest.mark.parametrize("theta", [0.05, 0.5, 1.0, 3.0, 20.0, 1e4, None])
def test_expected_logs_are_accurate_for_any_mean_and_dispersion(theta):
    """Overdispersed counts with a large mean, for which the logarithm is most curved, are included."""
    for mean in (1e-3, 0.3, 20.0, 50.0, 300.0, 1e4):
        variance = mean if theta is None else mean + mean**2 / theta
        x = np.arange(int(mean + 12 * np.sqrt(variance) + 40 * variance / mean) + 1)
        pmf = poisson.pmf(x, mean) if theta is None else nbinom.pmf(x, theta, theta / (theta + mean))
        for scale in (0.05, 5.0):
            parts = [torch.full((1, 1), value, dtype=torch.float64) for value in (mean, 1.0, scale)]
            theta_g = None if theta is None else torch.tensor([theta], dtype=torch.float64)
            found = float(mean_log1p(parts[0], theta_g, parts[1], parts[2][0]))
            assert found == pytest.approx(pmf @ np.log1p(scale * x), rel=1e-3)


def test_recipe_with_the_smallest_error_is_chosen():
    recipes = candidates("auto", held_out=True)
    assert recipes[0] == Recipe(method="centroid", mean_shift_share=0.5)
    assert len(recipes) == 10
    assert {recipe.mean_shift_share for recipe in candidates("ot", held_out=False)} == {0.5, 0.75, 1.0}
    assert candidates("ot", held_out=True, only_own_parts=True) == (Recipe(method="ot", mean_shift_share=1.0),)
    true_g = np.random.default_rng(0).normal(size=60)
    noise_g = np.random.default_rng(1).normal(size=60)

    def trial(held_out: bool) -> Any:
        changes = [true_g if recipe == recipes[7] else true_g + noise_g for recipe in recipes]
        accuracy_of = partial(accuracy, true_g=true_g, top=np.arange(50))
        return SimpleNamespace(
            changes=lambda _: changes, accuracy=accuracy_of, true_g=true_g, top=np.arange(50), held_out=held_out
        )

    assert choose([trial(False)], recipes) == recipes[7]
    assert choose([trial(True)], recipes) == replace(recipes[7], scale=pytest.approx(1))
    assert choose([], recipes) == recipes[0]
