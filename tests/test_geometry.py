"""The geometry of the decoder is compared with Kullback–Leibler divergences of counts, and with torch's autograd.

Letters in array shapes: n points, m tangents, k latent dimensions, g genes.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from handmade import plain_coordinates, plain_mean, random_vae, theta_of
from scipy import stats

from scvae_cli.model.geometry import Geometry
from scvae_cli.model.isometric import isometric
from scvae_cli.tools.trajectory.curves import step_lengths

LIBRARY = 60.0
CASES = [
    (likelihood, n_layers, batches)
    for likelihood in ("zinb", "nb", "poisson")
    for n_layers in (1, 3)
    for batches in ((), ("a", "b", "c"))
]
every_decoder = pytest.mark.parametrize(("likelihood", "n_layers", "batches"), CASES)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def divergence(mean_g: np.ndarray, other_g: np.ndarray, theta_g: np.ndarray | None) -> float:
    """Compute the KL divergence between the counts of all genes at two means, summed over counts."""
    x = np.arange(6000)[:, None]
    if theta_g is None:
        log_p, log_q = stats.poisson.logpmf(x, mean_g), stats.poisson.logpmf(x, other_g)
    else:
        log_p, log_q = (stats.nbinom.logpmf(x, theta_g, theta_g / (theta_g + m)) for m in (mean_g, other_g))
    p = np.exp(log_p)
    np.testing.assert_allclose(p.sum(0), 1, rtol=1e-6)
    return float(np.where(p > 0, p * (log_p - log_q), 0).sum())


# --- the metric -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@every_decoder
def test_metric_is_the_curvature_of_the_divergence(likelihood, n_layers, batches):
    """KL(p(z) ‖ p(z + εv)) → ½ε² vᵀMv; both signs of v cancel the third order."""
    vae = random_vae(likelihood, n_layers=n_layers, batches=batches)
    theta = None if theta_of(vae) is None else theta_of(vae).numpy()
    z_k, step = normal(3, seed=1), 1e-3
    metric_kk = Geometry(vae).metric(z_k[None])[0]
    mean_g = plain_mean(vae, z_k, LIBRARY).numpy()
    for v_k in normal(4, 3, seed=2):
        divergences = [
            divergence(mean_g, plain_mean(vae, z_k + s * step * v_k, LIBRARY).numpy(), theta) for s in (1, -1)
        ]
        assert sum(divergences) / step**2 == pytest.approx(float(v_k @ metric_kk @ v_k), rel=1e-4)


def test_metric_of_many_points_equals_that_of_single_points():
    geometry = Geometry(random_vae(batches=("a", "b")))
    z_nk = normal(130, 3)
    together = geometry.metric(z_nk)
    torch.testing.assert_close(together, torch.cat([geometry.metric(z_k[None]) for z_k in z_nk]))
    torch.testing.assert_close(together, together.transpose(1, 2))
    assert torch.linalg.eigvalsh(together).min() > -1e-9


# --- tangents and coordinates -----------------------------------------------------------------------------------------


@every_decoder
def test_push_is_the_derivative_of_the_coordinates(likelihood, n_layers, batches):
    vae = random_vae(likelihood, n_layers=n_layers, batches=batches)
    z_nk, v_mnk = normal(5, 3), normal(2, 5, 3, seed=1)
    y_ng, pushed_mng = Geometry(vae).push(z_nk, v_mnk)
    for v_nk, pushed_ng in zip(v_mnk, pushed_mng, strict=True):
        expected, derivative = torch.func.jvp(lambda z: plain_coordinates(vae, z, LIBRARY), (z_nk,), (v_nk,))
        torch.testing.assert_close(y_ng, expected)
        torch.testing.assert_close(pushed_ng, derivative)
    torch.testing.assert_close(Geometry(vae).coordinates(z_nk), y_ng)


@every_decoder
def test_coordinates_have_the_gradient_of_the_formula(likelihood, n_layers, batches):
    vae = random_vae(likelihood, n_layers=n_layers, batches=batches)
    z_nk, weight_ng = normal(5, 3).requires_grad_(True), normal(5, 6, seed=1)
    (found,) = torch.autograd.grad((Geometry(vae).coordinates(z_nk) * weight_ng).sum(), z_nk)
    (expected,) = torch.autograd.grad((plain_coordinates(vae, z_nk, LIBRARY) * weight_ng).sum(), z_nk)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("batches", [(), ("a", "b")])
def test_pushed_tangents_are_differentiable(batches):
    geometry = Geometry(random_vae(n_layers=2, batches=batches))
    inputs = normal(2, 3).requires_grad_(True), normal(1, 2, 3, seed=1).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z, v: geometry.push(z, v), inputs)


def test_metric_does_not_depend_on_dropout_and_mode():
    vae = random_vae(n_layers=2)
    z_nk = normal(4, 3)
    expected = Geometry(vae).metric(z_nk)
    assert torch.equal(Geometry(vae.train()).metric(z_nk), expected)


def test_default_library_size_is_the_median():
    vae = random_vae("poisson")
    z_nk = normal(4, 3)
    torch.testing.assert_close(Geometry(vae).coordinates(z_nk), Geometry(vae, library=LIBRARY).coordinates(z_nk))
    # For a Poisson, y = 2√(ℓρ).
    torch.testing.assert_close(
        Geometry(vae, library=9 * LIBRARY).coordinates(z_nk), 3 * Geometry(vae).coordinates(z_nk)
    )


# --- the isometric coordinate -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta_g", [None, torch.tensor([1e-3, 0.2, 1.0, 50.0, 1e4], dtype=torch.float64)])
def test_isometric_has_the_correct_gradient(theta_g):
    mean_ng = torch.exp(3 * normal(7, 5)).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda mean: isometric(mean, theta_g), mean_ng, eps=1e-7)


def test_isometric_is_the_integral_of_the_root_of_fisher_information():
    theta, mean = 0.7, np.linspace(0, 40**0.5, 200_001) ** 2
    middle = (mean[1:] + mean[:-1]) / 2
    length = float(np.sum(np.sqrt(theta / (middle * (middle + theta))) * np.diff(mean)))
    found = isometric(torch.tensor([[40.0]], dtype=torch.float64), torch.tensor([theta], dtype=torch.float64))
    assert float(found) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("theta", [None, 1e-4, 1.0, 1e4])
def test_extreme_means_are_finite_and_exact(theta):
    mean_ng = torch.tensor([[0.0, 1e-30, 1e-12, 1e-3, 1.0, 1e6, 1e8]], requires_grad=True)
    theta_g = None if theta is None else torch.tensor(theta)
    y_ng = isometric(mean_ng, theta_g)
    y_ng.sum().backward()
    assert torch.isfinite(y_ng).all()
    assert torch.isfinite(mean_ng.grad).all()
    expected = [2 * math.sqrt(m) if theta is None else 2 * math.sqrt(theta) * math.asinh(math.sqrt(m / theta))
                for m in mean_ng[0].tolist()]  # fmt: skip
    np.testing.assert_allclose(y_ng[0].detach(), expected, rtol=1e-5)


def test_decoder_with_silent_genes_has_a_finite_metric():
    vae = random_vae().float()
    with torch.no_grad():
        vae.decoder.head.outputs.bias[:] = torch.tensor([-200.0, -60.0, -20.0, 0.0, 5.0, 20.0])
    z_nk = normal(4, 3).float().requires_grad_(True)
    geometry = Geometry(vae, library=1e6)
    assert torch.isfinite(geometry.metric(z_nk)).all()
    (gradient,) = torch.autograd.grad(geometry.coordinates(z_nk).sum(), z_nk)
    assert torch.isfinite(gradient).all()


# --- lengths ----------------------------------------------------------------------------------------------------------


def test_length_does_not_depend_on_the_speed():
    vae = random_vae(k=2, g=20)
    geometry = Geometry(vae)

    def path(s: np.ndarray) -> np.ndarray:
        return np.stack([2 * np.cos(3 * s), s - 1], axis=1)

    s, vae32 = np.linspace(0, 1, 801), Geometry(vae.float())
    lengths = [step_lengths(vae32, path(warped)).sum() for warped in (s, s**2, np.sin(np.pi / 2 * s))]
    assert max(lengths) - min(lengths) < 1e-3 * min(lengths)
    # The length is also the integral of the speed in the metric.
    middle = (s[1:] + s[:-1]) / 2
    velocity_tk = torch.as_tensor(np.stack([-6 * np.sin(3 * middle), np.ones_like(middle)], axis=1))
    metric_tkk = geometry.metric(torch.as_tensor(path(middle)).float()).double()
    speed_t = torch.einsum("tk,tkj,tj->t", velocity_tk, metric_tkk, velocity_tk).sqrt()
    assert lengths[0] == pytest.approx(float(speed_t.mean()), rel=1e-3)


def test_length_does_not_depend_on_latent_coordinates():
    vae, transformed = random_vae(k=2, g=20).float(), random_vae(k=2, g=20).float()
    stretch_kk = torch.tensor([[0.5, 2.0], [-1.0, 3.0]])
    with torch.no_grad():
        # The tangents enter at both places at which the decoder uses the position: the first layer and the last layer.
        for weight in (transformed.decoder.first.weight, transformed.decoder.head.outputs.weight[:, -2:]):
            weight.copy_(weight @ torch.linalg.inv(stretch_kk))
    path_tk = np.linspace([-1.0, 2.0], [1.0, -0.5], 50)
    found = step_lengths(Geometry(transformed), path_tk @ stretch_kk.T.numpy())
    np.testing.assert_allclose(found, step_lengths(Geometry(vae), path_tk), rtol=1e-3, atol=1e-5)
