"""Refined posteriors are compared with optima found by brute force, with integrals computed by quadrature.

Letters in array shapes: n cells, g genes, k latent dimensions, q nodes.
"""

from __future__ import annotations

import json

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from command_line import run_ok
from handmade import random_vae
from scipy.optimize import minimize
from scipy.special import logsumexp
from simulated import counts_of, learned
from workbench import DATA, USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.data.minibatches import CellTable
from scvae_cli.latent.posteriors import posteriors, refined_posteriors
from scvae_cli.latent.refinement import even_noise, refine
from scvae_cli.model.posterior import Posterior

N_CELLS = 3


class Quadrature:
    """ELBO and evidence of cells under a decoder of one or two latent dimensions, by Gauss–Hermite quadrature."""

    def __init__(self, vae, cells, k: int) -> None:
        self.vae, self.cells, self.k = vae, cells, k
        node, weight = np.polynomial.hermite_e.hermegauss(48 if k == 1 else 20)
        grid = np.meshgrid(*[np.arange(len(node))] * k, indexing="ij")
        self.node_qk = np.stack([node[axis.ravel()] for axis in grid], axis=1)
        self.log_weight_q = sum(np.log(weight / weight.sum())[axis.ravel()] for axis in grid)

    def log_likelihood(self, cell: int, z_qk: np.ndarray) -> np.ndarray:
        same = self.cells.take(np.full(len(z_qk), cell))
        with torch.no_grad():
            return -self.vae.decode(torch.as_tensor(z_qk), same.batch_n).nll_n(same).numpy()

    def elbo(self, cell: int, mean_k: np.ndarray, var_k: np.ndarray) -> float:
        expected = np.exp(self.log_weight_q) @ self.log_likelihood(cell, mean_k + np.sqrt(var_k) * self.node_qk)
        return float(expected - 0.5 * (mean_k**2 + var_k - 1 - np.log(var_k)).sum())

    def best_elbo(self, cell: int, starts: list[np.ndarray]) -> float:
        def loss(parameters: np.ndarray) -> float:
            return -self.elbo(cell, parameters[: self.k], np.exp(np.clip(parameters[self.k :], -9, 5)))

        return -min(
            minimize(loss, start, method="Nelder-Mead", options={"maxiter": 150, "fatol": 1e-4}).fun for start in starts
        )

    def evidence(self, cell: int, near_k: np.ndarray, var_k: np.ndarray) -> float:
        """Compute log p(x) by quadrature around a position, with the nodes of a Gaussian that is wider than the
        posterior.
        """
        sd_k = 2 * np.sqrt(var_k)
        z_qk = near_k + sd_k * self.node_qk
        log_prior_q = -0.5 * (z_qk**2).sum(1)
        log_around_q = -0.5 * (self.node_qk**2).sum(1) - np.log(sd_k).sum()
        return float(logsumexp(self.log_weight_q + self.log_likelihood(cell, z_qk) + log_prior_q - log_around_q))


def random_cells(vae, n: int, batch: bool) -> CellTable:
    rng = np.random.default_rng(3)
    x_ng = rng.poisson(8 * rng.dirichlet(np.ones(vae.n_genes), size=n)) + np.eye(n, vae.n_genes)
    batch_n = rng.integers(len(vae.batches), size=n) if batch else None
    return CellTable(sp.csr_matrix(x_ng.astype(np.float32)), batch_n, torch.device("cpu"))


@pytest.mark.parametrize(("likelihood", "k", "batches"), [("nb", 1, ()), ("zinb", 2, ("a", "b")), ("poisson", 1, ())])
def test_refined_posteriors_are_the_best_gaussians(likelihood, k, batches):
    vae = random_vae(likelihood, k=k, batches=batches, seed=1)
    table = random_cells(vae, N_CELLS, bool(batches))
    cells = table.take(np.arange(N_CELLS))
    start = Posterior(0.8 * torch.ones(N_CELLS, k).double(), torch.full((N_CELLS, k), 0.3).double())
    refined, gain_n = refine(vae, cells, start, n_steps=200)
    exact = Quadrature(vae, table, k)
    for i in range(N_CELLS):
        before = exact.elbo(i, start.mean_nk[i].numpy(), start.var_nk[i].numpy())
        mean_k, var_k = (part[i].numpy() for part in refined)
        after = exact.elbo(i, mean_k, var_k)
        origins = [np.concatenate([mean_k, np.log(var_k)])]
        origins += [np.concatenate([m * np.ones(k), np.zeros(k)]) for m in ([-1.0, 1.0] if k == 1 else [0.0])]
        best = exact.best_elbo(i, origins)
        assert before <= after + 1e-9
        # If the ELBO has two maxima, the optimization reaches the maximum nearest to the start.
        local_best = exact.best_elbo(i, origins[:1])
        assert after == pytest.approx(local_best, abs=0.02)
        assert local_best == pytest.approx(best, abs=0.15)
        # The tolerance is the error of the quadrature.
        assert best <= exact.evidence(i, mean_k, var_k) + 0.01
        assert float(gain_n[i]) == pytest.approx(after - before, abs=0.15 + 0.1 * (after - before))


def test_refinement_does_not_change_the_network():
    vae = random_vae("nb", k=2)
    cells = random_cells(vae, 5, False).take(np.arange(5))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    start = Posterior(torch.zeros(5, 2).double(), torch.ones(5, 2).double())
    found = refine(vae, cells, start, n_steps=5)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert not found.posterior.mean_nk.requires_grad
    unrefined = refine(vae, cells, start, n_steps=0)
    assert unrefined.posterior is start
    assert not unrefined.gain_n.any()


