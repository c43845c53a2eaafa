"""How far the ELBO of cells is below their log-likelihood, and whose fault that is.

    log p(x) − ELBO(encoder) = [ELBO(refined) − ELBO(encoder)] + [log p(x) − ELBO(refined)]
                             = amortization gap + variational gap

The first is what one network for all cells costs beside the best diagonal Gaussian of each; the second is what a
diagonal Gaussian costs beside the true posterior. log p(x) is bounded by importance sampling, from the encoder's and
the refined posterior in equal parts, each sample weighted against their mixture: the bound is never much looser than
either's own. Where few samples carry the weight it is loose all the same, and the variational gap is at least what is
said.

Source: Cremer, Li & Duvenaud 2018, arXiv:1801.03558; weights against a mixture: Owen & Zhou 2000.

Shapes: n cells, k latent dimensions, s samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scvae_cli.data.counts import Counts
from scvae_cli.data.minibatches import Minibatch
from scvae_cli.latent.posteriors import cell_table, known_batches
from scvae_cli.latent.refinement import refine
from scvae_cli.model.bundle import Model
from scvae_cli.model.posterior import Posterior
from scvae_cli.model.vae import VAE

# Decoding dominates, and its blocks are fastest when they stay in the processor's cache.
_BLOCK_CELLS = 128


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over cells.

    Parameters
    ----------
    mean, error
        And its standard error; nats a cell.
    percent
        The mean, of the yardstick of `Gaps`.
    """

    mean: float
    error: float
    percent: float

    def values(self) -> dict[str, float]:
        """Plain numbers."""
        return {"mean": self.mean, "error": self.error, "percent": self.percent}


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """Bounds on log p(x) of every cell, nats, each of shape (n,).

    Parameters
    ----------
    encoder_n, refined_n
        ELBO with the encoder's posterior and with the refined one.
    bound_n
        Importance bound.
    kl_n
        KL of the encoder's posterior to the prior: what a cell's place costs.
    effective_n
        Effective number of importance samples, of `n_samples`.
    n_samples
        s.
    yardstick
        What percentages are of, nats; None for the size of the mean importance bound. A bound on densities of real
        numbers may be 0; there it is what as many standard normal features cost.
    """

    encoder_n: np.ndarray
    refined_n: np.ndarray
    bound_n: np.ndarray
    kl_n: np.ndarray
    effective_n: np.ndarray
    n_samples: int
    yardstick: float | None = None

    @property
    def amortization(self) -> Estimate:
        """ELBO(refined) − ELBO(encoder)."""
        return self._estimate(self.refined_n - self.encoder_n)

    @property
    def variational(self) -> Estimate:
        """log p(x) − ELBO(refined)."""
        return self._estimate(self.bound_n - self.refined_n)

    @property
    def inference(self) -> Estimate:
        """log p(x) − ELBO(encoder), the sum of both."""
        return self._estimate(self.bound_n - self.encoder_n)

    @property
    def rate(self) -> float:
        """Mean KL, nats a cell."""
        return float(self.kl_n.mean())

    @property
    def distortion(self) -> float:
        """Mean −E_q[log p(x|z)] with the encoder's posterior, nats a cell."""
        return float(-(self.encoder_n + self.kl_n).mean())

    def _estimate(self, gap_n: np.ndarray) -> Estimate:
        error = float(gap_n.std(ddof=1) / math.sqrt(len(gap_n))) if len(gap_n) > 1 else math.inf
        mean = float(gap_n.mean())
        yardstick = abs(float(self.bound_n.mean())) if self.yardstick is None else self.yardstick
        return Estimate(mean=mean, error=error, percent=100 * mean / yardstick)

    def values(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "elbo": float(self.encoder_n.mean()),
            "refined_elbo": float(self.refined_n.mean()),
            "bound": float(self.bound_n.mean()),
            "amortization": self.amortization.values(),
            "variational": self.variational.values(),
            "inference": self.inference.values(),
            "rate": self.rate,
            "distortion": self.distortion,
            "effective_samples": float(np.median(self.effective_n)),
            "samples": self.n_samples,
        }


def gaps(model: Model, counts: Counts, *, n_steps: int, n_samples: int, seed: int = 0) -> Gaps:
    """Measure the gaps of some cells, best of cells that training did not learn from.

    Parameters
    ----------
    model
        Whose encoder is judged.
    counts
        n cells in the model's genes, with the batches of a model that has them.
    n_steps
        Of the refinement.
    n_samples
        Importance samples a cell, from both posteriors together.
    seed
        Of refinement and samples.

    Raises
    ------
    DataError
        For cells of a batch the model does not know.
    """
    table = cell_table(model, counts, batch_n=known_batches(model, counts))
    noise = torch.Generator().manual_seed(seed)
    parts = []
    for _, cells in table.in_order(_BLOCK_CELLS):
        with torch.no_grad():
            start = model.vae.encode(cells)
        found = refine(model.vae, cells, start, n_steps=n_steps, seed=seed).posterior
        parts.append(bounds(model.vae, cells, (start, found), n_samples=n_samples, noise=noise))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    names = ("encoder_n", "refined_n", "bound_n", "kl_n", "effective_n")
    return Gaps(
        **dict(zip(names, columns, strict=True)),
        n_samples=2 * _n_each(n_samples),
        yardstick=None if model.of_counts else float(model.vae.decoder.head.typical_loss(torch.zeros(()))),
    )


@torch.no_grad()
def bounds(
    vae: VAE, cells: Minibatch, posteriors: tuple[Posterior, Posterior], *, n_samples: int, noise: torch.Generator
) -> tuple[np.ndarray, ...]:
    """ELBO of two posteriors, importance bound, KL of the first, effective samples; each of shape (n,), nats."""
    n_each = _n_each(n_samples)
    shape = posteriors[0].mean_nk.shape
    kl = [q.kl_nk().double().sum(1).cpu() for q in posteriors]
    elbo = [-kl_n for kl_n in kl]
    log_weight_ns = torch.empty(shape[0], 2 * n_each, dtype=torch.float64)
    drawn_nk = torch.empty(0)
    for s in range(n_each):
        # Every other sample is the mirror image of the one before.
        drawn_nk = torch.randn(shape, generator=noise) if s % 2 == 0 else -drawn_nk
        for i, q in enumerate(posteriors):
            z_nk = q.sample(drawn_nk.to(q.mean_nk))
            log_p_n = -vae.decode(z_nk, cells.batch_n).nll_n(cells).cpu()
            elbo[i] += log_p_n / n_each
            log_mixture_n = torch.logaddexp(*(_log_density(other, z_nk) for other in posteriors)) - math.log(2)
            log_prior_n = -0.5 * z_nk.double().square().sum(1).cpu()
            log_weight_ns[:, 2 * s + i] = log_p_n + log_prior_n - log_mixture_n
    total_n = torch.logsumexp(log_weight_ns, dim=1)
    effective_n = (2 * total_n - torch.logsumexp(2 * log_weight_ns, dim=1)).exp()
    bound_n = total_n - math.log(2 * n_each)
    return tuple(part.numpy() for part in (*elbo, bound_n, kl[0], effective_n))


def _n_each(n_samples: int) -> int:
    return max(1, n_samples // 2)


def _log_density(q: Posterior, z_nk: Tensor) -> Tensor:
    """log q(z) up to the constant that it shares with the prior, shape (n,), float64, on the CPU."""
    var_nk = q.var_nk.double()
    unit_nk = (z_nk.double() - q.mean_nk.double()).square() / var_nk
    return -0.5 * (unit_nk + var_nk.log()).sum(1).cpu()
