"""The penalty of `train --flat` equals its definition, and improves distances in latent space."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from command_line import run_cli
from simulated import counts_of, tiny_config, tree
from workbench import USAGE, assert_refused

from scvae_cli.config import ModelConfig, TrainConfig
from scvae_cli.errors import ConfigError
from scvae_cli.latent.posteriors import posteriors
from scvae_cli.model.geometry import Geometry
from scvae_cli.model.vae import VAE
from scvae_cli.training import flatness
from scvae_cli.training.fit import Finished, Stopped, fit
from scvae_cli.training.flatness import (
    flatness_penalty,
    lengths_between,
    pulled_back,
    stress,
    unevenness,
    unflatness,
)

K, G, LIBRARY = 3, 15, 1500.0


@pytest.fixture(scope="module")
def counts():
    return counts_of(tree(n_cells=300))


@pytest.fixture
def vae() -> VAE:
    """An untrained network in float64, with batches, two hidden layers, and dispersions of many sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ModelConfig(n_latent=K, n_hidden=16, n_layers=2, encoder_dropout=0.0, decoder_dropout=0.5)
        vae = VAE(config, G, ("a", "b"))
        for p in (vae.decoder.batch.gene_bg, vae.decoder.batch.hidden_bh, vae.decoder.head.raw_log_theta_g):
            torch.nn.init.normal_(p)
        vae.reference_library.fill_(LIBRARY)
        vae.batch_share_b.copy_(torch.tensor([0.25, 0.75]))
    return vae.double()


def jacobian(vae: VAE, z_k: torch.Tensor) -> torch.Tensor:
    """Compute the Jacobian of the Fisher–Rao coordinates at a point by torch's autograd, shape (g, k)."""

    def y(z_k):
        library_n = torch.full((1,), LIBRARY, dtype=torch.float64)
        one_each = [vae.expected_counts(z_k[None], library_n, torch.tensor([b]))[0] for b in (0, 1)]
        mean_g = 0.25 * one_each[0] + 0.75 * one_each[1]
        theta_g = vae.decoder.head.log_theta_g.exp()
        return 2 * theta_g.sqrt() * torch.asinh((mean_g / theta_g).sqrt())

    return torch.autograd.functional.jacobian(y, z_k)


