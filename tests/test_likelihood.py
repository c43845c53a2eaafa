"""Likelihoods against scipy, against float64 autograd of the plain formulas, and against scvi-tools.

Shapes: n cells, g genes, k latent dimensions.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scvae_cli.data.minibatches import CellTable
from scvae_cli.model.likelihood import (
    LOG_THETA_MAX,
    LOG_THETA_MIN,
    count_nll,
    nb_log_prob,
    nonzeros_of,
    poisson_log_prob,
    zinb_log_prob,
)
from scvae_cli.model.network import CountOutput, Posterior

KINDS = ("zinb", "nb", "poisson")
COUNTS = torch.tensor([0.0, 1.0, 2.0, 7.0, 150.0, 20_000.0], dtype=torch.float64)
LOG_MU = torch.tensor([-20.0, -8.0, -2.0, 0.0, 3.0, 8.0], dtype=torch.float64)
LOG_THETA = torch.tensor([LOG_THETA_MIN, -4.0, 0.0, 4.0, LOG_THETA_MAX], dtype=torch.float64)
ZERO_LOGIT = torch.tensor([-200.0, -8.0, 0.0, 8.0, 200.0], dtype=torch.float64)


def grid(*axes):
    return [axis.reshape(-1) for axis in torch.meshgrid(*axes, indexing="ij")]


def test_nb_agrees_with_scipy_over_extreme_parameters():
    x, log_mu, log_theta = grid(COUNTS, LOG_MU, LOG_THETA)
    theta, mu = log_theta.exp().numpy(), log_mu.exp().numpy()
    expected = scipy.stats.nbinom.logpmf(x.numpy(), theta, theta / (theta + mu))
    got = nb_log_prob(x, log_mu, log_theta).numpy()
    assert (np.abs(got - expected) <= scipy_tolerance(x, mu, theta, expected)).all()


def scipy_tolerance(x, mu, theta, expected):
    """What scipy itself can promise: it takes x·log(1 − p) of a p rounded to 2e-16, where 1 − p = μ/(θ+μ)."""
    return 1e-9 + 1e-9 * np.abs(expected) + 4e-16 * x.numpy() * (theta + mu) / mu


def test_poisson_agrees_with_scipy():
    x, log_mu = grid(COUNTS, LOG_MU)
    expected = scipy.stats.poisson.logpmf(x.numpy(), log_mu.exp().numpy())
    np.testing.assert_allclose(poisson_log_prob(x, log_mu).numpy(), expected, rtol=1e-12, atol=1e-9)


def test_zinb_agrees_with_scipy_over_extreme_parameters():
    x, log_mu, log_theta, zero_logit = grid(COUNTS, LOG_MU, LOG_THETA, ZERO_LOGIT)
    theta, mu = log_theta.exp().numpy(), log_mu.exp().numpy()
    log_nb = scipy.stats.nbinom.logpmf(x.numpy(), theta, theta / (theta + mu))
    log_inflated = -np.logaddexp(0, -zero_logit.numpy())
    log_kept = -np.logaddexp(0, zero_logit.numpy())
    expected = np.where(x.numpy() == 0, np.logaddexp(log_inflated, log_kept + log_nb), log_kept + log_nb)
    got = zinb_log_prob(x, log_mu, log_theta, zero_logit).numpy()
    assert (np.abs(got - expected) <= scipy_tolerance(x, mu, theta, expected)).all()


@pytest.mark.parametrize("log_theta", [-9.0, 0.0, 5.0])
def test_probabilities_of_all_counts_sum_to_one(log_theta):
    x = torch.arange(0, 60_000, dtype=torch.float64)
    for log_prob in (
        nb_log_prob(x, torch.tensor(0.7).double(), torch.tensor(log_theta).double()),
        zinb_log_prob(x, torch.tensor(0.7).double(), torch.tensor(log_theta).double(), torch.tensor(-0.4).double()),
    ):
        # At θ = e⁻⁹ a little mass lies beyond any bound.
        assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=2e-4)


def test_nb_tends_to_poisson():
    x, log_mu = grid(COUNTS[:4], LOG_MU[:4])
    nb = nb_log_prob(x, log_mu, torch.full_like(x, np.log(1e12)))
    # lgΓ(x + 1e12) − lgΓ(1e12) loses ten digits.
    np.testing.assert_allclose(nb, poisson_log_prob(x, log_mu), atol=5e-3)


def random_block(seed, dtype, n=7, g=23, spread=4.0):
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape, scale):
        return (torch.randn(*shape, generator=rng, dtype=torch.float64) * scale).to(dtype)

    x = torch.poisson(torch.rand(n, g, generator=rng) * 6, generator=rng) * (torch.rand(n, g, generator=rng) < 0.3)
    x[:, 0] += 1
    x[0, 1] = 3000
    outputs = (
        normal(n, g, scale=spread),
        normal(g, scale=3.0).clamp(LOG_THETA_MIN, LOG_THETA_MAX),
        normal(n, g, scale=2 * spread),
    )
    return x.to(dtype), *outputs


def plain_nll(kind, x, logits, log_library, log_theta, zero_logit):
    log_mu = torch.log_softmax(logits, 1) + log_library[:, None]
    if kind == "zinb":
        return -zinb_log_prob(x, log_mu, log_theta, zero_logit).sum(1)
    if kind == "nb":
        return -nb_log_prob(x, log_mu, log_theta).sum(1)
    return -poisson_log_prob(x, log_mu).sum(1)


def fast_nll(kind, x, logits, log_library, log_theta, zero_logit):
    return count_nll(
        logits,
        log_library,
        nonzeros_of(x),
        None if kind == "poisson" else log_theta,
        zero_logit if kind == "zinb" else None,
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.5, 4.0, 20.0]))
def test_zero_aware_nll_equals_autograd_of_the_plain_formula(kind, seed, spread):
    x, logits, log_theta, zero_logit = random_block(seed, torch.float64, spread=spread)
    # Not the row sums: the library's gradient is then not identically zero.
    log_library = (x.sum(1) + 3).log()
    weight_n = torch.linspace(0.1, 2.0, len(x), dtype=torch.float64)
    results = []
    for nll in (plain_nll, fast_nll):
        leaves = [t.clone().requires_grad_() for t in (logits, log_library, log_theta, zero_logit)]
        value_n = nll(kind, x, *leaves)
        gradients = torch.autograd.grad((value_n * weight_n).sum(), leaves, allow_unused=True)
        results.append((value_n.detach(), gradients))
    (expected, expected_gradients), (got, gradients) = results
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-9)
    for ours, reference in zip(gradients, expected_gradients, strict=True):
        assert (ours is None) == (reference is None)
        if reference is not None:
            torch.testing.assert_close(ours, reference, rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_stays_near_float64_and_finite(kind):
    x, logits, log_theta, zero_logit = random_block(3, torch.float64)
    log_library = x.sum(1).log()
    expected = plain_nll(kind, x, logits, log_library, log_theta, zero_logit)
    leaves = [t.float().requires_grad_() for t in (logits, log_library, log_theta, zero_logit)]
    got = fast_nll(kind, x.float(), *leaves)
    torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=1e-4)
    got.sum().backward()
    assert all(leaf.grad is None or bool(torch.isfinite(leaf.grad).all()) for leaf in leaves)


def test_gradients_at_certain_zeros_do_not_overflow():
    x = torch.zeros(1, 3)
    x[0, 2] = 1
    logits = torch.tensor([[8.0, 0.0, 0.0]], requires_grad=True)
    zero_logit = torch.tensor([[-120.0, 120.0, -300.0]], requires_grad=True)
    log_theta = torch.tensor([5.0, 5.0, 5.0], requires_grad=True)
    count_nll(logits, torch.tensor([6.0]), nonzeros_of(x), log_theta, zero_logit).sum().backward()
    for leaf in (logits, zero_logit, log_theta):
        assert torch.isfinite(leaf.grad).all()


def test_value_without_gradient_is_the_same_value():
    x, logits, log_theta, zero_logit = random_block(5, torch.float32)
    log_library = x.sum(1).log()
    with_gradient = fast_nll("zinb", x, logits.requires_grad_(), log_library, log_theta, zero_logit)
    with torch.no_grad():
        without = fast_nll("zinb", x, logits, log_library, log_theta, zero_logit)
    assert torch.equal(with_gradient.detach(), without)


@pytest.mark.parametrize("kind", KINDS)
def test_elbo_equals_that_of_scvi_tools(kind):
    """Reference values: tests/data/make_scvi_elbo.py, run with scvi-tools 1.4.2."""
    import scipy.sparse as sp

    reference = json.loads(Path(__file__).with_name("data").joinpath("scvi_elbo.json").read_text())
    counts = sp.csr_matrix(np.asarray(reference["counts"], dtype=np.float32))
    cells = CellTable(counts, None, torch.device("cpu")).take(np.arange(counts.shape[0]))
    output = CountOutput(
        torch.tensor(reference["logits"]),
        None if kind == "poisson" else torch.tensor(reference["log_theta"]),
        torch.tensor(reference["zero_logit"]) if kind == "zinb" else None,
    )
    posterior = Posterior(torch.tensor(reference["mean"]), torch.tensor(reference["var"]))
    elbo = -(output.nll_n(cells) + posterior.kl_nk().sum(1))
    # scvi-tools adds 1e-8 inside its logarithms and sums in float32: relative to values of several thousand nats.
    np.testing.assert_allclose(elbo.numpy(), reference["elbo"][kind], rtol=1e-4, atol=1e-4)
