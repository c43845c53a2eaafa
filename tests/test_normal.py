"""Models with `--likelihood normal` are compared with scipy's normal distribution and with marginals in closed form.

Letters in array shapes: n cells, g features, k latent dimensions, m tangents, b batches.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from linear_gaussian import ad_of, linear_model, marginal, real
from scipy import stats

import scvae_cli as scvae
from scvae_cli.config import LIKELIHOODS, DataConfig, ModelConfig, RunConfig
from scvae_cli.data.counts import what_is_wrong
from scvae_cli.data.gene_selection import match_genes, select_genes
from scvae_cli.data.minibatches import CellTable, Minibatch
from scvae_cli.data.moments import moments
from scvae_cli.errors import ConfigError, DataError, ScvaeWarning
from scvae_cli.model.bundle import load
from scvae_cli.model.geometry import Geometry
from scvae_cli.model.network import NormalHead
from scvae_cli.model.vae import VAE
from scvae_cli.training.fit import Stopped, fit, fit_to_end
from scvae_cli.training.flatness import flatness_penalty
from scvae_cli.training.recipe import settle

CPU = torch.device("cpu")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def minibatch(x_ng: np.ndarray, batch_n: np.ndarray | None = None) -> Minibatch:
    return CellTable(sp.csr_matrix(x_ng.astype(np.float32)), batch_n, CPU, real=True).take(np.arange(len(x_ng)))


def random_vae(
    *, decoder: str = "mlp", batches: tuple[str, ...] = (), variance: float | None = None, g: int = 6
) -> VAE:
    """An untrained network in float64 whose features have very different scales."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ModelConfig(likelihood="normal", variance=variance, decoder=decoder, n_latent=3, n_hidden=24)
        vae = VAE(config, g, batches)
        size_g = np.logspace(-2, 2, g)
        vae.start_from_moments(5 * size_g, size_g**2, np.arange(60) % 3 if batches else None)
        for name, parameter in vae.decoder.named_parameters():
            if "log_sd" in name or "batch" in name:
                torch.nn.init.normal_(parameter)
    return vae.double().eval()


# --- the likelihood ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [None, 0.06])
def test_nll_equals_scipy(variance):
    vae, x_ng = random_vae(variance=variance), 10 * normal(5, 6).numpy()
    x_ng[2] = 0
    cells = minibatch(x_ng)
    output = vae.decode(normal(5, 3, seed=1), None)
    mean_ng, sd_g = output.mean_ng(cells.library_n).detach().numpy(), vae.decoder.head.log_sd_g.exp().detach().numpy()
    expected_n = -stats.norm.logpdf(x_ng.astype(np.float32), mean_ng, sd_g).sum(1)
    np.testing.assert_allclose(output.nll_n(cells), expected_n, rtol=1e-6)
    assert float(output.mean_nll(cells).detach()) == pytest.approx(expected_n.mean(), rel=1e-6)
    if variance is not None:
        np.testing.assert_allclose(sd_g, math.sqrt(variance), rtol=1e-6)
        assert vae.decoder.head.raw_log_sd_g is None


def test_network_starts_at_the_moments_of_the_data():
    vae = random_vae()
    fresh = NormalHead(24, 6)
    mean_g, sd_g = torch.linspace(-3, 9, 6), torch.logspace(-3, 3, 6)
    fresh.start(mean_g, sd_g)
    torch.testing.assert_close(fresh.log_sd_g.exp(), sd_g)
    torch.testing.assert_close(fresh(torch.zeros(1, 24)).mean_ng(torch.ones(1))[0], mean_g)
    x_ng = 5 * np.logspace(-2, 2, 6) + np.logspace(-2, 2, 6) * normal(4, 6).numpy()
    seen_ng = vae.encoder.seen(minibatch(x_ng), vae.reference_library)
    np.testing.assert_allclose(seen_ng, normal(4, 6).numpy(), atol=1e-5)
    assert float(vae.reference_library) == 1


def test_library_size_has_no_effect():
    vae = random_vae()
    cells = minibatch(normal(4, 6).numpy())
    deep = Minibatch(n_genes=6, nonzeros=cells.nonzeros, library_n=7 * cells.library_n, batch_n=None)
    assert torch.equal(vae.encode(cells).mean_nk, vae.encode(deep).mean_nk)
    z_nk = normal(4, 3)
    output = vae.decode(z_nk, None)
    assert torch.equal(output.nll_n(cells), output.nll_n(deep))
    assert torch.equal(
        vae.expected_counts(z_nk, cells.library_n, None), vae.expected_counts(z_nk, deep.library_n, None)
    )
    assert torch.equal(Geometry(vae).metric(z_nk), Geometry(vae, library=50.0).metric(z_nk))