def positive_definite(k: int, seed: int) -> torch.Tensor:
    root = torch.randn(k, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + 0.1 * torch.eye(k, dtype=torch.float64)


def run(counts, config, **options):
    events = list(fit(counts, config, **options))
    assert isinstance(events[-1], Finished)
    return events[-1].model


def same_weights(a, b):
    ours, theirs = a.vae.state_dict(), b.vae.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def condition_numbers(model, counts) -> np.ndarray:
    """Compute condition numbers of the metric M at samples of the prior, where cells may lie."""
    z_nk = torch.randn(200, model.config.model.n_latent, generator=torch.Generator().manual_seed(0))
    value_nk = torch.linalg.eigvalsh(Geometry(model.vae).metric(z_nk).double())
    return (value_nk[:, -1] / value_nk[:, 0].clamp_min(1e-12)).numpy()


# --- the penalty ------------------------------------------------------------------------------------------------------


def test_metric_equals_a_full_jacobian_without_dropout(vae):
    vae.train()
    z_pk = torch.randn(4, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = pulled_back(vae, z_pk)
    vae.eval()
    jacobian_pgk = torch.stack([jacobian(vae, z_k) for z_k in z_pk])
    # The last layer of the network returns float32.
    assert torch.allclose(found, jacobian_pgk.transpose(1, 2) @ jacobian_pgk, rtol=1e-5, atol=1e-6)


def test_unflatness_is_the_mean_over_pairs_of_tangents():
    """E[(uᵀMv/α − u·v)²] with u, v ~ N(0, C), divided by its scale in C, agrees within 4 standard errors."""
    cov_kk, metric_pkk = positive_definite(K, 0), torch.stack([positive_definite(K, seed) for seed in (1, 2)])
    n, noise = 400_000, torch.Generator().manual_seed(0)
    root_kk = torch.linalg.cholesky(cov_kk)
    u, v = (torch.randn(n, K, dtype=torch.float64, generator=noise) @ root_kk.T for _ in range(2))
    alpha = sum((metric @ cov_kk).trace() for metric in metric_pkk) / len(metric_pkk) / cov_kk.trace()
    drawn = sum(((u @ metric * v).sum(1) / alpha - (u * v).sum(1)).square() for metric in metric_pkk) / len(metric_pkk)
    drawn = drawn * (cov_kk.trace() / cov_kk.square().sum()) ** 2
    assert abs(unflatness(metric_pkk, cov_kk) - drawn.mean()) < 4 * drawn.std() / n**0.5


def test_unflatness_is_the_plain_norm_if_all_directions_are_used_equally():
    metric_pkk = torch.stack([positive_definite(5, seed) for seed in (1, 2, 3)])
    alpha = metric_pkk.diagonal(dim1=1, dim2=2).mean()
    expected = (metric_pkk / alpha - torch.eye(5, dtype=torch.float64)).square().sum((1, 2)).mean()
    for scale in (0.3, 40.0):
        cov_kk = scale * torch.eye(5, dtype=torch.float64)
        assert unflatness(metric_pkk, cov_kk) == pytest.approx(float(expected), rel=1e-4)


def test_penalty_of_a_scaled_isometry_is_zero_and_scale_has_no_effect():
    cov_kk = positive_definite(4, 0)
    isometry_pkk = 7.0 * torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    assert abs(unflatness(isometry_pkk, cov_kk)) < 1e-12
    assert abs(unevenness(isometry_pkk)) < 1e-4
    metric_pkk = torch.stack([positive_definite(4, seed) for seed in (1, 2)])
    assert unflatness(metric_pkk, cov_kk) > 0.01
    assert unevenness(metric_pkk) > 0.01
    assert unflatness(30 * metric_pkk, cov_kk) == pytest.approx(float(unflatness(metric_pkk, cov_kk)))
    assert unevenness(30 * metric_pkk) == pytest.approx(float(unevenness(metric_pkk)))


def test_unevenness_has_finite_gradients_in_an_unresponsive_direction():
    metric_pkk = torch.diag(torch.tensor([4.0, 2.0, 1e-3, 0.0])).repeat(2, 1, 1).requires_grad_(True)
    value = unevenness(metric_pkk)
    value.backward()
    slope_k = metric_pkk.grad[0].diagonal()
    assert torch.isfinite(value)
    assert torch.isfinite(slope_k).all()
    assert slope_k[3] < 100 * slope_k[2] < 0


def test_stress_is_the_residual_after_the_best_common_scale():
    rng = np.random.default_rng(0)
    length, distance = rng.uniform(1, 9, (2, 30))
    best = np.linalg.lstsq(length[:, None], distance, rcond=None)
    expected = best[1][0] / (distance**2).sum()
    assert float(stress(torch.tensor(length), torch.tensor(distance))) == pytest.approx(expected, rel=1e-10)
    assert float(stress(torch.tensor(5 * length), torch.tensor(distance))) == pytest.approx(expected, rel=1e-10)
    assert abs(stress(torch.tensor(7 * distance), torch.tensor(distance))) < 1e-12


def test_lengths_are_sums_of_chords_along_straight_lines(vae):
    """There are as many lines as cells, and each cell is the end of two lines."""
    mean_nk = torch.randn(5, K, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    length_p, distance_p = lengths_between(vae, mean_nk)
    vae.eval()
    torch.manual_seed(0)
    order = torch.randperm(5).tolist()
    pairs = list(zip(order, order[1:] + order[:1], strict=True))
    expected = {}
    for a, b in pairs:
        line_tk = torch.stack([(1 - t / 3) * mean_nk[a] + t / 3 * mean_nk[b] for t in range(4)])
        y_tg = Geometry(vae).coordinates(line_tk).detach()
        expected[a, b] = float((y_tg[1:] - y_tg[:-1]).norm(dim=1).sum())
    assert length_p.tolist() == pytest.approx([expected[pair] for pair in pairs], rel=1e-5)
    assert distance_p.tolist() == pytest.approx([float((mean_nk[a] - mean_nk[b]).norm()) for a, b in pairs])


def test_positions_of_cells_get_gradients_from_the_stress_alone(vae, monkeypatch):
    vae.float().train()
    mean_nk, z_nk = (torch.randn(10, K, generator=torch.Generator().manual_seed(s)).requires_grad_() for s in (0, 1))
    torch.manual_seed(0)
    total = torch.autograd.grad(flatness_penalty(vae, mean_nk, z_nk), mean_nk)[0]
    # The penalty draws the points at which M is computed, and then the order in which lines join the cells.
    torch.manual_seed(0)
    torch.randint(10, (flatness._SAMPLES,))
    of_stress = torch.autograd.grad(stress(*lengths_between(vae, mean_nk)), mean_nk)[0]
    assert total.any()
    assert torch.equal(total, of_stress)
    monkeypatch.setattr(flatness, "stress", lambda *_: torch.zeros(()))
    flatness_penalty(vae, mean_nk, z_nk).backward()
    assert mean_nk.grad is None
    assert z_nk.grad is None
    for p in (vae.decoder.first.weight, vae.decoder.head.outputs.weight):
        assert p.grad is not None
        assert torch.isfinite(p.grad).all()
        assert p.grad.any()


def test_penalty_of_a_collapsed_posterior_is_finite(vae):
    vae.float()
    mean_nk = torch.zeros(10, K, requires_grad=True)
    penalty = flatness_penalty(vae, mean_nk, torch.zeros(10, K))
    penalty.backward()
    assert torch.isfinite(penalty)
    assert torch.isfinite(mean_nk.grad).all()
    assert torch.isfinite(vae.decoder.first.weight.grad).all()


# --- training ---------------------------------------------------------------------------------------------------------


def test_flat_zero_does_not_change_the_weights(counts, monkeypatch):
    """Without --flat, no random number is drawn and no term is added, even if the penalty cannot be computed."""
    plain = run(counts, tiny_config(max_epochs=3))
    monkeypatch.setattr(flatness, "pulled_back", None)
    monkeypatch.setattr(flatness, "lengths_between", None)
    assert same_weights(plain, run(counts, tiny_config(max_epochs=3, flat=0.0)))
    assert TrainConfig().flat == 0


def test_flat_lowers_the_condition_number(counts):
    plain, flat = (run(counts, tiny_config(max_epochs=25, flat=W)) for W in (0.0, 3.0))
    before, after = (np.log(condition_numbers(model, counts)).mean() for model in (plain, flat))
    assert after < before - np.log(2)


def test_stress_alone_makes_lengths_proportional_to_distances(counts, monkeypatch):
    for other in ("_FLATNESS", "_EVENNESS"):
        monkeypatch.setattr(flatness, other, 0.0)
    remaining = []
    for weight in (0.0, 3.0):
        model = run(counts, tiny_config(max_epochs=25, flat=weight))
        kept = np.flatnonzero(np.isin(counts.gene_names, model.genes))
        mean_nk = posteriors(model, counts.genes(kept)).mean_nk
        torch.manual_seed(0)
        drawn = [lengths_between(model.vae, mean_nk) for _ in range(25)]
        remaining.append(float(stress(torch.cat([one[0] for one in drawn]), torch.cat([one[1] for one in drawn]))))
    assert remaining[1] < 0.5 * remaining[0]


def test_training_with_flat_is_reproducible_and_resumes_exactly(counts, tmp_path):
    config = tiny_config(max_epochs=5, flat=1.0)
    uninterrupted = run(counts, config)
    torch.rand(3)  # the caller's random state does not matter
    assert same_weights(uninterrupted, run(counts, config))
    folder = tmp_path / "m.scvae"
    calls = iter(range(1, 100))
    events = list(fit(counts, config, model_folder=folder, stop_requested=lambda: next(calls) == 2))
    assert events[-1] == Stopped(epoch=2)
    assert same_weights(uninterrupted, run(counts, config, model_folder=folder, resume=True))


@pytest.mark.parametrize("likelihood", ["nb", "poisson"])
def test_flat_works_with_batches_and_every_likelihood(likelihood):
    data = counts_of(tree(n_cells=150, n_batches=2), "batch")
    model = run(data, tiny_config(likelihood=likelihood, flat=1.0, max_epochs=2, batch_key="batch"))
    assert np.isfinite(model.facts["heldout_elbo"])
    assert model.config.train.flat == 1.0


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_invalid_weights_are_refused(value):
    with pytest.raises(ConfigError, match="--flat"):
        dataclasses.replace(TrainConfig(), flat=value)


def test_train_has_the_option_flat(bench):
    assert_refused(bench.folder, bench.train_args("--flat", "-1"), USAGE, "--flat is -1")
    assert "--flat" in run_cli("train", "--help").out
