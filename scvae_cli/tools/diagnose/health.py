"""Is the latent space used, and is the aggregated posterior what the prior says it is?

The aggregated posterior q(z) is where the cells are: the mixture of their posteriors. Its covariance is exact; its
density is estimated by the mixture that the model's training fitted (`scvae_cli.model.density`) and averaged over
posterior samples of cells that mixture has not seen. A mixture that fits them imperfectly makes KL(q ‖ p) too small and
the mutual information too large by the same nats.

All of this is stated in the frame of the training. The prior would allow any rotation, but a posterior with a diagonal
covariance does not: in another frame the numbers of single dimensions would mean nothing.

Sources: active units, Burda et al. 2016, arXiv:1509.00519; mutual information, Hoffman & Johnson 2016, "ELBO surgery".

Shapes: n cells, m samples of held-out cells' posteriors, k latent dimensions, c components, b bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvae_cli.model.density import LatentDensity
from scvae_cli.model.posterior import Posterior

# A dimension is active when the posterior means vary more along it.
ACTIVE_VARIANCE = 0.01
# A prior sample lies in a hole when its density is below that of all but this share of held-out cells' samples.
HOLE_SHARE = 0.01
# Posterior samples of each cell, and prior samples.
N_SAMPLES, N_PRIOR = 5, 10_000
_BINS = 20
# Densities of this many points at once.
_BLOCK = 1024


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Which dimensions tell something about a cell.

    Parameters
    ----------
    kl_k
        Mean KL(q(z_d|x) ‖ N(0, 1)) over the cells, nats; shape (k,).
    spread_k
        Var_x(E[z_d|x]), shape (k,).
    """

    kl_k: np.ndarray
    spread_k: np.ndarray

    @property
    def active_k(self) -> np.ndarray:
        """Mask of the dimensions along which the posterior means vary, shape (k,)."""
        active_k: np.ndarray = self.spread_k > ACTIVE_VARIANCE
        return active_k

    @property
    def n_active(self) -> int:
        """Number of active dimensions."""
        return int(self.active_k.sum())

    @property
    def collapse(self) -> str:
        """How many dimensions say nothing: "none", "some" or "all"."""
        if self.n_active == len(self.active_k):
            return "none"
        return "some" if self.n_active else "all"

    def values(self) -> dict[str, Any]:
        """Plain numbers and arrays."""
        return {
            "kl": self.kl_k,
            "variance_of_means": self.spread_k,
            "active": self.active_k,
            "active_units": self.n_active,
            "collapse": self.collapse,
        }


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the aggregated posterior looks like beside the prior.

    Parameters
    ----------
    covariance_kk
        Of the aggregated posterior, within and between cells, shape (k, k).
    active_k
        Dimensions whose correlations count.
    kl_to_prior
        KL(q(z) ‖ p), nats, estimated.
    prior_kl
        KL(p ‖ q(z)), nats, estimated over prior samples.
    mutual_information
        I_q(x; z) = E KL(q(z|x) ‖ p) − KL(q(z) ‖ p), nats, estimated.
    total_correlation
        KL(q(z) ‖ Π q(z_d)), nats, estimated.
    holes
        Share of prior samples in places less dense than where 99% of held-out cells' posterior samples lie; 0.01 where
        prior and aggregated posterior are the same.
    prior_ranks_b
        Share of prior samples by the share of held-out samples in denser places, in even bins from 0 to 1.
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
        """Correlations between dimensions, shape (k, k)."""
        sd_k = np.sqrt(np.diag(self.covariance_kk))
        correlation_kk: np.ndarray = self.covariance_kk / np.outer(sd_k, sd_k)
        return correlation_kk

    @property
    def most_correlated(self) -> tuple[int, int] | None:
        """The two active dimensions with the largest correlation; None where fewer than two are active."""
        active = np.flatnonzero(self.active_k)
        if len(active) < 2:
            return None
        among = np.abs(self.correlation_kk[np.ix_(active, active)])
        np.fill_diagonal(among, -1)
        first, second = sorted(np.unravel_index(int(among.argmax()), among.shape))
        return int(active[first]), int(active[second])

    @property
    def correlation(self) -> float | None:
        """Their correlation."""
        pair = self.most_correlated
        return None if pair is None else float(self.correlation_kk[pair])

    def values(self) -> dict[str, Any]:
        """Plain numbers and arrays."""
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


