"""The gap between the ELBO and the log-likelihood of cells, split into two parts with different causes.

    log p(x) − ELBO(encoder) = [ELBO(refined) − ELBO(encoder)] + [log p(x) − ELBO(refined)]
                             = amortization gap + variational gap

The refined posterior is the best diagonal Gaussian of each cell, found by optimization. The amortization gap arises
because one encoder serves all cells. The variational gap arises because the true posterior is not a diagonal Gaussian.
log p(x) is not known, so a lower bound from importance sampling is used instead. Half of the importance samples come
from the encoder's posterior and half from the refined posterior. The weight of every importance sample is computed with
the density of the mixture of both posteriors. The importance-weighted bound is therefore never much looser than a bound
from the better of the two posteriors alone. If few importance samples have most of the weight, the importance-weighted
bound is loose, and the true variational gap is larger than the estimate.

Source: Cremer, Li & Duvenaud 2018, arXiv:1801.03558; weights with the density of a mixture: Owen & Zhou 2000.

Letters in array shapes: n cells, k latent dimensions, s samples.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
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
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.diagnose.options import DiagnoseOptions

# Most time is spent on decoding. Decoding is fastest in blocks that fit into the processor's cache.
_BLOCK_CELLS = 128


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean of a gap and standard error of this mean, nats per cell. `Gaps.scale` says which number counts as 100%."""

    mean: float
    error: float
    percent: float


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """Bounds on log p(x) of n cells, nats; arrays of shape (n,).

    Parameters
    ----------
    encoder_n, refined_n
        ELBO with the encoder's posterior, and with the refined posterior.
    bound_n
        Importance-weighted bound.
    kl_n
        KL of the encoder's posterior to the prior.
    effective_n, n_samples
        Effective number of importance samples of each cell, and number s of importance samples per cell.
    scale
        Number of nats that counts as 100% in the percentages of gaps. For counts, `scale` is None, and the absolute
        mean of the importance-weighted bound counts as 100%. For real numbers, the importance-weighted bound may be 0,
        because it is a bound on a log-density. For real numbers, `scale` is therefore the expected negative log-density
        of independent standard normal features, as many as the model has features.
    """

    encoder_n: np.ndarray
    refined_n: np.ndarray
    bound_n: np.ndarray
    kl_n: np.ndarray
    effective_n: np.ndarray
    n_samples: int
    scale: float | None = None

    @property
    def amortization(self) -> Estimate:
        """The amortization gap, ELBO(refined) − ELBO(encoder)."""
        return self._estimate(self.refined_n - self.encoder_n)

    @property
    def variational(self) -> Estimate:
        """The variational gap, log p(x) − ELBO(refined)."""
        return self._estimate(self.bound_n - self.refined_n)

    @property
    def inference(self) -> Estimate:
        """The sum of the amortization gap and the variational gap, log p(x) − ELBO(encoder)."""
        return self._estimate(self.bound_n - self.encoder_n)

    @property
    def rate(self) -> float:
        """Mean KL to the prior, nats per cell."""
        return float(self.kl_n.mean())

    @property
    def distortion(self) -> float:
        """Mean reconstruction loss −E_q[log p(x|z)] with the encoder's posterior, nats per cell."""
        return float(-(self.encoder_n + self.kl_n).mean())

    @property
    def effective_samples(self) -> float:
        """Median effective number of importance samples."""
        return float(np.median(self.effective_n))

    def _estimate(self, gap_n: np.ndarray) -> Estimate:
        error = float(gap_n.std(ddof=1) / math.sqrt(len(gap_n))) if len(gap_n) > 1 else math.inf
        mean = float(gap_n.mean())
        scale = abs(float(self.bound_n.mean())) if self.scale is None else self.scale
        return Estimate(mean=mean, error=error, percent=100 * mean / scale)

    def values(self) -> dict[str, Any]:
        """Return the means of the bounds and gaps in a dictionary of numbers."""
        return {
            "elbo": float(self.encoder_n.mean()),
            "refined_elbo": float(self.refined_n.mean()),
            "bound": float(self.bound_n.mean()),
            "amortization": asdict(self.amortization),
            "variational": asdict(self.variational),
            "inference": asdict(self.inference),
            "rate": self.rate,
            "distortion": self.distortion,
            "effective_samples": self.effective_samples,
            "samples": self.n_samples,
        }


def gaps(model: Model, counts: Counts, options: DiagnoseOptions, *, progress: Progress = silent) -> Gaps:
    """Measure the gaps of the given cells, which were preferably held out of the training.

    Parameters
    ----------
    model, counts
        The model, and n cells with the model's genes, and with batches if the model has batches.
    options
        Number of refinement steps, number of importance samples per cell (from both posteriors together), and seed.

    Raises
    ------
    DataError
        If a cell's batch is unknown to the model.
    """
    table = cell_table(model, counts, batch_n=known_batches(model, counts))
    noise = torch.Generator().manual_seed(options.seed)
    parts = []
    with progress("Measuring gaps", table.n_cells) as advance:
        for rows, cells in table.in_order(_BLOCK_CELLS):
            with torch.no_grad():
                start = model.vae.encode(cells)
            refined = refine(model.vae, cells, start, n_steps=options.refine, seed=options.seed).posterior
            parts.append(bounds(model.vae, cells, (start, refined), n_samples=options.n_samples, noise=noise))
            advance(len(rows))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    names = ("encoder_n", "refined_n", "bound_n", "kl_n", "effective_n")
    return Gaps(
        **dict(zip(names, columns, strict=True)),
        n_samples=2 * _n_each(options.n_samples),
        scale=None if model.of_counts else float(model.vae.decoder.head.typical_loss(torch.zeros(()))),
    )


@torch.no_grad()
def bounds(
    vae: VAE, cells: Minibatch, posteriors: tuple[Posterior, Posterior], *, n_samples: int, noise: torch.Generator
) -> tuple[np.ndarray, ...]:
    """Compute bounds on log p(x) with two posteriors of the same cells.

    Returns
    -------
    ELBO of each posterior, importance-weighted bound, KL of the first posterior (all in nats), and the effective number
    of samples; each of shape (n,).
    """
    n_each = _n_each(n_samples)
    shape = posteriors[0].mean_nk.shape
    kl = [q.kl_nk().double().sum(1).cpu() for q in posteriors]
    elbo = [-kl_n for kl_n in kl]
    log_weight_ns = torch.empty(shape[0], 2 * n_each, dtype=torch.float64)
    drawn_nk = torch.empty(0)
    for s in range(n_each):
        # Antithetic sampling: every second sample is the previous one with the opposite sign.
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
    """Compute log q(z), shape (n,), in float64 on the CPU; the constant −k/2 · log(2π) is left out."""
    var_nk = q.var_nk.double()
    unit_nk = (z_nk.double() - q.mean_nk.double()).square() / var_nk
    return -0.5 * (unit_nk + var_nk.log()).sum(1).cpu()
