"""Variances from few replicates are moderated by all genes, and are compared with simulated truth and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from scvae_cli.tools.de.moderation import moderated, normal_errors


@pytest.mark.parametrize("df0", [3.0, 10.0])
def test_moderated_statistics_follow_students_t(df0):
    """If variances follow a scaled inverse χ² distribution, moderated t statistics follow Student's t distribution."""
    rng, g, df = np.random.default_rng(0), 20_000, 3
    true_g = 0.4 * df0 / rng.chisquare(df0, g)
    variance_g = true_g * rng.chisquare(df, g) / df
    found_g, total = moderated(variance_g, df, np.ones(g, dtype=bool))
    assert total == pytest.approx(df + df0, rel=0.1)
    t_g = rng.normal(0, np.sqrt(true_g)) / np.sqrt(found_g)
    for share in (0.05, 0.001):
        assert (np.abs(t_g) > student.isf(share / 2, total)).mean() == pytest.approx(share, rel=0.35)


def test_equal_variances_are_averaged():
    rng, g, df = np.random.default_rng(0), 5000, 2
    found_g, total = moderated(2.0 * rng.chisquare(df, g) / df, df, np.ones(g, dtype=bool))
    np.testing.assert_allclose(found_g, 2.0, rtol=0.25)
    assert np.median(found_g) == pytest.approx(2.0, rel=0.05)
    assert total > 50


def test_normal_errors_keep_the_p_values_of_students_t():
    estimate_g, error_g = np.array([0.0, 1e-9, 0.5, -2.0, 40.0]), np.array([1.0, 1.0, 0.5, 0.4, 1.0])
    errors_g = normal_errors(estimate_g, error_g, 4.0)
    np.testing.assert_allclose(
        norm.logsf(np.abs(estimate_g / errors_g)), student.logsf(np.abs(estimate_g / error_g), 4.0), rtol=1e-6
    )
    assert (errors_g > error_g).all()