def test_cells_without_a_gain_keep_the_posterior_of_the_encoder():
    vae = random_vae("nb", k=1)
    cells = random_cells(vae, 5, False).take(np.arange(5))
    wide = Posterior(torch.zeros(5, 1).double(), torch.ones(5, 1).double())
    best = refine(vae, cells, wide, n_steps=400).posterior
    # One step at the full rate moves away from the optimum.
    refined, gain_n = refine(vae, cells, best, n_steps=1)
    kept_n = gain_n == 0
    assert kept_n.sum() >= 3
    assert torch.equal(refined.mean_nk[kept_n], best.mean_nk[kept_n])
    assert torch.equal(refined.var_nk[kept_n], best.var_nk[kept_n])


@pytest.mark.parametrize("k", [1, 3, 20])
def test_noise_is_normal_and_even(k):
    noise = even_noise(k, torch.Generator().manual_seed(0))
    size = k * -(-16 // k)
    e_nk = torch.stack([next(noise) for _ in range(size * max(1, 4000 // size))])
    assert float(e_nk.square().mean()) == pytest.approx(1, abs=0.05)
    assert float(e_nk.pow(4).mean()) == pytest.approx(3, abs=0.4)
    # Over one set of noise vectors, the mean of a quadratic form varies less than over independent normal vectors.
    form_kk = torch.randn(k, k, generator=torch.Generator().manual_seed(1)).double()
    form_kk = form_kk @ form_kk.T
    value_s = torch.einsum("sk,kj,sj->s", e_nk, form_kk, e_nk).reshape(-1, size).mean(1)
    plain = torch.randn(len(value_s) * size, k, generator=torch.Generator().manual_seed(2)).double()
    plain_s = torch.einsum("sk,kj,sj->s", plain, form_kk, plain).reshape(-1, size).mean(1)
    assert value_s.std() < 0.5 * plain_s.std()


# --- trained models ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batched():
    adata, model = learned()
    return adata[:60].copy(), model


def test_refinement_of_a_trained_model_raises_the_bound(batched):
    adata, model = batched
    counts = counts_of(adata, "batch")
    refined, gain_n = refined_posteriors(model, counts, n_steps=40)
    assert (gain_n >= 0).all()
    assert gain_n.mean() > 0.1
    start = posteriors(model, counts)
    table = CellTable(counts.matrix, np.asarray([model.batches.index(b) for b in counts.batch]), model.device)
    cells = table.take(np.arange(60))
    noise = torch.Generator().manual_seed(9)
    elbo = []
    with torch.no_grad():
        noises = [torch.randn(60, 4, generator=noise) for _ in range(100)]
        for q in (start, refined):
            nll = sum(model.vae.decode(q.sample(e), cells.batch_n).nll_n(cells).mean() for e in noises) / 100
            elbo.append(-float(nll) - float(q.kl_nk().sum(1).mean()))
    assert elbo[1] - elbo[0] == pytest.approx(float(gain_n.mean()), rel=0.25)


def test_refined_posterior_does_not_depend_on_other_cells(batched):
    adata, model = batched
    of_all = refined_posteriors(model, counts_of(adata, "batch"), n_steps=10).posterior
    of_two = refined_posteriors(model, counts_of(adata[[7, 3]], "batch"), n_steps=10).posterior
    np.testing.assert_allclose(of_two.mean_nk, of_all.mean_nk[[7, 3]], atol=2e-2)


def test_embed_refines_with_both_kinds_of_axes(batched):
    adata, model = batched
    ours = scvae.embed(adata, model, refine=5, inplace=False)
    plain = scvae.embed(adata, model, refine=5, axes="training", inplace=False)
    assert ours.gain == plain.gain > 0
    np.testing.assert_allclose(plain.mean_nk @ model.axes.rotation_kk.numpy().T, ours.mean_nk, atol=1e-5)
    assert scvae.embed(adata, model, inplace=False).gain is None
    with pytest.raises(scvae.DataError, match="batch"):
        scvae.embed(anndata.AnnData(adata.X, var=adata.var), model, refine=5, inplace=False)
    with pytest.raises(scvae.ConfigError, match="refine is -1"):
        scvae.embed(adata, model, refine=-1, inplace=False)


def test_command_option_refine(bench):
    before = json.loads(run_ok(*bench.args("embed"), "--json").out)
    assert before["refined_gain"] is None
    values = json.loads(run_ok(*bench.args("embed", "--refine", "5"), "--json").out)
    assert values["refined_gain"] > 0
    run = json.loads(anndata.read_h5ad(bench.data).uns["scvae"]["runs"]["embed"])
    assert run["options"] == {"space": "expression", "axes": "canonical", "refine": 5}
    assert "raised the ELBO" in run_ok(*bench.args("embed", "--refine", "5")).out


def test_refinement_requires_batches(bench_with_batches):
    def remove_batches(adata):
        del adata.obs["batch"]

    bench_with_batches.change(remove_batches)
    run_ok(*bench_with_batches.args("embed"))
    assert_refused(
        bench_with_batches.folder, bench_with_batches.args("embed", "--refine", "5"), DATA, "no column 'batch'"
    )
    assert_refused(
        bench_with_batches.folder, bench_with_batches.args("embed", "--refine", "-5"), USAGE, "--refine is -5"
    )
