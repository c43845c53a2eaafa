"""The variational and the amortization gap of a linear-Gaussian model, whose marginal likelihood is known.

With p(x|z) = N(b + W z, σ²), the posterior is N(m, Λ⁻¹), Λ = I + WᵀW/σ², and the marginal is N(b, WWᵀ + σ²). The best
diagonal Gaussian has mean m and variances 1/Λ_kk. The KL divergence of this diagonal Gaussian from the posterior, ½(Σ
log Λ_kk − log det Λ) nats, is the variational gap. The rest of the inference gap is the amortization gap of the
encoder.

Letters in array shapes: n cells, g features, k latent dimensions.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from linear_gaussian import ad_of, linear_model, marginal, real
from scipy.stats import multivariate_normal, norm
from simulated import TINY

import scvae_cli as scvae
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.tools.diagnose.gaps import gaps
from scvae_cli.tools.diagnose.latent_use import aggregated_posterior, latent_use
from scvae_cli.tools.diagnose.options import DiagnoseOptions


def truth(model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return W/σ, shape (g, k), the precision Λ of the posterior, shape (k, k), and the noise σ, shape (g,)."""
    head = model.vae.decoder.head
    sd_g = head.log_sd_g.detach().exp().numpy()
    w_gk = (head.scale_g[:, None] * head.outputs.weight).detach().numpy() / sd_g[:, None]
    return w_gk, np.eye(w_gk.shape[1]) + w_gk.T @ w_gk, sd_g


def expected_gaps(model, x_ng: np.ndarray) -> tuple[float, float]:
    """Compute amortization and variational gap in closed form, means over the cells, nats."""
    w_gk, precision_kk, sd_g = truth(model)
    q = posteriors(model, real(x_ng))
    centre_g = marginal(model).mean
    mean_nk = np.linalg.solve(precision_kk, w_gk.T @ ((x_ng - centre_g) / sd_g).T).T
    diagonal_k = np.diag(precision_kk)
    variational = 0.5 * (np.log(diagonal_k).sum() - np.linalg.slogdet(precision_kk)[1])
    # KL(q ‖ posterior) of the encoder's Gaussians is the sum of both gaps.
    off_nk, var_nk = q.mean_nk.double().numpy() - mean_nk, q.var_nk.double().numpy()
    total_n = 0.5 * (
        var_nk @ diagonal_k
        + np.einsum("nk,kj,nj->n", off_nk, precision_kk, off_nk)
        - len(diagonal_k)
        - np.log(var_nk).sum(1)
        - np.linalg.slogdet(precision_kk)[1]
    )
    return float(total_n.mean() - variational), float(variational)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_gaps_equal_the_closed_form(orthogonal):
    model = linear_model()
    head = model.vae.decoder.head
    if orthogonal:
        w_gk, _, sd_g = truth(model)
        columns_gk = np.linalg.qr(w_gk)[0] * np.linalg.norm(w_gk, axis=0)
        weight_gk = columns_gk * sd_g[:, None] / head.scale_g[:, None].numpy()
        with torch.no_grad():
            head.outputs.weight.copy_(torch.as_tensor(weight_gk))
    own = marginal(model)
    x_ng = own.rvs(60, random_state=1)
    amortization, variational = expected_gaps(model, x_ng)
    found = gaps(model, real(x_ng), DiagnoseOptions(refine=300, n_samples=400, seed=0))
    log_p_n = multivariate_normal(own.mean, own.cov).logpdf(x_ng)
    assert found.bound_n.mean() == pytest.approx(log_p_n.mean(), abs=0.02)
    assert found.amortization.mean == pytest.approx(amortization, rel=0.03, abs=0.03)
    assert found.variational.mean == pytest.approx(variational, abs=0.05)
    # The log of a density may be 0, so gaps are given in percent of the entropy of seven standard normals.
    assert found.variational.percent == pytest.approx(100 * found.variational.mean / (7 * norm.entropy()))
    assert (variational < 1e-6) == orthogonal
    assert (found.encoder_n <= log_p_n + 0.5).all()


def test_diagnosis_of_real_numbers_omits_zeros_and_thinning():
    random = np.random.default_rng(0)
    z_nk, w_kg = random.standard_normal((300, 2)), random.standard_normal((2, 9))
    adata = ad_of(z_nk @ w_kg + 0.3 * random.standard_normal((300, 9)) - 1)
    model = scvae.train(adata, **TINY | {"max_epochs": 40}, likelihood="normal", genes="all")
    found = scvae.diagnose(adata, model, n_samples=20, refine=10, n_trainings=2, inplace=False)
    topics = [verdict.topic for verdict in found.verdicts]
    assert "zeros" not in topics
    assert "variances" in topics
    assert topics[-2:] == ["baselines: likelihood", "stability"]
    baselines = found.baselines.values()
    assert list(baselines["model"]) == ["VAE", "linear decoder", "mean model"]
    assert np.isnan(baselines["vae_advantage_thinned"]).all()
    # The cells vary along two dimensions, so a VAE is significantly better than a mean model.
    advantage, error = (baselines[f"vae_advantage_heldout{end}"][2] for end in ("", "_error"))
    assert advantage > 3 * error > 0
    mean = multivariate_normal(adata.X.mean(0), np.diag(adata.X.var(0)))
    out = adata[list(model.heldout_cells)].X
    assert baselines["heldout_log_prob"][2] == pytest.approx(mean.logpdf(out).mean(), abs=0.5)
    q = posteriors(model, real(np.asarray(adata.X)))
    assert latent_use(q).n_active >= 2
    assert aggregated_posterior(q, q, model.density, seed=0).mutual_information > 0.5
