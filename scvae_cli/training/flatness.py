"""What `--flat` adds to the loss: a latent space that the decoder maps nearly isometrically where the cells are.

y(z) is the decoder in isometric coordinates and M(z) = J_yᵀJ_y its Fisher–Rao metric (`scvae_cli.model.geometry`). The
first of three terms looks at whole ways between cells, two at the metric in single places. None has an opinion on the
scale of y, so they neither stretch nor shrink the latent space:

- **stress**, min_s Σ(sL − d)² / Σd² over pairs of cells, with d their latent distance and L the Fisher–Rao length of
  the straight line between them: that of multidimensional scaling (Kruskal 1964, doi:10.1007/BF02289565), the share of
  the distances that no common scale explains. It is what distances are read for, and the other terms say little of it:
  they weigh every place and direction by itself, and spend as much on what cancels along the way as on what adds up.
  Where cells form groups, the length from one to the other is made in the gap between them. It alone teaches the
  encoder too: cells can be rearranged at a smaller price than a decoder can be bent to where they are. With the
  decoder alone to give way, the bound lost a third to a half more, for distances that followed less well.
- **flatness**, (tr C / tr C²)² · E‖C^½ (M/α − I) C^½‖²_F, with C the covariance of the cells' posterior means and α the
  mean of M over C. It is ‖M/α − I‖²_F (FlatVI) where all directions are used alike. Where they are not, it asks for
  isometry along the directions in which cells differ: the identity in all k dimensions would have the decoder respond
  to the unused ones as much, and pay the KL for that. α carries its gradient: held constant, the term would fall by
  shrinking M altogether, until the posterior collapses.
- **evenness**, E[k log(tr M / k) − log det M], the log-det divergence of M from its nearest multiple of the identity.
  Its pull on a direction grows as the decoder goes blind along it, where flatness' vanishes.

M is evaluated exactly, by k tangents, at a few posterior samples of the minibatch: between them, where FlatVI looks
too, run the lines of the first term, and M there cost some of the bound and gained nothing. Two random tangents at many
more points take as long, and say nothing of det M. Lengths need no tangents, so there can be many pairs. Every third
step bears the penalty, three times over: a third of the time, for models about as good. It needs no warm-up of its own.

Shapes: n cells, p points or pairs, t places along a line, k latent dimensions, g genes, h hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scvae_cli.model.geometry import Geometry
from scvae_cli.model.vae import VAE

# Of the reconstruction loss −log p(x|z), what a penalty of one, the highest stress, costs at --flat 1. A share, so that
# one --flat does for few genes and many, shallow cells and deep ones.
PRICE = 0.16
# Steps from one that bears the penalty to the next.
PENALTY_EVERY = 3
# Posterior samples a step.
_SAMPLES = 6
# Pairs of cells a step, and the chords that stand for the line between two.
_PAIRS, _CHORDS = 64, 3
# Beside a stress of weight 1. More evenness lowers M's condition number, at a cost in the bound. Without flatness
# distances follow lengths less well, and for much more of it the bound pays more than they gain.
_FLATNESS, _EVENNESS = 0.002, 0.0009


def flatness_penalty(vae: VAE, mean_nk: Tensor, z_nk: Tensor) -> Tensor:
    """How far the decoder is from an isometry, a scalar, 0 or more; differentiable.

    Draws from torch's generator.

    Parameters
    ----------
    vae
        Its decoder is judged without dropout, at the reference depth.
    mean_nk, z_nk
        Posterior means of a minibatch, and a posterior sample of each cell. No gradient reaches the samples.
    """
    mean_nk = mean_nk.float()
    # The encoder is not to move cells to where the decoder happens to be flat.
    seen_nk, apart_nk = z_nk.detach(), (mean_nk - mean_nk.mean(0)).detach()
    metric_pkk = pulled_back(vae, seen_nk[torch.randint(len(z_nk), (_SAMPLES,), device=z_nk.device)])
    cov_kk = apart_nk.T @ apart_nk / len(apart_nk)
    local = _FLATNESS * unflatness(metric_pkk, cov_kk) + _EVENNESS * unevenness(metric_pkk)
    # Distances are read between posterior means, not samples.
    return stress(*lengths_between(vae, mean_nk)) + local


def lengths_between(vae: VAE, mean_nk: Tensor) -> tuple[Tensor, Tensor]:
    """Fisher–Rao lengths of straight lines between some of the cells, and their latent lengths, shapes (p,).

    A closed tour through cells drawn at random: every cell's y serves two lines.
    """
    from_pk = mean_nk[torch.randperm(len(mean_nk), device=mean_nk.device)[:_PAIRS]]
    to_pk = from_pk.roll(-1, dims=0)
    along_t11 = torch.arange(_CHORDS, dtype=mean_nk.dtype, device=mean_nk.device)[:, None, None] / _CHORDS
    line_tpk = torch.lerp(from_pk, to_pk, along_t11)
    y_tpg = Geometry(vae).coordinates(line_tpk.flatten(0, 1)).reshape(_CHORDS, len(from_pk), -1)
    next_tpg = torch.cat([y_tpg[1:], y_tpg[:1].roll(-1, dims=1)])
    # The root has no gradient at 0.
    length_p = ((next_tpg - y_tpg).square().sum(2) + 1e-12).sqrt().sum(0)
    return length_p, (to_pk - from_pk).norm(dim=1)


def stress(length_p: Tensor, distance_p: Tensor) -> Tensor:
    """min_s Σ(s·length − distance)² / Σdistance², a scalar from 0 to 1.

    At the best s it is one minus the squared cosine between the two vectors.
    """
    # Never all zero, so that a collapsed posterior gives no 0/0.
    both = length_p.square().sum() * distance_p.square().sum() + 1e-12
    return 1 - (length_p * distance_p).sum().square() / both


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
