"""The latent density is compared with scipy and scikit-learn, and its calibration is tested on held-out cells."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from handmade import clusters, density_of, points, ring
from scipy import stats
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture

from scvae_cli.model import bundle
from scvae_cli.model.density import LatentDensity, fit_density

CENTERS = np.array([[0.0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]])


def random_mixture(c: int = 3, k: int = 4, seed: int = 0) -> tuple[LatentDensity, np.ndarray, np.ndarray, np.ndarray]:
    """A density in float64, and its weights, means and covariances."""
    random = np.random.default_rng(seed)
    weight_c, mean_ck = random.dirichlet(np.ones(c)), random.normal(size=(c, k))
    root_ckk = random.normal(size=(c, k, k))
    cov_ckk = root_ckk @ root_ckk.transpose(0, 2, 1) + 0.1 * np.eye(k)
    whiten_ckk = np.stack([np.linalg.inv(np.linalg.cholesky(cov)).T for cov in cov_ckk])
    parts = (np.log(weight_c), mean_ck, whiten_ckk, np.arange(1.0, 11.0))
    return LatentDensity(*(torch.as_tensor(part) for part in parts)), weight_c, mean_ck, cov_ckk


def certain_posteriors(x_nk: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Posteriors that are almost certain."""
    return points(x_nk), torch.full(x_nk.shape, 1e-8)


# --- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("c", "k"), [(1, 1), (3, 4), (5, 2)])
def test_log_density_equals_scipy(c, k):
    density, weight_c, mean_ck, cov_ckk = random_mixture(c, k)
    z_nk = np.random.default_rng(1).normal(size=(20, k)) * 3
    each = [np.log(w) + stats.multivariate_normal(m, s).logpdf(z_nk)
            for w, m, s in zip(weight_c, mean_ck, cov_ckk, strict=True)]  # fmt: skip
    np.testing.assert_allclose(density.log_prob(torch.as_tensor(z_nk)), logsumexp(each, axis=0), rtol=1e-9)


def test_distance_is_to_the_nearest_component():
    density, _, mean_ck, cov_ckk = random_mixture(3, 2)
    z_nk = np.random.default_rng(1).normal(size=(20, 2)) * 3
    pairs = list(zip(mean_ck, cov_ckk, strict=True))
    nearest_n = [min((z_k - m_k) @ np.linalg.solve(s_kk, z_k - m_k) for m_k, s_kk in pairs) for z_k in z_nk]
    np.testing.assert_allclose(density.squared_distance(torch.as_tensor(z_nk)), nearest_n, rtol=1e-9)


def test_log_density_is_differentiable():
    density = random_mixture()[0]
    z_nk = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    assert torch.autograd.gradcheck(density.log_prob, z_nk)


def test_off_manifold_score_is_a_share_of_heldout_cells():
    density = dataclasses.replace(density_of(clusters(CENTERS, 50)), heldout_nll=torch.arange(1.0, 11.0))
    nll = -float(density.log_prob(torch.zeros(1, 3)))
    for above in (0, 3, 10):
        moved = torch.arange(10) - (above - 0.5) + nll
        shifted = dataclasses.replace(density, heldout_nll=moved)
        assert float(shifted.off_manifold(torch.zeros(1, 3))) == pytest.approx((above + 0.5) / 11)
    assert density.nll_at(0.5) == 5.5
    assert density.nll_at(1.0) == 10.0


# --- the fit ----------------------------------------------------------------------------------------------------------


def test_fit_recovers_a_simulated_mixture():
    x_nk = clusters(CENTERS, 500)
    out = np.arange(len(x_nk)) % 5 == 0
    density = fit_density(certain_posteriors(x_nk[~out]), certain_posteriors(x_nk[out]), seed=0)
    fresh_nk = clusters(CENTERS, 500, seed=1)
    found = density.log_prob(points(fresh_nk)).numpy()
    reference = GaussianMixture(4, n_init=5, random_state=0).fit(x_nk[~out])
    assert found.mean() > reference.score(fresh_nk) - 0.05
    # There are no more components than clusters, and every cluster has its center.
    assert 4 <= len(density.log_weight_c) <= 8
    to_center = torch.cdist(points(CENTERS), density.mean_ck).min(1).values
    assert to_center.max() < 0.1


def test_fit_of_overlapping_clusters_is_as_good_as_scikit_learn():
    random = np.random.default_rng(0)
    centers = random.normal(size=(10, 5)) * 1.5
    train_nk, heldout_nk, fresh_nk = (clusters(centers, n, 0.6, seed) for n, seed in ((200, 1), (50, 2), (200, 3)))
    density = fit_density(certain_posteriors(train_nk), certain_posteriors(heldout_nk), seed=0)
    reference = max(
        (GaussianMixture(c, n_init=3, random_state=0).fit(train_nk) for c in (4, 8, 10, 16)),
        key=lambda mixture: mixture.score(heldout_nk),
    )
    assert float(density.log_prob(points(fresh_nk)).mean()) > reference.score(fresh_nk) - 0.1


def test_fit_of_one_gaussian_has_one_component():
    x_nk = np.random.default_rng(0).normal(size=(2000, 4))
    density = density_of(x_nk)
    assert len(density.log_weight_c) == 1
    truth = stats.multivariate_normal(np.zeros(4)).logpdf(x_nk)
    assert np.abs(density.log_prob(points(x_nk)).numpy() - truth).mean() < 0.1