def test_draws_have_the_moments_of_the_distribution():
    vae = random_vae()
    output = vae.decode(normal(1, 3).expand(20_000, 3), None)
    mean_g, sd_g = output.mean_ng(torch.ones(1))[0].detach().numpy(), vae.decoder.head.log_sd_g.exp().detach().numpy()
    with torch.no_grad():
        drawn_ng = output.draw(torch.ones(20_000), np.random.default_rng(0))
    assert drawn_ng.dtype == np.float32
    assert (np.abs(drawn_ng.mean(0) - mean_g) < 4.5 * sd_g / 20_000**0.5).all()
    np.testing.assert_allclose(drawn_ng.std(0), sd_g, rtol=0.03)


# --- geometry ---------------------------------------------------------------------------------------------------------


def plain_mean(vae: VAE, z_nk: torch.Tensor) -> torch.Tensor:
    """Compute μ in the average batch."""
    means = []
    for b in range(max(1, len(vae.batches))):
        batch_n = torch.full((len(z_nk),), b) if vae.batches else None
        means.append(vae.decode(z_nk, batch_n).mean_ng(torch.ones(len(z_nk))))
    share_b = vae.batch_share_b if vae.batches else torch.ones(1).double()
    return sum(share * mean for share, mean in zip(share_b, means, strict=True))


every_decoder = pytest.mark.parametrize(
    ("decoder", "batches"), [(d, b) for d in ("mlp", "linear") for b in ((), ("a", "b", "c"))]
)


@torch.no_grad()
@every_decoder
def test_metric_is_the_curvature_of_the_divergence(decoder, batches):
    """KL(N(μ, σ²) ‖ N(μ', σ²)) = ½Σ((μ − μ')/σ)² → ½ε² vᵀMv."""
    vae = random_vae(decoder=decoder, batches=batches)
    z_1k, step = normal(1, 3, seed=1), 1e-4
    metric_kk, sd_g = Geometry(vae).metric(z_1k)[0], vae.decoder.head.log_sd_g.exp()
    for v_k in normal(4, 3, seed=2):
        divergences = [
            0.5 * float(((plain_mean(vae, z_1k) - plain_mean(vae, z_1k + s * step * v_k)) / sd_g).square().sum())
            for s in (1, -1)
        ]
        assert sum(divergences) / step**2 == pytest.approx(float(v_k @ metric_kk @ v_k), rel=1e-4)


@every_decoder
def test_push_is_the_derivative_of_the_coordinates(decoder, batches):
    vae = random_vae(decoder=decoder, batches=batches)
    sd_g, z_nk, v_mnk = vae.decoder.head.log_sd_g.exp().detach(), normal(5, 3), normal(2, 5, 3, seed=1)
    y_ng, pushed_mng = Geometry(vae).push(z_nk, v_mnk)
    for v_nk, pushed_ng in zip(v_mnk, pushed_mng, strict=True):
        # The derivative by autograd, one feature at a time: ∂(y·w)/∂z · v.
        expected_ng = torch.stack(
            [
                (torch.autograd.grad((plain_mean(vae, at) / sd_g)[:, g].sum(), at)[0] * v_nk).sum(1)
                for g in range(6)
                for at in [z_nk.clone().requires_grad_(True)]
            ],
            dim=1,
        )
        torch.testing.assert_close(pushed_ng, expected_ng)
    torch.testing.assert_close(y_ng, plain_mean(vae, z_nk) / sd_g)
    torch.testing.assert_close(Geometry(vae).coordinates(z_nk), y_ng)


def test_flatness_penalty_has_no_gradient_for_the_noise():
    vae = random_vae().float().train()
    flatness_penalty(vae, normal(10, 3).float(), normal(10, 3, seed=1).float()).backward()
    assert vae.decoder.head.raw_log_sd_g.grad is None
    assert vae.decoder.head.outputs.weight.grad.any()
    # The typical loss, by which a penalty is scaled, is positive even where the density is above 1.
    assert vae.decoder.head.typical_loss(torch.tensor(-50.0)) > 0


