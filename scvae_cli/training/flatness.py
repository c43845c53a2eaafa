"""The penalty of `--flat`, which makes latent distances nearly proportional to differences in decoded expression.

The decoded expression at a latent position z is called y(z). The coordinates of y are such that Euclidean distances
measure differences between count distributions (`scvae_cli.model.geometry`). The Fisher–Rao metric M(z) = JᵀJ, where J
is the Jacobian of y, describes how fast decoded expression changes along each latent direction. The Fisher–Rao length
of a line in latent space is the length of the corresponding curve of decoded expression.

The penalty of `--flat` is a weighted sum of three terms, called stress, flatness and evenness. None of the three terms
depends on the scale of decoded expression, so the penalty neither enlarges nor shrinks the latent space.

- **Stress** compares the latent distance d of two cells with the Fisher–Rao length L of the straight line between the
  two cells. The formula of the stress is min_s Σ(sL − d)² / Σd², with sums over pairs of cells, and one scale s for all
  pairs. The stress is the criterion of multidimensional scaling (Kruskal 1964, doi:10.1007/BF02289565): the fraction of
  the squared latent distances that scaled Fisher–Rao lengths do not explain. Flatness and evenness constrain latent
  distances only weakly, because flatness and evenness are not computed in the gaps between groups of cells. The stress
  trains both the encoder and the decoder, whereas flatness and evenness train only the decoder. If the stress trained
  only the decoder, the penalty would lower the ELBO more, and latent distances would agree less well with Fisher–Rao
  lengths.
- **Flatness** is (tr C / tr C²)² · E‖C^½ (M/α − I) C^½‖²_F. In the formula of flatness, C is the covariance of the
  cells' posterior means, E is the mean over the points at which M is computed, α is E[tr(MC)] / tr C, and ‖·‖_F is the
  Frobenius norm. If the cells vary equally along all latent directions, flatness is the penalty ‖M/α − I‖²_F of FlatVI
  (ICML 2025). Flatness requires that decoded expression changes equally fast along all latent directions in which the
  cells differ. If flatness also included unused latent dimensions, the decoder would use these dimensions, and the KL
  would increase. The gradient of flatness includes the gradient of α. If α were treated as a constant, training could
  lower flatness by shrinking M as a whole, until the posterior collapses.
- **Evenness** is E[k log(tr M / k) − log det M] for k latent dimensions. Evenness is 0 if decoded expression changes
  equally fast along all latent directions. The more slowly decoded expression changes along a latent direction, the
  larger is the gradient of evenness along this direction. The gradient of flatness, in contrast, vanishes along latent
  directions in which decoded expression does not change.

The metric M is computed exactly, and at only a few posterior samples of each minibatch, because each computation of M
needs k derivatives of decoded expression. FlatVI also computes the metric M at points between posterior samples. When
scvae also computed M between posterior samples, the ELBO decreased and nothing improved. The stress needs no
derivatives along latent directions, so the stress can be computed for many pairs of cells. The penalty of `--flat` is
applied in every third training step, with three times its weight. Models that were trained with the penalty in every
step were about as good, and the penalty took three times as long. The penalty of `--flat` has its full weight from the
first step on.

Letters in array shapes: n cells, p points or pairs, t positions along a line, k latent dimensions, g genes, h hidden
units.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scvae_cli.model.geometry import Geometry
from scvae_cli.model.vae import VAE

# Weight of the penalty at --flat 1, as a fraction of the reconstruction loss −log p(x|z). Because the weight is a
# fraction, the same value of --flat suits data with few or many genes, and with small or large library sizes.
PRICE = 0.16
# The penalty of `--flat` is applied once in PENALTY_EVERY training steps.
PENALTY_EVERY = 3
# Number of posterior samples per training step at which the metric M is computed.
_SAMPLES = 6
# Number of pairs of cells per training step, and number of straight pieces of y that approximate the curve between two
# cells.
_PAIRS, _CHORDS = 64, 3
# Weights of flatness and evenness; the weight of the stress is 1. A larger weight of evenness lowers the condition
# number of the metric M, but also the ELBO. Without the term flatness, latent distances agree less well with Fisher–Rao
# lengths. With a much larger weight of flatness, the ELBO decreases more than the distances improve.
_FLATNESS, _EVENNESS = 0.002, 0.0009


def flatness_penalty(vae: VAE, mean_nk: Tensor, z_nk: Tensor) -> Tensor:
    """Compute the penalty of `--flat`, the weighted sum of stress, flatness and evenness: a differentiable scalar ≥ 0.

    Stress is computed from the posterior means `mean_nk` of a minibatch. Flatness and evenness are computed at some of
    the posterior samples `z_nk`. The decoder is evaluated without dropout and at the reference library size. The
    penalty has no gradient with respect to the posterior samples. The cells, and the
    points for the three terms, are drawn with torch's random number generator.
    """
    mean_nk = mean_nk.float()
    # Flatness and evenness have no gradient for the encoder. Otherwise, the encoder would move cells to positions where
    # the decoder happens to be flat.
    seen_nk, apart_nk = z_nk.detach(), (mean_nk - mean_nk.mean(0)).detach()
    metric_pkk = pulled_back(vae, seen_nk[torch.randint(len(z_nk), (_SAMPLES,), device=z_nk.device)])
    cov_kk = apart_nk.T @ apart_nk / len(apart_nk)
    local = _FLATNESS * unflatness(metric_pkk, cov_kk) + _EVENNESS * unevenness(metric_pkk)
    # The stress uses posterior means and not samples, because users read distances between posterior means.
    return stress(*lengths_between(vae, mean_nk)) + local


def lengths_between(vae: VAE, mean_nk: Tensor) -> tuple[Tensor, Tensor]:
    """Compute Fisher–Rao lengths and latent lengths of straight lines between pairs of cells, each of shape (p,).

    The lines form a closed tour through randomly drawn cells, so that the decoded expression y of every cell is used
    for two lines.
    """
    from_pk = mean_nk[torch.randperm(len(mean_nk), device=mean_nk.device)[:_PAIRS]]
    to_pk = from_pk.roll(-1, dims=0)
    along_t11 = torch.arange(_CHORDS, dtype=mean_nk.dtype, device=mean_nk.device)[:, None, None] / _CHORDS
    line_tpk = torch.lerp(from_pk, to_pk, along_t11)
    y_tpg = Geometry(vae).coordinates(line_tpk.flatten(0, 1)).reshape(_CHORDS, len(from_pk), -1)
    next_tpg = torch.cat([y_tpg[1:], y_tpg[:1].roll(-1, dims=1)])
    # The square root has no finite gradient at 0, so a small constant is added.
    length_p = ((next_tpg - y_tpg).square().sum(2) + 1e-12).sqrt().sum(0)
    return length_p, (to_pk - from_pk).norm(dim=1)


def stress(length_p: Tensor, distance_p: Tensor) -> Tensor:
    """Compute the stress min_s Σ(s·length − distance)² / Σdistance², a scalar from 0 to 1.

    At the best scale s, the stress is one minus the squared cosine similarity of the lengths and the distances.
    """
    # The constant 1e-12 avoids 0/0 for a collapsed posterior.
    both = length_p.square().sum() * distance_p.square().sum() + 1e-12
    return 1 - (length_p * distance_p).sum().square() / both


def pulled_back(vae: VAE, z_pk: Tensor) -> Tensor:
    """Compute the Fisher–Rao metric M at the latent positions `z_pk`, a differentiable tensor of shape (p, k, k)."""
    p, k = z_pk.shape
    axes_kpk = torch.eye(k, dtype=z_pk.dtype, device=z_pk.device)[:, None, :].expand(k, p, k)
    _, tangent_kpg = Geometry(vae).push(z_pk, axes_kpk)
    tangent_pkg = tangent_kpg.transpose(0, 1)
    return tangent_pkg @ tangent_pkg.transpose(1, 2)


def unflatness(metric_pkk: Tensor, cov_kk: Tensor) -> Tensor:
    """Compute the term flatness, (tr C / tr C²)² · E‖C^½ (M/α − I) C^½‖²_F, a scalar.

    M is the Fisher–Rao metric at each point, C is the covariance of the posterior means, α is the mean of tr(MC) / tr C
    over the points, and E is the mean over the points.
    """
    # The constant 1e-6 avoids 0/0 for a collapsed posterior.
    cov_kk = cov_kk + 1e-6 * torch.eye(len(cov_kk), dtype=cov_kk.dtype, device=cov_kk.device)
    seen_pkk = metric_pkk @ cov_kk
    trace = cov_kk.trace()
    alpha = seen_pkk.diagonal(dim1=1, dim2=2).sum(1).mean() / trace
    off_pkk = seen_pkk / alpha - cov_kk
    # With D = M/α − I, tr(DC · DC) = ‖C^½ D C^½‖²_F, so the square root of C is not needed.
    squared_p = (off_pkk * off_pkk.transpose(1, 2)).sum((1, 2))
    return squared_p.mean() * (trace / cov_kk.square().sum()).square()


def unevenness(metric_pkk: Tensor) -> Tensor:
    """Compute the term evenness, E[k log(tr M / k) − log det M], a scalar.

    M is the Fisher–Rao metric at each point, and E is the mean over the points. At each point, the term evenness is
    k log(a / b), where a is the arithmetic mean and b is the geometric mean of the eigenvalues of M.
    """
    k = metric_pkk.shape[1]
    mean_p = metric_pkk.diagonal(dim1=1, dim2=2).mean(1)
    # A small constant, about as large as rounding errors, is added to the eigenvalues of M, so that the logarithm and
    # its gradient stay finite if an eigenvalue is zero.
    floor_pkk = 1e-6 * mean_p.detach()[:, None, None] * torch.eye(k, dtype=mean_p.dtype, device=mean_p.device)
    log_det_p: Tensor = torch.linalg.slogdet(metric_pkk + floor_pkk).logabsdet
    return (k * mean_p.log() - log_det_p).mean()