def test_posterior_variance_widens_the_density():
    x_nk = points(np.random.default_rng(0).normal(size=(4000, 2)))
    wide = torch.tensor([3.0, 0.0]).expand(4000, 2)
    density = fit_density((x_nk, wide), (x_nk[:500], wide[:500]), seed=0)
    whiten_kk = density.whiten_ckk[0].double()
    covariance_kk = torch.linalg.inv(whiten_kk @ whiten_kk.T)
    np.testing.assert_allclose(covariance_kk, [[4.0, 0], [0, 1.0]], atol=0.2)


def test_fit_depends_only_on_the_seed():
    x_nk = clusters(CENTERS, 100)
    state = torch.random.get_rng_state()
    first, second, other = (density_of(x_nk, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    for name in LatentDensity.__dataclass_fields__:
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert not torch.equal(first.heldout_nll, other.heldout_nll)


# --- the calibration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["clusters", "ring"])
def test_scores_of_fresh_cells_are_uniform(shape):
    if shape == "clusters":
        train_nk, heldout_nk, fresh_nk = (clusters(CENTERS, n, seed=s) for n, s in ((500, 0), (5000, 1), (100, 2)))
    else:
        train_nk, heldout_nk, fresh_nk = (ring(n, seed=s) for n, s in ((2000, 0), (20_000, 1), (400, 2)))
    density = fit_density(certain_posteriors(train_nk), certain_posteriors(heldout_nk), seed=0)
    score_n = density.off_manifold(points(fresh_nk)).numpy()
    assert stats.kstest(score_n, "uniform").pvalue > 0.01
    assert 0 < score_n.min() < score_n.max() < 1


def test_holes_between_clusters_and_in_a_ring_are_off_manifold():
    between = density_of(clusters([[0.0, 0], [6, 0], [3, 5]], 400))
    hole = points([[3.0, 0.0], [3.0, 2.0], [30.0, 30.0]])
    assert (between.off_manifold(hole) > 0.99).all()
    assert (between.off_manifold(points([[0.0, 0], [6, 0], [3, 5]])) < 0.2).all()
    ring_density = density_of(ring(3000))
    assert float(ring_density.off_manifold(torch.zeros(1, 2))) > 0.99
    angle = torch.linspace(0, 6.28, 50)
    assert (ring_density.off_manifold(2 * torch.stack([angle.cos(), angle.sin()], 1)) < 0.95).all()


def test_unseen_cells_are_not_off_manifold():
    """The fitted density does not call unseen cells holes, as a mixture of the posteriors of all cells would."""
    x_nk = np.random.default_rng(0).normal(size=(1500, 10))
    density = density_of(x_nk)
    fresh_nk = np.random.default_rng(1).normal(size=(1000, 10))
    assert float((density.off_manifold(points(fresh_nk)) > 0.95).float().mean()) == pytest.approx(0.05, abs=0.03)


# --- little data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 10, 20])
def test_fit_works_with_few_cells(k):
    x_nk = np.random.default_rng(0).normal(size=(10, k))
    density = fit_density(certain_posteriors(x_nk[:9]), certain_posteriors(x_nk[9:]), seed=0)
    assert torch.isfinite(density.log_prob(points(x_nk))).all()
    score_n = density.off_manifold(points(np.vstack([x_nk, x_nk + 100])))
    assert ((score_n > 0) & (score_n < 1)).all()
    assert (score_n[:9] < 0.95).all()
    assert (score_n[10:] > 0.95).all()


@pytest.mark.parametrize("n_heldout", [1, 3, 9, 10, 30])
def test_distant_points_are_off_manifold_with_few_heldout_cells(n_heldout):
    x_nk = np.random.default_rng(0).normal(size=(94, 4))
    density = fit_density(certain_posteriors(x_nk[n_heldout:]), certain_posteriors(x_nk[:n_heldout]), seed=0)
    # Fewer than ten held-out cells are combined with the other cells.
    assert len(density.heldout_nll) == (n_heldout if n_heldout >= 10 else 94)
    assert float(density.off_manifold(torch.full((1, 4), 1000.0))) > 0.95
    assert density.nll_at(0.95) > density.nll_at(0.5)


@pytest.mark.parametrize(("n", "k"), [(10, 3), (300, 1), (300, 5)])
def test_identical_cells_have_a_finite_density(n, k):
    same_nk = np.full((n, k), 0.7)
    density = fit_density(certain_posteriors(same_nk[:-3]), certain_posteriors(same_nk[-3:]), seed=0)
    at, away = density.log_prob(points(same_nk[:1])), density.log_prob(points(same_nk[:1] + 1))
    assert torch.isfinite(at)
    assert float(at) > float(away)


def test_density_in_one_dimension():
    x_n1 = clusters([[-3.0], [3.0]], 400)
    density = density_of(x_n1)
    truth = stats.norm(-3, 0.3).pdf([[-3], [0], [3]]) / 2 + stats.norm(3, 0.3).pdf([[-3], [0], [3]]) / 2
    found = density.log_prob(points([[-3.0], [0], [3]])).exp()
    np.testing.assert_allclose(found, truth.ravel(), atol=0.1)
    assert float(density.off_manifold(torch.zeros(1, 1))) > 0.99


# --- in the model -----------------------------------------------------------------------------------------------------


def test_density_and_axes_are_saved_exactly(bench):
    model = bundle.load(bench.model)
    changed = dataclasses.replace(model.density, heldout_nll=model.density.heldout_nll + torch.tensor(np.pi) / 3)
    model = dataclasses.replace(model, density=changed)
    model.save(bench.folder / "again.scvae")
    loaded = bundle.load(bench.folder / "again.scvae")
    for part in ("density", "axes"):
        ours, theirs = getattr(model, part), getattr(loaded, part)
        for name in ours.__dataclass_fields__:
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert len(loaded.density.heldout_nll) == len(loaded.heldout_cells)