def usage(posterior: Posterior) -> Usage:
    """Which dimensions some cells' posteriors use."""
    mean_nk = posterior.mean_nk.double()
    return Usage(
        kl_k=posterior.kl_nk().double().mean(0).cpu().numpy(),
        spread_k=mean_nk.var(0, correction=0).cpu().numpy(),
    )


def covariance(posterior: Posterior) -> np.ndarray:
    """Of the mixture of some cells' posteriors, exact, shape (k, k)."""
    mean_nk = posterior.mean_nk.double().cpu()
    centred_nk = mean_nk - mean_nk.mean(0)
    within_k = posterior.var_nk.double().cpu().mean(0)
    covariance_kk: np.ndarray = (centred_nk.T @ centred_nk / len(mean_nk) + torch.diag(within_k)).numpy()
    return covariance_kk


def shape(everyone: Posterior, unseen: Posterior, density: LatentDensity, *, seed: int = 0) -> Shape:
    """What the aggregated posterior looks like.

    Parameters
    ----------
    everyone
        Posteriors of all cells: the covariance is theirs.
    unseen
        Posteriors of cells that the density was not fitted to.
    density
        Estimate of the aggregated posterior, in the same frame.
    seed
        Of the samples.
    """
    noise = torch.Generator().manual_seed(seed)
    density = LatentDensity(*(part.double().cpu() for part in vars(density).values()))
    mean_nk, var_nk = (part.double().cpu() for part in unseen)
    draws = [torch.randn(mean_nk.shape, generator=noise, dtype=torch.float64) for _ in range(N_SAMPLES)]
    z_mk = torch.cat([mean_nk + var_nk.sqrt() * draw_nk for draw_nk in draws])
    prior_mk = torch.randn(N_PRIOR, mean_nk.shape[1], generator=noise, dtype=torch.float64)
    log_q_m, log_prior_q_m = _log_prob(density, z_mk), _log_prob(density, prior_mk)
    kl_to_prior = float((log_q_m - _log_normal(z_mk)).mean())
    ascending_m = (-log_q_m).sort().values
    rank_m = torch.searchsorted(ascending_m, -log_prior_q_m).double() / len(ascending_m)
    counted_b, _ = np.histogram(rank_m.numpy(), np.linspace(0, 1, _BINS + 1))
    return Shape(
        covariance_kk=covariance(everyone),
        active_k=usage(everyone).active_k,
        kl_to_prior=kl_to_prior,
        prior_kl=float((_log_normal(prior_mk) - log_prior_q_m).mean()),
        mutual_information=float(unseen.kl_nk().double().sum(1).mean()) - kl_to_prior,
        total_correlation=float((log_q_m - _log_marginals(density, z_mk)).mean()),
        holes=float((log_prior_q_m < torch.quantile(log_q_m, HOLE_SHARE)).double().mean()),
        prior_ranks_b=counted_b / N_PRIOR,
    )


def _log_prob(density: LatentDensity, z_mk: Tensor) -> Tensor:
    return torch.cat([density.log_prob(block_mk) for block_mk in torch.split(z_mk, _BLOCK)])


def _log_normal(z_mk: Tensor) -> Tensor:
    return -0.5 * (z_mk.square() + math.log(2 * math.pi)).sum(1)


def _log_marginals(density: LatentDensity, z_mk: Tensor) -> Tensor:
    """Σ_d log q(z_d): each dimension of a Gaussian mixture is a mixture of as many Gaussians; shape (m,)."""
    # Σ = W⁻ᵀ W⁻¹, and its diagonal.
    inverse_ckk = torch.linalg.inv(density.whiten_ckk)
    var_ck = inverse_ckk.square().sum(1)
    parts = []
    for block_mk in torch.split(z_mk, _BLOCK):
        squared_mck = (block_mk[:, None, :] - density.mean_ck).square() / var_ck
        log_mck = density.log_weight_c[:, None] - 0.5 * (squared_mck + (2 * math.pi * var_ck).log())
        parts.append(torch.logsumexp(log_mck, dim=1).sum(1))
    return torch.cat(parts)
