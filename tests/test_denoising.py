"""Denoised counts of an individual cell combine the expected counts of the cell's state with the cell's own counts."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pytest
import torch
from command_line import run_ok
from handmade import random_vae
from scipy import sparse as sp
from scipy.integrate import quad
from scipy.stats import gamma, poisson
from simulated import counts_of, learned, tree
from workbench import USAGE, assert_refused

import scvae_cli as scvae
from scvae_cli.data.minibatches import CellTable
from scvae_cli.data.simulation import true_mean
from scvae_cli.errors import ConfigError, DataError


def rate_by_quadrature(x: float, mu: float, theta: float, zero: float, *, dropouts_are_zero: bool) -> float:
    """Compute E[λ | x] of a count that is Poisson(λ), λ = μ·m, m ~ Gamma(θ, θ), unless it is an inflated zero."""

    def joint(m: float, power: int, dropped: float) -> float:
        seen = (1 - zero) * poisson.pmf(x, mu * m) + dropped * zero * (x == 0)
        return (mu * m) ** power * seen * gamma.pdf(m, theta, scale=1 / theta)

    top = gamma.isf(1e-13, theta, scale=1 / theta) + 10 * (x + 1) / mu
    options = {"points": [0.01, 0.1, 1.0, (x + theta) / (mu + theta)], "limit": 400}
    above = quad(joint, 0, top, args=(1, 0.0 if dropouts_are_zero else 1.0), **options)[0]
    return above / quad(joint, 0, top, args=(0, 1.0), **options)[0]


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("technical", [False, True])
def test_rate_of_a_cell_is_its_posterior_mean(likelihood, technical):
    vae = random_vae(likelihood, g=5)
    x_ng = np.array([[0, 1, 7, 0, 40], [3, 0, 0, 0, 1]], dtype=np.float32)
    cells = CellTable(sp.csr_matrix(x_ng), None, torch.device("cpu")).take(np.arange(2))
    with torch.no_grad():
        output = vae.decode(torch.tensor([[0.3, -1.0, 0.5], [1.0, 0.2, -0.4]]).double(), None)
        mu_ng = output.mean_ng(cells.library_n).numpy()
        rate_ng = mu_ng * output.own_factor_ng(cells, with_zero_inflation=technical).numpy()
    if likelihood == "poisson":
        assert np.array_equal(rate_ng, mu_ng)
        return
    theta_g = output.log_theta_g.exp().detach().numpy()
    zero_ng = torch.sigmoid(output.zero_logit_ng).detach().numpy() if likelihood == "zinb" else np.zeros_like(mu_ng)
    expected = [
        [
            rate_by_quadrature(x_ng[n, g], mu_ng[n, g], theta_g[g], zero_ng[n, g], dropouts_are_zero=technical)
            for g in range(5)
        ]
        for n in range(2)
    ]
    np.testing.assert_allclose(rate_ng, expected, rtol=1e-4)


def test_cell_estimate_lies_between_state_estimate_and_counts():
    adata, model = learned()
    options = {"batch_as": "observed", "with_zero_inflation": False, "inplace": False}
    state = scvae.denoise(adata, model, **options).rows.whole()
    cell = scvae.denoise(adata, model, estimate="cell", **options).rows.whole()
    x = adata.X.toarray()
    low, high = np.minimum(state, x), np.maximum(state, x)
    assert ((cell >= low * 0.999) & (cell <= high * 1.001)).all(), (
        "the estimate lies between the estimate of the state and the counts"
    )
    # At twice the library size, the rate is twice as large.
    library = np.asarray(adata.X.sum(1)).ravel()
    first_cell = adata[:1].copy()
    wide = scvae.denoise(first_cell, model, estimate="cell", library=2 * library[0], **options).rows.whole()
    np.testing.assert_allclose(wide, 2 * cell[:1], rtol=1e-4)


def test_batch_as_observed_uses_the_batch_of_each_cell():
    adata, model = learned()
    options = {"inplace": False}
    own = scvae.denoise(adata, model, batch_as="observed", **options).rows.whole()
    for name in model.batches:
        in_batch = (adata.obs["batch"] == name).to_numpy()
        expected = scvae.denoise(adata, model, batch_as=name, **options).rows.whole()[in_batch]
        np.testing.assert_allclose(own[in_batch], expected, rtol=1e-5)


def test_cell_predicts_withheld_counts_and_state_the_true_mean():
    """The estimate "cell" predicts withheld counts better; "state" is nearer to the true mean of the cell's state."""
    from scvae_cli.evaluation.thinning import thin

    adata = tree(n_cells=800, n_genes=150, zero_inflation=0.0, depth=3000)
    thinned = thin(counts_of(adata), seed=1)
    kept = ad.AnnData(thinned.kept.matrix, var=adata.var[[]])
    model = scvae.train(kept, n_hidden=64, n_latent=5, max_epochs=40, likelihood="nb", genes="all", threads=1)
    truth = 0.9 * true_mean(adata.obs, adata.varm)
    loss, error = {}, {}
    for estimate in ("state", "cell"):
        mean_ng = scvae.denoise(kept, model, estimate=estimate, inplace=False).rows.whole()
        loss[estimate] = thinned.poisson_loss([mean_ng]).mean()
        error[estimate] = np.mean((mean_ng - truth) ** 2)
    assert loss["cell"] < loss["state"]
    assert error["state"] < error["cell"]


def test_command_option_estimate_cell(tmp_path, trained):
    copied = trained.copy_to(tmp_path)
    run_ok("denoise", copied.data, "-m", copied.model, "--estimate", "cell")
    assert np.isfinite(ad.read_h5ad(copied.data).layers["scvae_denoised"]).all()
    assert_refused(
        tmp_path, ["denoise", copied.data, "-m", copied.model, "--estimate", "own"], USAGE, "--estimate is 'own'"
    )


def test_genes_can_be_given_as_symbols(copied):
    adata = ad.read_h5ad(copied.data)
    adata.var["symbol"] = [f"Symbol{i}" for i in range(adata.n_vars)]
    options = {"genes": ["Symbol3", adata.var_names[1]], "gene_symbols": "symbol"}
    scvae.denoise(adata, copied.model, **options)
    assert list(np.flatnonzero(adata.var["scvae_modelled"])) == [1, 3]
    assert adata.obsm["scvae_denoised"].shape == (adata.n_obs, 2)
    assert list(adata.uns["scvae"]["denoised_genes"]) == list(adata.var_names[[1, 3]])
    record = json.loads(adata.uns["scvae"]["runs"]["denoise"])
    assert record["options"]["genes"] == [adata.var_names[3], adata.var_names[1]]
    with pytest.raises(DataError, match="'Symbol99' is not in the model"):
        scvae.denoise(adata, copied.model, **options | {"genes": ["Symbol99"]})
    with pytest.raises(ConfigError, match="genes contains no gene names"):
        scvae.denoise(adata, copied.model, genes=[])
