"""Likelihoods, compared with scipy, with float64 autograd of the plain formulas, and with scvi-tools.

Letters in array shapes: n cells, g genes, k latent dimensions.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_likelihood import nb_log_prob, poisson_log_prob, zinb_log_prob

from scvae_cli.data.minibatches import CellTable
from scvae_cli.model.compiled.count_nll import fused_nll
from scvae_cli.model.count_nll import dense_nll, mean_nll
from scvae_cli.model.network import LOG_THETA_MAX, LOG_THETA_MIN
from scvae_cli.model.posterior import Posterior, sample_and_kl

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
    """Return the error of scipy, which computes x·log(1 − p) with 1 − p = μ/(θ+μ) from a p that is rounded to 2e-16."""
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
        # At θ = e⁻⁹, a little of the probability lies above the largest count of the sum.
        assert float(log_prob.exp().sum()) == pytest.approx(1.0, abs=2e-4)


def test_nb_tends_to_poisson():
    x, log_mu = grid(COUNTS[:4], LOG_MU[:4])
    nb = nb_log_prob(x, log_mu, torch.full_like(x, np.log(1e12)))
    # The difference lgΓ(x + 1e12) − lgΓ(1e12) is accurate to few digits.
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


def minibatch(x):
    counts = sp.csr_matrix(x.float().numpy())
    return CellTable(counts, None, torch.device("cpu")).take(np.arange(len(x)))


def implementation(kind, form, x, library_n, outputs, *, with_gradient=True):
    """Compute the NLL of each cell, and the gradients of the mean NLL, by the compiled or the dense version."""
    raw, bias, log_theta = outputs
    log_theta = None if kind == "poisson" else log_theta
    if kind != "zinb":
        raw, bias = raw[:, : x.shape[1]], bias[: x.shape[1]]
    if form == "dense":
        return dense_nll(raw, bias, log_theta, library_n, x.to(raw.dtype), with_gradient=with_gradient)
    return fused_nll(raw, bias, log_theta, library_n, minibatch(x).nonzeros, with_gradient=with_gradient)


def reference(kind, x, library_n, outputs):
    """Compute the NLL of each cell, and the gradients of the mean NLL, by float64 autograd of the plain formula."""
    leaves = [t.double().clone().requires_grad_() for t in outputs]
    raw, bias, log_theta = leaves
    logits, zero_logit = (raw + bias).split(x.shape[1], dim=1)
    value_n = plain_nll(kind, x.double(), logits, library_n.double().log(), log_theta, zero_logit)
    gradients = torch.autograd.grad(value_n.mean(), leaves, allow_unused=True)
    return value_n.detach(), gradients


def compare_gradients(kind, gradients, expected, *, rtol, atol):
    raw, bias, log_theta = expected
    if kind != "zinb":
        n_genes = raw.shape[1] // 2
        raw, bias = raw[:, :n_genes], bias[:n_genes]
    for got, wanted in zip(gradients, (raw, bias, log_theta), strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got.double(), wanted, rtol=rtol, atol=atol)


def block_and_outputs(seed, dtype, spread=4.0):
    """Counts; raw outputs (logits and zero logits), their bias, log θ."""
    x, logits, log_theta, zero_logit = random_block(seed, torch.float64, spread=spread)
    raw = torch.cat([logits, zero_logit], dim=1)
    bias = torch.linspace(-1, 1, raw.shape[1], dtype=torch.float64)
    return x, tuple(t.to(dtype) for t in (raw, bias, log_theta))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.5, 4.0, 20.0]))
def test_dense_form_equals_autograd_of_the_plain_formula(kind, seed, spread):
    x, outputs = block_and_outputs(seed, torch.float64, spread)
    library_n = x.sum(1) + 3  # with row sums, the gradients would sum to 0
    expected, expected_gradients = reference(kind, x, library_n, outputs)
    got, gradients = implementation(kind, "dense", x, library_n, outputs)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-9)
    compare_gradients(kind, gradients, expected_gradients, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.5, 4.0, 20.0]))
def test_compiled_form_equals_autograd_of_the_plain_formula(kind, n_threads, seed, spread):
    x, outputs = block_and_outputs(seed, torch.float32, spread)
    library_n = (x.sum(1) + 3).float()
    expected, expected_gradients = reference(kind, x, library_n, outputs)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        got, gradients = implementation(kind, "compiled", x, library_n, outputs)
        value_only, no_gradients = implementation(kind, "compiled", x, library_n, outputs, with_gradient=False)
    finally:
        torch.set_num_threads(before)
    assert no_gradients is None
    assert torch.equal(value_only, got)
    # Logits have single precision. The logarithm of a mean, which every count uses, therefore has an error of up to
    # half a unit in the last place of the logit.
    error_per_count = 2e-6 + torch.finfo(torch.float32).eps / 2 * float(outputs[0].abs().max())
    assert ((got - expected).abs() <= 2e-6 * expected.abs() + error_per_count * x.sum(1) + 1e-4).all()
    compare_gradients(kind, gradients, expected_gradients, rtol=2e-5, atol=5e-4)


@pytest.mark.parametrize("form", ["compiled", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_outputs_stay_finite(kind, form):
    x = torch.zeros(2, 3)
    x[0, 2], x[1, 0], x[1, 1] = 1, 50_000, 17
    raw = torch.tensor([[80.0, 0.0, 0.0, -120.0, 120.0, -300.0], [-90.0, 0.0, 90.0, 300.0, -300.0, 0.0]])
    for log_theta in (LOG_THETA_MIN, 5.0, LOG_THETA_MAX):
        outputs = (raw, torch.zeros(6), torch.full((3,), log_theta))
        values, gradients = implementation(kind, form, x, torch.tensor([400.0, 50_017.0]), outputs)
        assert torch.isfinite(values).all()
        assert all(gradient is None or torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_beyond_32_bits_are_accurate(kind):
    x = torch.tensor([[3e9, 2.0], [1.0, 1e12]])
    outputs = (torch.zeros(2, 4), torch.zeros(4), torch.zeros(2))
    expected, _ = reference(kind, x, x.sum(1), outputs)
    got, gradients = implementation(kind, "compiled", x, x.sum(1), outputs)
    assert ((got - expected).abs() <= 2e-6 * (expected.abs() + x.sum(1))).all()
    assert all(gradient is None or torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("log_theta", [-9.0, -1.0, 0.0, 4.0, 9.0])
def test_table_and_series_of_lgamma_agree_with_the_plain_formula(log_theta):
    """One gene whose counts use both methods, at dispersions from tiny to large."""
    x = torch.arange(0, 400, dtype=torch.float32).unsqueeze(1)
    x = torch.cat([x, torch.ones_like(x)], dim=1)
    outputs = (torch.zeros(len(x), 4), torch.zeros(4), torch.full((2,), log_theta))
    expected, (_, _, expected_slope) = reference("nb", x, x.sum(1), outputs)
    got, (_, _, slope) = implementation("nb", "compiled", x, x.sum(1), outputs)
    torch.testing.assert_close(got, expected, rtol=5e-6, atol=1e-3)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-4, atol=1e-3)


def test_gradients_scale_with_the_loss():
    x, outputs = block_and_outputs(3, torch.float32)
    gradients = []
    for factor in (1.0, 2.5):
        leaves = [t.clone().requires_grad_() for t in outputs]
        (factor * mean_nll(*leaves, minibatch(x))).backward()
        gradients.append([leaf.grad for leaf in leaves])
    for one, scaled in zip(*gradients, strict=True):
        torch.testing.assert_close(scaled, 2.5 * one)


def test_sample_and_kl_equals_autograd_of_the_posterior():
    rng = torch.Generator().manual_seed(0)
    mean, log_var, noise, weight = (torch.randn(5, 3, generator=rng) for _ in range(4))
    log_var[0, 0] = 30.0  # above the ceiling
    results = []
    for by_hand in (False, True):
        leaves = [mean.clone().requires_grad_(), log_var.clone().requires_grad_()]
        if by_hand:
            z, kl = sample_and_kl(*leaves, noise)
        else:
            posterior = Posterior.from_network(*leaves)
            z, kl = posterior.sample(noise), posterior.kl_nk().sum(1).mean()
        ((z * weight).sum() + 0.7 * kl).backward()
        results.append([z.detach(), kl.detach(), *(leaf.grad for leaf in leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_elbo_equals_scvi_tools(kind):
    """Reference values: tests/data/make_scvi_elbo.py, run with scvi-tools 1.4.2."""
    saved = json.loads(Path(__file__).with_name("data").joinpath("scvi_elbo.json").read_text())
    x = torch.tensor(saved["counts"], dtype=torch.float32)
    logits, zero_logit, log_theta = (torch.tensor(saved[name]) for name in ("logits", "zero_logit", "log_theta"))
    outputs = (torch.cat([logits, zero_logit], dim=1), torch.zeros(2 * logits.shape[1]), log_theta)
    posterior = Posterior(torch.tensor(saved["mean"]), torch.tensor(saved["var"]))
    for form in ("compiled", "dense"):
        nll_n, _ = implementation(kind, form, x, x.sum(1), outputs)
        elbo = -(nll_n + posterior.kl_nk().sum(1))
        # scvi-tools adds 1e-8 inside its logarithms and sums in float32. The tolerance is relative to values of several
        # thousand nats.
        np.testing.assert_allclose(elbo.numpy(), saved["elbo"][kind], rtol=1e-4, atol=1e-4)