# --- bounds against closed forms --------------------------------------------------------------------------------------


def test_bounds_approach_the_marginal_likelihood():
    """ELBO ≤ importance bound ≤ log p(x) = log N(x; b, WWᵀ + Σ), and with many samples the bound nearly reaches it."""
    model = linear_model()
    truth = marginal(model)
    x_ng = truth.rvs(60, random_state=1)
    few, many = (scvae.score(ad_of(x_ng), model, n_samples=s, n_simulated=100, inplace=False) for s in (20, 3000))
    log_p_n = truth.logpdf(x_ng.astype(np.float32))
    assert (many.elbo < log_p_n).all()
    assert few.elbo.mean() < few.iwae.mean() < log_p_n.mean()
    assert many.iwae.mean() == pytest.approx(log_p_n.mean(), abs=0.02)
    assert np.abs(many.iwae - log_p_n).max() < 0.5


def test_linear_model_is_nearly_as_good_as_probabilistic_pca():
    """Bounds on unseen cells are compared with the likelihood of probabilistic PCA (Tipping & Bishop 1999)."""
    random, g, k = np.random.default_rng(0), 10, 2
    w_gk, b_g = random.standard_normal((g, k)), 3 * random.standard_normal(g)

    def cells(n: int) -> np.ndarray:
        return random.standard_normal((n, k)) @ w_gk.T + b_g + 0.5 * random.standard_normal((n, g))

    x_ng, new_ng = cells(1500), cells(1000)
    model = scvae.train(
        ad_of(x_ng), likelihood="normal", decoder="linear", n_latent=k, n_hidden=64, device="cpu", threads=1
    )
    assert model.facts["active_units"] == k
    value_g, vector_gg = np.linalg.eigh(np.cov(x_ng.T, bias=True))
    noise = value_g[:-k].mean()
    loading_gk = vector_gg[:, -k:] * np.sqrt(value_g[-k:] - noise)
    pca = stats.multivariate_normal(x_ng.mean(0), loading_gk @ loading_gk.T + noise * np.eye(g))
    truth = stats.multivariate_normal(b_g, w_gk @ w_gk.T + 0.25 * np.eye(g))
    scores = scvae.score(ad_of(new_ng), model, n_samples=100, n_simulated=100, inplace=False)
    best, log_true_n = pca.logpdf(new_ng).mean(), truth.logpdf(new_ng)
    assert scores.iwae.mean() > best - 0.02 * abs(best)
    # No model has a higher likelihood than the true model, except for the noise of a mean over 1,000 cells.
    assert scores.iwae.mean() < log_true_n.mean() + 3 * (scores.iwae - log_true_n).std() / 1000**0.5
    # The importance bound is below the marginal likelihood of the model, up to the noise of the posterior samples.
    above_n = scores.iwae - marginal(model).logpdf(new_ng.astype(np.float32))
    assert above_n.mean() <= 3 * above_n.std() / 1000**0.5
    assert float(model.vae.decoder.head.log_sd_g.exp().detach().median()) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("variance", [None, 0.5])
def test_training_is_saved_loaded_and_resumed_exactly(tmp_path, variance):
    counts = real(np.random.default_rng(0).standard_normal((120, 6)) @ np.diag(np.logspace(-2, 2, 6)))
    options = {
        "likelihood": "normal",
        "variance": variance,
        "max_epochs": 4,
        "n_hidden": 16,
        "n_latent": 2,
        "flat": 1.0,
    }
    config = RunConfig.of(options | {"device": "cpu", "threads": 1})
    uninterrupted, folder, calls = fit_to_end(counts, config), tmp_path / "m.scvae", iter(range(1, 100))
    stopped = list(fit(counts, config, model_folder=folder, stop_requested=lambda: next(calls) == 2))
    assert stopped[-1] == Stopped(epoch=2)
    list(fit(counts, config, model_folder=folder, resume=True))[-1].model.save(folder)
    found, expected = load(folder).vae.state_dict(), uninterrupted.vae.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load(folder).config.model.variance == variance
    assert ("decoder.head.raw_log_sd_g" in found) == (variance is None)


# --- data -------------------------------------------------------------------------------------------------------------


