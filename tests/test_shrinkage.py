"""Probabilities from the shrinkage of effects are compared with simulated truth and with quadrature."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from scipy.stats import norm

from scvae_cli.tools.de.shrinkage import ShrunkEffects, common_shift, expected_fdr, shrink


@functools.cache
def mixture(g: int = 4000, null: float = 0.8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw effects (most are zero), estimates of the effects, and standard errors of all sizes."""
    rng = np.random.default_rng(3)
    effect_g = np.where(rng.random(g) < null, 0.0, rng.normal(0, 1, g))
    error_g = np.exp(rng.uniform(np.log(0.05), np.log(1.0), g))
    return effect_g, effect_g + error_g * rng.standard_normal(g), error_g


@functools.cache
def fitted() -> ShrunkEffects:
    """Shrink the estimates of `mixture`."""
    return shrink(*mixture()[1:])


@pytest.mark.parametrize("threshold", [0.0, 0.25])
def test_probabilities_are_calibrated(threshold):
    effect_g = mixture()[0]
    p_g = fitted().probability_beyond(threshold)
    true_g = np.abs(effect_g) > threshold
    for low, high in ((0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.01)):
        inside = (p_g >= low) & (p_g < high)
        assert abs(true_g[inside].mean() - p_g[inside].mean()) < 0.08, (low, high)
    fdr_g = expected_fdr(np.log1p(-np.minimum(p_g, 1 - 1e-16)))
    for rate in (0.05, 0.1, 0.2):
        called = fdr_g <= rate
        assert abs((~true_g[called]).mean() - rate) < 0.03


def test_prior_is_recovered():
    effect_g, estimate_g, _ = mixture()
    found = fitted()
    assert abs(found.null_share - 0.8) < 0.06
    spread = np.sqrt((found.weight_c * found.sd_c**2).sum())
    assert spread == pytest.approx(effect_g.std(), rel=0.1)
    assert np.mean((found.mean_g - effect_g) ** 2) < 0.35 * np.mean((estimate_g - effect_g) ** 2)


def test_posterior_equals_quadrature():
    _, estimate_g, error_g = mixture()
    found = fitted()
    # A grid that is fine around zero, where the narrow components are.
    positive_b = np.sinh(np.linspace(0, np.arcsinh(15 / 1e-3), 8001)) * 1e-3
    b = np.concatenate([-positive_b[:0:-1], positive_b])
    middle_b, width_b = (b[1:] + b[:-1]) / 2, np.diff(b)
    prior_b = (found.weight_c[1:] * norm.pdf(middle_b[:, None], 0, found.sd_c[1:])).sum(1)
    for g in range(12):
        mass_b = prior_b * norm.pdf(estimate_g[g], middle_b, error_g[g]) * width_b
        spike = found.weight_c[0] * norm.pdf(estimate_g[g], 0, error_g[g])
        total = spike + mass_b.sum()
        far, below = mass_b[np.abs(middle_b) > 0.25].sum(), mass_b[middle_b < 0].sum()
        assert found.probability_beyond(0.25)[g] == pytest.approx(far / total, rel=0.01, abs=1e-6)
        assert found.probability_below(0.0)[g] == pytest.approx(below / total, rel=0.01, abs=1e-6)
        wrong = spike + min(below, mass_b.sum() - below)
        assert found.false_sign_rate()[g] == pytest.approx(wrong / total, rel=0.01, abs=1e-6)
        mean = (mass_b * middle_b).sum() / total
        assert found.mean_g[g] == pytest.approx(mean, rel=0.01, abs=1e-6)
        second = (mass_b * middle_b**2).sum() / total
        assert found.sd_g[g] == pytest.approx(np.sqrt(second - mean**2), rel=0.01, abs=1e-6)
    for share in (0.05, 0.5, 0.95):
        at_g = found.quantile(share)
        assert (found.probability_below(at_g - 1e-5) <= share + 1e-3).all()
        assert (found.probability_below(at_g + 1e-5) >= share - 1e-3).all()


def test_shrinkage_is_symmetric():
    _, estimate_g, error_g = mixture(500)
    one, other = shrink(estimate_g, error_g), shrink(-estimate_g, error_g)
    np.testing.assert_allclose(one.mean_g, -other.mean_g)
    np.testing.assert_allclose(one.probability_beyond(0.25), other.probability_beyond(0.25))
    np.testing.assert_allclose(one.quantile(0.05), -other.quantile(0.95), atol=1e-6)
    assert common_shift(estimate_g, error_g) == pytest.approx(-common_shift(-estimate_g, error_g), abs=1e-9)


def test_common_shift_is_recovered():
    rng = np.random.default_rng(1)
    effect_g, estimate_g, error_g = mixture()
    assert abs(common_shift(estimate_g, error_g)) < 0.01
    # The effects may all have the same sign.
    lifted_g = np.abs(effect_g) + error_g * rng.standard_normal(len(effect_g)) - 0.4
    assert common_shift(lifted_g, error_g) == pytest.approx(-0.4, abs=0.02)


def test_noise_is_shrunk_to_zero():
    rng = np.random.default_rng(2)
    error_g = np.exp(rng.normal(-1, 1, 1000))
    found = shrink(error_g * rng.standard_normal(1000), error_g)
    assert found.null_share > 0.95
    assert found.probability_beyond(0.0).max() < 0.6


def test_expected_fdr_is_the_mean_error_of_all_more_certain_effects():
    p_g = np.asarray([0.5, 0.01, 0.2, 0.01])
    np.testing.assert_allclose(expected_fdr(np.log(p_g)), [0.18, 0.01, 0.22 / 3, 0.01])
