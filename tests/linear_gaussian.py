"""A linear-Gaussian model whose marginal likelihood is known, and data of real numbers for tests."""

from __future__ import annotations

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from handmade import density_of
from scipy import stats

from scvae_cli.config import ModelConfig, RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.model.axes import CanonicalAxes
from scvae_cli.model.bundle import Model
from scvae_cli.model.expression_space import ExpressionSpace
from scvae_cli.model.vae import VAE


def real(x_ng: np.ndarray, **more) -> Counts:
    x_ng = np.asarray(x_ng)
    names = [
        np.asarray([f"{kind}{i}" for i in range(size)], dtype=object)
        for kind, size in zip("cg", x_ng.shape, strict=True)
    ]
    matrix = sp.csr_matrix(x_ng.astype(np.float32))
    return Counts(matrix=matrix, cell_names=names[0], gene_names=names[1], source="X", real=True, **more)


def ad_of(x_ng: np.ndarray) -> ad.AnnData:
    adata = ad.AnnData(np.asarray(x_ng, dtype=np.float32))
    adata.obs_names = [f"c{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
    return adata


def linear_model(k: int = 2, g: int = 7) -> Model:
    """A linear-Gaussian model made by hand, whose encoder gives only a rough position."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = ModelConfig(likelihood="normal", decoder="linear", n_latent=k, n_hidden=16)
        vae = VAE(shape, g)
        vae.start_from_moments(np.linspace(-2, 2, g), np.linspace(0.5, 2, g) ** 2, None)
        torch.nn.init.normal_(vae.decoder.head.outputs.weight, std=0.5)
        torch.nn.init.normal_(vae.decoder.head.raw_log_sd_g, mean=-0.3, std=0.1)
        # The posterior equals the prior, which is broad enough for importance weights.
        torch.nn.init.zeros_(vae.encoder.posterior.weight)
        torch.nn.init.zeros_(vae.encoder.posterior.bias)
    density = density_of(np.random.default_rng(0).standard_normal((300, k)))
    axes = CanonicalAxes(torch.eye(k), torch.ones(k))
    expression = ExpressionSpace(torch.zeros(g), torch.eye(g), torch.tensor(1.0))
    genes = tuple(f"g{i}" for i in range(g))
    return Model(
        vae=vae.eval(), density=density, axes=axes, expression=expression, genes=genes, heldout_cells=(),
        config=RunConfig(model=shape), facts={}, history="",
    )  # fmt: skip


def marginal(model: Model) -> stats._multivariate.multivariate_normal_frozen:
    """Return the marginal distribution N(b, WWᵀ + Σ) of a linear-Gaussian model."""
    head = model.vae.decoder.head
    scale_g, sd_g = head.scale_g.numpy().astype(float), head.log_sd_g.exp().detach().numpy().astype(float)
    w_gk = scale_g[:, None] * head.outputs.weight.detach().numpy()
    mean_g = head.centre_g.numpy() + scale_g * head.outputs.bias.detach().numpy()
    return stats.multivariate_normal(mean_g, w_gk @ w_gk.T + np.diag(sd_g**2))
