"""What `--flat` adds to the loss: a decoder that is nearly isometric where the cells are.

M(z) = J_yᵀJ_y is the decoder's Fisher–Rao metric (`scvae_cli.model.geometry`). Three terms make it resemble a multiple
of the identity; none has an opinion on the multiple, so they neither stretch nor shrink the latent space:

- **flatness**, (tr C / tr C²)² · E‖C^½ (M/α − I) C^½‖²_F, with C the covariance of the cells' posterior means and α the
  mean of M over C. It is ‖M/α − I‖²_F (FlatVI) where all directions are used alike. Where they are not, it asks for
  isometry along the directions in which cells differ: the identity in all k dimensions would have the decoder respond
  to the unused ones as much, and pay the KL for that. α carries its gradient: held constant, the term would fall by
  shrinking M altogether, until the posterior collapses.
- **evenness**, E[k log(tr M / k) − log det M], the log-det divergence of M from its nearest multiple of the identity.
  Its pull on a direction grows as the decoder goes blind along it, where the first term's vanishes.
- **wakefulness**, over the hidden units' biases: a ReLU that is silent at a point says nothing along any direction, and
  where fewer than k units are awake det M is exactly zero and has no gradient.

M is evaluated exactly, by k tangents, at a few posterior samples of the minibatch and at mixtures of them, and so also
between cells. Two random tangents at many more points cost as much, and say nothing of det M. Every third step bears
the penalty, three times over: a third of the cost, for models as good. It needs no warm-up of its own.

Shapes: n cells, p points, k latent dimensions, g genes, h hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scvae_cli.model.geometry import Geometry
from scvae_cli.model.network import NormalisedHidden
from scvae_cli.model.vae import VAE

# Of the reconstruction loss −log p(x|z), what a penalty of one costs at --flat 1. A share, so that one --flat does
# for few genes and many, shallow cells and deep ones.
PRICE = 0.0016
# Steps from one that bears the penalty to the next.
PENALTY_EVERY = 3
# Posterior samples a step, and as many mixtures.
_SAMPLES = 4
# Mixtures reach a little beyond the two samples.
_BEYOND = 0.1
_EVENNESS, _WAKEFULNESS = 0.03, 25.0


def flatness_penalty(vae: VAE, mean_nk: Tensor, z_nk: Tensor) -> Tensor:
    """How far the decoder is from an isometry, a scalar, 0 or more; differentiable in the decoder alone.

    Draws from torch's generator.

    Parameters
    ----------
    vae
        Its decoder is judged without dropout, at the reference depth.
    mean_nk, z_nk
        Posterior means of a minibatch, and a posterior sample of each cell.
    """
    # The encoder is not to move cells to where the decoder happens to be flat.
    mean_nk, z_nk = mean_nk.detach().float(), z_nk.detach()
    metric_pkk = pulled_back(vae, points_between(z_nk))
    centred_nk = mean_nk - mean_nk.mean(0)
    cov_kk = centred_nk.T @ centred_nk / len(centred_nk)
    return unflatness(metric_pkk, cov_kk) + _EVENNESS * unevenness(metric_pkk) + _WAKEFULNESS * sleepiness(vae)


def points_between(z_nk: Tensor) -> Tensor:
    """Some of the samples, and mixtures ηz_i + (1 − η)z_j with η from −0.1 to 1.1; shape (p, k)."""
    device = z_nk.device
    i_p, j_p, alone_p = torch.randint(len(z_nk), (3, _SAMPLES), device=device)
    eta_p1 = torch.rand(_SAMPLES, 1, device=device) * (1 + 2 * _BEYOND) - _BEYOND
    return torch.cat([z_nk[alone_p], eta_p1 * z_nk[i_p] + (1 - eta_p1) * z_nk[j_p]])


def pulled_back(vae: VAE, z_pk: Tensor) -> Tensor:
    """M at some points, differentiable, shape (p, k, k)."""
    p, k = z_pk.shape
    axes_kpk = torch.eye(k, dtype=z_pk.dtype, device=z_pk.device)[:, None, :].expand(k, p, k)
    _, tangent_kpg = Geometry(vae).push(z_pk, axes_kpk)
    tangent_pkg = tangent_kpg.transpose(0, 1)
    return tangent_pkg @ tangent_pkg.transpose(1, 2)


def unflatness(metric_pkk: Tensor, cov_kk: Tensor) -> Tensor:
    """(tr C / tr C²)² · E‖C^½ (M/α − I) C^½‖²_F; a scalar.

    Parameters
    ----------
    metric_pkk
        M at p points.
    cov_kk
        C, the covariance of the cells' posterior means.
    """
    # Never all zero, so that a collapsed posterior gives no 0/0.
    cov_kk = cov_kk + 1e-6 * torch.eye(len(cov_kk), dtype=cov_kk.dtype, device=cov_kk.device)
    seen_pkk = metric_pkk @ cov_kk
    trace = cov_kk.trace()
    alpha = seen_pkk.diagonal(dim1=1, dim2=2).sum(1).mean() / trace
    off_pkk = seen_pkk / alpha - cov_kk
    # With D = M/α − I, tr(DC · DC) = ‖C^½ D C^½‖²_F without the root of C.
    squared_p = (off_pkk * off_pkk.transpose(1, 2)).sum((1, 2))
    return squared_p.mean() * (trace / cov_kk.square().sum()).square()


def unevenness(metric_pkk: Tensor) -> Tensor:
    """E[k log(tr M / k) − log det M]: k log(arithmetic over geometric mean of M's eigenvalues); a scalar."""
    k = metric_pkk.shape[1]
    mean_p = metric_pkk.diagonal(dim1=1, dim2=2).mean(1)
    # What rounding leaves of a blind direction; keeps the logarithm and its gradient finite.
    floor_pkk = 1e-6 * mean_p.detach()[:, None, None] * torch.eye(k, dtype=mean_p.dtype, device=mean_p.device)
    log_det_p: Tensor = torch.linalg.slogdet(metric_pkk + floor_pkk).logabsdet
    return (k * mean_p.log() - log_det_p).mean()


def sleepiness(vae: VAE) -> Tensor:
    """Mean square of those biases before the decoder's ReLUs that are negative; a scalar.

    What layer normalisation hands on is centred: with a bias of zero a unit is awake in about half of all places. A
    linear decoder has none that could sleep.
    """
    biases = [module.norm.bias for module in vae.decoder.modules() if isinstance(module, NormalisedHidden)]
    if not biases:
        return vae.reference_library.new_zeros(())
    return torch.stack([torch.relu(-bias_h).square().mean() for bias_h in biases]).sum()