def test_moments_equal_numpy():
    random = np.random.default_rng(0)
    x_ng = np.where(random.random((5000, 5)) < 0.4, 0, random.standard_normal((5000, 5)) - 1).astype(np.float32)
    x_ng[:, 3], x_ng[:, 4] = 0.1, 1e4 + x_ng[:, 4]
    rows = np.flatnonzero(random.random(5000) < 0.9)
    mean_g, variance_g = moments(sp.csr_matrix(x_ng), rows)
    np.testing.assert_allclose(mean_g, x_ng[rows].mean(0, dtype=float), rtol=1e-9)
    np.testing.assert_allclose(variance_g[[0, 1, 2, 4]], x_ng[rows].astype(float).var(0)[[0, 1, 2, 4]], rtol=1e-7)
    assert variance_g[3] == 0


def test_variable_features_are_selected():
    x_ng = np.random.default_rng(0).standard_normal((50, 5)) * [1, 0, 3, 2, 0.1] - 4
    counts, rows = real(x_ng), np.arange(40)
    assert select_genes(counts, rows, DataConfig())[0].tolist() == [0, 2, 3, 4]
    assert select_genes(counts, rows, DataConfig(n_top_genes=2))[0].tolist() == [2, 3]
    assert select_genes(counts, rows, DataConfig(genes="all"))[0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="1 gene"):
        select_genes(real(x_ng[:, [0, 1]]), rows, DataConfig())


def test_library_size_of_real_numbers_is_one():
    counts = real(np.array([[0.0, 0.0], [-1.0, 1.0], [2.0, 3.0]]))
    assert counts.library_n.tolist() == [1, 1, 1]
    assert counts.filled.all()
    assert counts.cells(np.array([0, 2])).real
    assert CellTable(counts.matrix, None, CPU, real=True).library_n.tolist() == [1, 1, 1]


def test_missing_features_get_their_training_mean():
    counts = real(np.array([[1.0, 0.0], [-1.0, 2.0]]))
    found, missing = match_genes(
        counts, ["g1", "new", "g0"], max_missing=1.0, absent_g=np.array([5.0, -3.0, 7.0], dtype=np.float32)
    )
    assert missing == ["new"]
    assert found.real
    np.testing.assert_array_equal(found.matrix.toarray(), [[0, -3, 1], [2, -3, -1]])


@pytest.mark.parametrize(
    ("value", "reason"), [(math.nan, "NaN"), (-math.inf, "infinite"), (1e39, "too large"), (-1e300, "too large")]
)
def test_invalid_real_numbers_are_found(value, reason):
    message, where = what_is_wrong(np.array([0.5, -2.0, value]), real=True)
    assert reason in message
    assert where == 2
    assert what_is_wrong(np.array([0.5, -2.0, 1e38]), real=True) is None
    assert what_is_wrong(np.array([-3, 7]), real=True) is None


def test_invalid_options_are_refused():
    assert "normal" in LIKELIHOODS
    with pytest.raises(ConfigError, match="--variance"):
        ModelConfig(likelihood="nb", variance=0.1)
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="--variance"):
            ModelConfig(likelihood="normal", variance=value)
    values = RunConfig().as_dict()
    del values["model"]["variance"]
    assert RunConfig.from_dict(values) == RunConfig()


def test_count_likelihoods_refuse_real_numbers_and_normal_accepts_counts():
    counts = real(np.random.default_rng(0).poisson(2.0, (40, 5)))
    with pytest.raises(DataError, match="likelihood of counts"):
        fit_to_end(counts, RunConfig())
    short = RunConfig.of({"likelihood": "normal", "max_epochs": 1, "n_hidden": 8, "device": "cpu"})
    with pytest.warns(ScvaeWarning, match="holds raw counts"):
        model = fit_to_end(counts, short)
    assert np.isfinite(model.facts["heldout_elbo"])


# --- the recipe -------------------------------------------------------------------------------------------------------


def test_few_features_have_no_dropout():
    few, many = (settle(RunConfig(model=ModelConfig(likelihood="normal")), 2000, n_genes=g) for g in (24, 2000))
    assert few.model.encoder_dropout == few.model.decoder_dropout == 0
    assert many.model.decoder_dropout > 0
    assert many.model.encoder_dropout > 0
    given = RunConfig(model=ModelConfig(likelihood="normal", encoder_dropout=0.2, decoder_dropout=0.1))
    assert settle(given, 2000, n_genes=24).model == settle(given, 2000, n_genes=2000).model
    assert few.train.weight_decay < many.train.weight_decay
