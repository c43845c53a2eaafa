"""Information in each latent dimension, and comparison of the aggregated posterior with the prior.

The aggregated posterior q(z) is the mixture of the posteriors of all cells. The covariance of q(z) is exact. The
density of q(z) is estimated by a Gaussian mixture that was fitted at the end of the training
(`scvae_cli.model.density`). The Gaussian mixture is evaluated at posterior samples of cells to which it was not fitted.
If the Gaussian mixture fits the cells badly, the estimated KL divergence between q(z) and the prior is too small, and
the estimated mutual information is too large.

All values refer to the training axes, which are the latent axes of the encoder. The prior is invariant to rotations,
but a posterior with a diagonal covariance is not. Along rotated axes, the values of single dimensions would therefore
have no meaning.

Sources: active units, Burda et al. 2016, arXiv:1509.00519; mutual information, Hoffman & Johnson 2016, "ELBO surgery".

Letters in array shapes: n cells, m posterior samples of held-out cells, k latent dimensions, c mixture components, b
bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvae_cli.model.density import LatentDensity
from scvae_cli.model.posterior import ACTIVE_VARIANCE, Posterior

# A prior sample lies in a hole of latent space if its density is below this quantile of the densities at posterior
# samples of held-out cells.
HOLE_SHARE = 0.01
# Number of posterior samples per cell, and of prior samples.
N_SAMPLES, N_PRIOR = 5, 10_000
_BINS = 20
# Number of points whose density is evaluated at once.
_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class LatentUse:
    """Information that each latent dimension carries about the cells.

    Parameters
    ----------
    kl_k, mean_variance_k
        For each dimension d, the mean KL(q(z_d|x) ‖ N(0, 1)) over the cells, in nats, and the variance of the posterior
        means, Var_x(E[z_d|x]); shape (k,).
    """

    kl_k: np.ndarray
    mean_variance_k: np.ndarray

    @property
    def active_k(self) -> np.ndarray:
        """Mask of the active dimensions, along which the posterior means vary; shape (k,)."""
        active_k: np.ndarray = self.mean_variance_k > ACTIVE_VARIANCE
        return active_k

    @property
    def n_active(self) -> int:
        """Number of active dimensions."""
        return int(self.active_k.sum())

    @property
    def collapse(self) -> str:
        """Whether "none", "some" or "all" of the dimensions have collapsed to the prior."""
        if self.n_active == len(self.active_k):
            return "none"
        return "some" if self.n_active else "all"

    def values(self) -> dict[str, Any]:
        """Return the information in each dimension in a dictionary of numbers and arrays."""
        return {
            "kl": self.kl_k,
            "variance_of_means": self.mean_variance_k,
            "active": self.active_k,
            "active_units": self.n_active,
            "collapse": self.collapse,
        }


@dataclass(frozen=True, kw_only=True)
class AggregatedPosterior:
    """The aggregated posterior in comparison with the prior.

    Parameters
    ----------
    covariance_kk
        Covariance of the aggregated posterior, shape (k, k): the covariance of the posterior means of the cells plus
        the mean over the cells of the posterior variances.
    active_k
        Mask of the active dimensions, whose correlations are reported, shape (k,).
    kl_to_prior, prior_kl
        KL(q(z) ‖ p) for the prior p, estimated from posterior samples, and KL(p ‖ q(z)), estimated from prior samples;
        nats.
    mutual_information
        I_q(x; z) = E KL(q(z|x) ‖ p) − KL(q(z) ‖ p), nats, estimated.
    total_correlation
        KL(q(z) ‖ Π q(z_d)), nats, estimated. The total correlation is 0 if the latent dimensions d are independent of
        each other.
    holes
        Fraction of the prior samples with a lower density q(z) than 99% of the posterior samples of held-out cells. The
        fraction in `holes` is 0.01 if prior and aggregated posterior are identical.
    prior_ranks_b
        Histogram of one number per prior sample: the fraction of posterior samples with a higher density q(z). The b
        bins divide the range from 0 to 1 equally. The values have the shape (b,) and sum to 1.
    """

    covariance_kk: np.ndarray
    active_k: np.ndarray
    kl_to_prior: float
    prior_kl: float
    mutual_information: float
    total_correlation: float
    holes: float
    prior_ranks_b: np.ndarray

    @property
    def correlation_kk(self) -> np.ndarray:
        """Correlations between the dimensions, shape (k, k)."""
        sd_k = np.sqrt(np.diag(self.covariance_kk))
        correlation_kk: np.ndarray = self.covariance_kk / np.outer(sd_k, sd_k)
        return correlation_kk

    @property
    def most_correlated(self) -> tuple[int, int] | None:
        """The two active dimensions with the largest absolute correlation; None if fewer than two are active."""
        active = np.flatnonzero(self.active_k)
        if len(active) < 2:
            return None
        among = np.abs(self.correlation_kk[np.ix_(active, active)])
        np.fill_diagonal(among, -1)
        first, second = sorted(np.unravel_index(int(among.argmax()), among.shape))
        return int(active[first]), int(active[second])

    @property
    def correlation(self) -> float | None:
        """The correlation of the two dimensions of `most_correlated`; None if fewer than two dimensions are active."""
        pair = self.most_correlated
        return None if pair is None else float(self.correlation_kk[pair])

    def values(self) -> dict[str, Any]:
        """Return the comparison with the prior in a dictionary of numbers and arrays."""
        values = {
            "covariance": self.covariance_kk,
            "kl_to_prior": self.kl_to_prior,
            "prior_kl": self.prior_kl,
            "mutual_information": self.mutual_information,
            "total_correlation": self.total_correlation,
            "holes": self.holes,
            "prior_ranks": self.prior_ranks_b,
        }
        if self.most_correlated is not None:
            values |= {"correlation": self.correlation, "correlated_axes": np.asarray(self.most_correlated)}
        return values


def latent_use(posterior: Posterior) -> LatentUse:
    """Measure how much information about the cells each latent dimension carries, from the posteriors of the cells."""
    variance_k = posterior.mean_nk.double().var(0, correction=0)
    return LatentUse(kl_k=posterior.kl_nk().double().mean(0).cpu().numpy(), mean_variance_k=variance_k.cpu().numpy())


def aggregated_posterior(
    of_all: Posterior, of_heldout: Posterior, density: LatentDensity, *, seed: int = 0
) -> AggregatedPosterior:
    """Compare the aggregated posterior with the prior.

    Parameters
    ----------
    of_all, of_heldout
        Posteriors of all cells, from which the covariance is computed; and posteriors of cells that were not used to
        fit the density.
    density
        Density of the aggregated posterior along the training axes.
    """
    mean_nk, within_nk = (part.double().cpu() for part in of_all)
    centered_nk = mean_nk - mean_nk.mean(0)
    covariance_kk = centered_nk.T @ centered_nk / len(mean_nk) + torch.diag(within_nk.mean(0))
    noise = torch.Generator().manual_seed(seed)
    density = LatentDensity(*(part.double().cpu() for part in vars(density).values()))
    mean_nk, var_nk = (part.double().cpu() for part in of_heldout)
    draws = [torch.randn(mean_nk.shape, generator=noise, dtype=torch.float64) for _ in range(N_SAMPLES)]
    z_mk = torch.cat([mean_nk + var_nk.sqrt() * draw_nk for draw_nk in draws])
    prior_mk = torch.randn(N_PRIOR, mean_nk.shape[1], generator=noise, dtype=torch.float64)
    log_q_m, log_prior_q_m = _log_prob(density, z_mk), _log_prob(density, prior_mk)
    kl_to_prior = float((log_q_m - _log_normal(z_mk)).mean())
    ascending_m = (-log_q_m).sort().values
    rank_m = torch.searchsorted(ascending_m, -log_prior_q_m).double() / len(ascending_m)
    counted_b, _ = np.histogram(rank_m.numpy(), np.linspace(0, 1, _BINS + 1))
    return AggregatedPosterior(
        covariance_kk=covariance_kk.numpy(),
        active_k=latent_use(of_all).active_k,
        kl_to_prior=kl_to_prior,
        prior_kl=float((_log_normal(prior_mk) - log_prior_q_m).mean()),
        mutual_information=float(of_heldout.kl_nk().double().sum(1).mean()) - kl_to_prior,
        total_correlation=float((log_q_m - _log_marginals(density, z_mk)).mean()),
        holes=float((log_prior_q_m < torch.quantile(log_q_m, HOLE_SHARE)).double().mean()),
        prior_ranks_b=counted_b / N_PRIOR,
    )


def _log_prob(density: LatentDensity, z_mk: Tensor) -> Tensor:
    return torch.cat([density.log_prob(block_mk) for block_mk in torch.split(z_mk, _BLOCK)])


def _log_normal(z_mk: Tensor) -> Tensor:
    return -0.5 * (z_mk.square() + math.log(2 * math.pi)).sum(1)


def _log_marginals(density: LatentDensity, z_mk: Tensor) -> Tensor:
    """Compute Σ_d log q(z_d), shape (m,); every marginal q(z_d) of a Gaussian mixture is also a Gaussian mixture."""
    # The covariance of a component with the whitening matrix W is W⁻ᵀ W⁻¹. The diagonal of W⁻ᵀ W⁻¹ holds the variances.
    inverse_ckk = torch.linalg.inv(density.whiten_ckk)
    var_ck = inverse_ckk.square().sum(1)
    parts = []
    for block_mk in torch.split(z_mk, _BLOCK):
        squared_mck = (block_mk[:, None, :] - density.mean_ck).square() / var_ck
        log_mck = density.log_weight_c[:, None] - 0.5 * (squared_mck + (2 * math.pi * var_ck).log())
        parts.append(torch.logsumexp(log_mck, dim=1).sum(1))
    return torch.cat(parts)
