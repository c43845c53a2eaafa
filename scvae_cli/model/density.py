"""The density of the cells in latent space: a Gaussian mixture, and the off-manifold score of a point.

The Gaussian mixture is fitted to posterior samples of training cells. The number of mixture components is chosen so
that the posterior samples of held-out cells have the highest density. The mixture of all cells' posteriors is not used,
because its density is very low at any point that is not close to a cell.

The off-manifold score of a point is the fraction of held-out cells whose posterior mean has a higher density than the
point. If there are fewer than ten held-out cells, the point is compared with the training cells too, so that the score
can take more than a few values.

The Gaussian mixture is fitted by expectation–maximization in torch, because importing the mixture model of scikit-learn
takes longer than the whole fit.

Letters in array shapes: n points, k latent dimensions, c components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scvae_cli.heldout import MIN_HELDOUT

# Numbers of mixture components that are tried, in this order. The search for the best number stops when the log density
# of the held-out cells increases by less than _GAIN nats per cell. Mixtures with fewer than _FEW components never stop
# the search, because they are fast to fit and their density may be low only because of a poor random start.
COMPONENTS, _FEW, _GAIN = (1, 4, 8, 16, 32, 64, 128), 16, 0.02
# Largest number of training cells to which the mixture is fitted. More cells make the fit slower but no better.
MAX_FITTED = 20_000
_MAX_ITERATIONS = 30
_TOLERANCE = 3e-3  # nats per point
# Smallest standard deviation of a component, in units of the standard deviation of the prior.
_LEAST_SD = 0.05
# Weight of the mean within-component covariance, toward which the covariance of each component is shrunk, in points per
# dimension. Because of the shrinkage, small clusters get components of their own instead of sharing one wide component
# with an empty center.
_PRIOR_POINTS_PER_DIMENSION = 8.0


@dataclass(frozen=True)
class LatentDensity:
    """A Gaussian mixture, and the densities of held-out cells, from which off-manifold scores are computed.

    Parameters
    ----------
    log_weight_c, mean_ck
        Log weights and means of the components.
    whiten_ckk
        Upper triangular factors W of the inverse covariance matrices: Σ⁻¹ = W Wᵀ, where Σ is the covariance of a
        component.
    heldout_nll
        Negative log density at the posterior means of the held-out cells, in ascending order, nats. If there are fewer
        than ten held-out cells, the densities at the training cells are included.
    """

    log_weight_c: Tensor
    mean_ck: Tensor
    whiten_ckk: Tensor
    heldout_nll: Tensor

    def log_prob(self, z_nk: Tensor) -> Tensor:
        """Compute the log density at latent positions, shape (n,), nats. The result is differentiable."""
        return torch.logsumexp(self._log_joint(z_nk), dim=1)

    def squared_distance(self, z_nk: Tensor) -> Tensor:
        """Compute the squared Mahalanobis distance of each point to its nearest component, shape (n,).

        Unlike the density, the distance does not depend on how many cells belong to the component.
        """
        return self._unit_ncj(z_nk).square().sum(2).amin(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw points from the density, shape (n, k), on the CPU."""
        component_n = torch.multinomial(self.log_weight_c.cpu().exp(), n, replacement=True, generator=generator)
        z_nk = torch.randn(n, self.mean_ck.shape[1], generator=generator, dtype=self.mean_ck.dtype)
        for c, (mean_k, whiten_kk) in enumerate(zip(self.mean_ck.cpu(), self.whiten_ckk.cpu(), strict=True)):
            in_component = component_n == c
            # With Σ⁻¹ = W Wᵀ, the standard normal noise ε is transformed to z = mean + W⁻ᵀ ε, which has the covariance
            # Σ.
            noise_kn = torch.linalg.solve_triangular(whiten_kk.T, z_nk[in_component].T, upper=False)
            z_nk[in_component] = mean_k + noise_kn.T
        return z_nk

    def off_manifold(self, z_nk: Tensor) -> Tensor:
        """Compute the off-manifold score of each point, shape (n,).

        The off-manifold score of a point is the fraction of held-out cells that lie at a higher density than the point.
        A score of 0.5 means that the point has the density of the median held-out cell. A score near 1 means that
        nearly all held-out cells have a higher density than the point. If r of h held-out cells have a higher density
        than the point, the score is (r + ½) / (h + 1), and therefore never exactly 0 or 1.
        """
        rank_n = torch.searchsorted(self.heldout_nll, -self.log_prob(z_nk.to(self.mean_ck)))
        return (rank_n + 0.5) / (len(self.heldout_nll) + 1)

    def covariance(self, z_nk: Tensor) -> Tensor:
        """Compute the mean covariance of the mixture components at each point, shape (n, k, k).

        Each mixture component is weighted by the probability that the point belongs to the component.
        """
        log_joint_nc = self._log_joint(z_nk.to(self.mean_ck))
        share_nc = (log_joint_nc - torch.logsumexp(log_joint_nc, dim=1, keepdim=True)).exp()
        identity_ckk = torch.eye(z_nk.shape[1]).to(self.whiten_ckk).expand_as(self.whiten_ckk)
        lower_ckk = torch.linalg.solve_triangular(self.whiten_ckk.transpose(1, 2), identity_ckk, upper=False)
        return torch.einsum("nc,ckj->nkj", share_nc, lower_ckk @ lower_ckk.transpose(1, 2))

    def nll_at(self, share: float) -> float:
        """Return the quantile `share` of the negative log densities of the held-out cells, nats."""
        return float(torch.quantile(self.heldout_nll.double(), share))

    def to(self, device: torch.device) -> LatentDensity:
        """Return a copy of the density on another device."""
        return LatentDensity(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def _log_joint(self, z_nk: Tensor) -> Tensor:
        """Compute the sum of log weight and log normal density for every point and component, shape (n, c)."""
        k = z_nk.shape[1]
        log_det_c = torch.diagonal(self.whiten_ckk, dim1=1, dim2=2).log().sum(1)
        square_nc = self._unit_ncj(z_nk).square().sum(2)
        return self.log_weight_c + log_det_c - 0.5 * (square_nc + k * math.log(2 * math.pi))

    def _unit_ncj(self, z_nk: Tensor) -> Tensor:
        """Standardize every point by the mean and the covariance of every component, shape (n, c, k)."""
        offset_ck = torch.einsum("ck,ckj->cj", self.mean_ck, self.whiten_ckk)
        return torch.einsum("nk,ckj->ncj", z_nk, self.whiten_ckk) - offset_ck


def fit_density(training: tuple[Tensor, Tensor], heldout: tuple[Tensor, Tensor], *, seed: int) -> LatentDensity:
    """Fit a Gaussian mixture to training cells, and compute the densities of held-out cells for off-manifold scores.

    `training` and `heldout` contain the posterior means and variances of cells, each of shape (n, k). If there are
    fewer than ten held-out cells, the off-manifold score also compares a point with the training cells. The score is
    then slightly too high, because training cells lie at a slightly higher density than held-out cells.
    """
    noise = torch.Generator().manual_seed(seed)

    def sample(mean_nk: Tensor, var_nk: Tensor) -> Tensor:
        return mean_nk + var_nk.sqrt() * torch.randn(mean_nk.shape, generator=noise)

    train_nk = sample(*(part.float().cpu() for part in training))[:MAX_FITTED]
    heldout_mean_nk, heldout_var_nk = (part.float().cpu() for part in heldout)
    heldout_nk = sample(heldout_mean_nk, heldout_var_nk)
    best: LatentDensity | None = None
    best_score = -math.inf
    for n_components in COMPONENTS:
        # Each component needs at least ten cells on average.
        if best is not None and 10 * n_components > len(train_nk):
            break
        density = _expectation_maximization(train_nk, n_components, noise)
        score = float(density.log_prob(heldout_nk).mean())
        gain = score - best_score
        if best is None or gain > 0:
            best, best_score = density, score
        if n_components >= _FEW and gain < _GAIN:
            break
    assert best is not None, "one component is always tried"
    calibration_nk = heldout_mean_nk
    if len(calibration_nk) < MIN_HELDOUT:
        calibration_nk = torch.cat([calibration_nk, training[0].float().cpu()])
    nll_n = (-best.log_prob(calibration_nk)).sort().values
    return LatentDensity(best.log_weight_c, best.mean_ck, best.whiten_ckk, nll_n)


def _expectation_maximization(x_nk: Tensor, n_components: int, noise: torch.Generator) -> LatentDensity:
    k = x_nk.shape[1]
    overall_kk = torch.cov(x_nk.T, correction=0).reshape(k, k) + _LEAST_SD**2 * torch.eye(k, dtype=x_nk.dtype)
    prior_points = _PRIOR_POINTS_PER_DIMENSION * k if n_components > 1 else 0.0
    # The initial volume of each component is the overall volume divided by the number of components.
    small_kk = overall_kk * n_components ** (-2 / k)
    mean_ck = _spread_out(x_nk, n_components, noise)
    density = _mixture(torch.ones(n_components, dtype=x_nk.dtype), mean_ck, small_kk.expand(n_components, k, k))
    before = -math.inf
    for _ in range(_MAX_ITERATIONS):
        log_joint_nc = density._log_joint(x_nk)
        log_prob_n = torch.logsumexp(log_joint_nc, dim=1)
        share_nc = (log_joint_nc - log_prob_n[:, None]).exp()
        size_c = share_nc.sum(0) + 1e-9
        mean_ck = share_nc.T @ x_nk / size_c[:, None]
        second_ckk = torch.stack([(x_nk * share_c[:, None]).T @ x_nk for share_c in share_nc.T])
        scatter_ckk = second_ckk - size_c[:, None, None] * mean_ck[:, :, None] * mean_ck[:, None, :]
        within_kk = scatter_ckk.sum(0) / len(x_nk)
        covariance_ckk = (scatter_ckk + prior_points * within_kk) / (size_c + prior_points)[:, None, None]
        covariance_ckk = covariance_ckk + _LEAST_SD**2 * torch.eye(k, dtype=x_nk.dtype)
        density = _mixture(size_c, mean_ck, covariance_ckk)
        score = float(log_prob_n.mean())
        if score - before < _TOLERANCE:
            break
        before = score
    return density


def _mixture(size_c: Tensor, mean_ck: Tensor, covariance_ckk: Tensor) -> LatentDensity:
    lower_ckk = torch.linalg.cholesky(covariance_ckk)
    identity_kk = torch.eye(mean_ck.shape[1], dtype=mean_ck.dtype).expand_as(lower_ckk)
    # The Cholesky factor L gives Σ = L Lᵀ, so Σ⁻¹ = W Wᵀ with W = L⁻ᵀ.
    whiten_ckk = torch.linalg.solve_triangular(lower_ckk, identity_kk, upper=False).transpose(1, 2)
    return LatentDensity((size_c / size_c.sum()).log(), mean_ck, whiten_ckk.contiguous(), mean_ck.new_empty(0))


def _spread_out(x_nk: Tensor, n_components: int, noise: torch.Generator) -> Tensor:
    """Choose points that are far from each other by k-means++ (Arthur & Vassilvitskii 2007), shape (c, k)."""
    chosen = [int(torch.randint(len(x_nk), (1,), generator=noise))]
    squared_n = (x_nk - x_nk[chosen[0]]).square().sum(1)
    for _ in range(n_components - 1):
        if not squared_n.any():
            break
        chosen.append(int(torch.multinomial(squared_n, 1, generator=noise)))
        squared_n = torch.minimum(squared_n, (x_nk - x_nk[chosen[-1]]).square().sum(1))
    while len(chosen) < n_components:
        chosen.append(chosen[0])
    return x_nk[chosen]
