"""Counts drawn from the decoder's distributions, compared with the formulas of these distributions.

Letters in array shapes: n cells, g genes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from scvae_cli.data.zinb_draws import draw_zinb
from scvae_cli.model.network import CountOutput


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_drawn_counts_have_the_moments_of_the_likelihood(likelihood):
    n, g = 40_000, 4
    log_theta_g = None if likelihood == "poisson" else torch.tensor([-1.0, 0.0, 1.0, 3.0])
    zero_g = torch.tensor([-4.0, -1.0, 0.0, 1.0])
    bias_g = torch.tensor([0.0, 0.5, 1.0, -2.0])
    if likelihood == "zinb":
        bias_g = torch.cat([bias_g, zero_g])
    output = CountOutput(torch.zeros(n, len(bias_g)), bias_g, log_theta_g, g)
    x_ng = output.draw(torch.full((n,), 12.0), np.random.default_rng(0)).toarray()
    mu_g = torch.softmax(bias_g[:g], 0).double().numpy() * 12
    keep_g = torch.sigmoid(-zero_g).double().numpy() if likelihood == "zinb" else np.ones(g)
    extra_g = np.zeros(g) if log_theta_g is None else mu_g**2 / log_theta_g.double().exp().numpy()
    var_g = keep_g * (mu_g + extra_g + mu_g**2) - (keep_g * mu_g) ** 2
    np.testing.assert_allclose(x_ng.mean(0), keep_g * mu_g, atol=5 * np.sqrt(var_g.max() / n))
    np.testing.assert_allclose(x_ng.var(0), var_g, rtol=0.15)
    theta_g = np.full(g, 1e9) if log_theta_g is None else log_theta_g.double().exp().numpy()
    zero_share_g = 1 - keep_g + keep_g * (1 + mu_g / theta_g) ** -theta_g
    np.testing.assert_allclose((x_ng == 0).mean(0), zero_share_g, atol=5 * np.sqrt(0.25 / n))
    means_ng = output.mean_ng(torch.full((n,), 12.0), with_zero_inflation=True)
    np.testing.assert_allclose(means_ng[0], keep_g * mu_g, rtol=1e-5)


def test_zero_inflation_may_differ_between_entries():
    n = 20_000
    pi_ng = np.tile([[0.0, 0.9]], (n, 1))
    pi_ng[: n // 2] = pi_ng[: n // 2, ::-1]
    x_ng = draw_zinb(np.full((n, 2), 5.0), np.full(2, 10.0), pi_ng, np.random.default_rng(0)).toarray()
    np.testing.assert_allclose(x_ng[: n // 2].mean(0), [0.5, 5.0], atol=0.15)
    np.testing.assert_allclose(x_ng[n // 2 :].mean(0), [5.0, 0.5], atol=0.15)
    inflated = draw_zinb(np.full((50, 2), 5.0), np.ones(2), np.ones((50, 2)), np.random.default_rng(0))
    assert inflated.nnz == 0


def test_long_tails_have_the_exact_probabilities():
    """A count of a gene with a very small θ may be thousands of times its mean."""
    n, mu, theta = 400_000, 0.5, 2e-3
    x_n = draw_zinb(np.full((n, 1), mu), np.array([theta]), np.zeros(1), np.random.default_rng(0)).data
    distribution = stats.nbinom(theta, theta / (theta + mu))
    for least in (1, 10, 300, 1000):
        expected = distribution.sf(least - 1) * n
        assert abs((x_n >= least).sum() - expected) < 5 * np.sqrt(expected)
    assert x_n.max() > 300
