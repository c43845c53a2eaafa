"""Refinement of posteriors: the best Gaussian posterior of each cell is found by gradient ascent.

One encoder network computes the posteriors of all cells, so the posterior of a single cell is not optimal and can be
improved. The increase of the ELBO from the encoder's posteriors to optimal posteriors is called the amortization gap.
Starting from the encoder's posterior, the mean and the log variance of every cell are optimized by gradient ascent on
the ELBO of that cell, with the decoder held fixed. Means are measured in standard deviations of the encoder's
posterior, so that one learning rate suits all cells and axes. The learning rate decreases to zero, so that the noise of
the posterior samples averages out. The same noise is used for all cells, so the result for a cell does not depend on
the other cells. In the optimization, as in training, matrix products are computed in bfloat16 if the device supports
bfloat16. The ELBOs that decide whether the refined posterior of a cell is used are computed in float32.

The amortization gap is described by Cremer, Li & Duvenaud 2018, arXiv:1801.03558, and the optimizer Adam by Kingma & Ba
2015, arXiv:1412.6980.

Letters in array shapes: n cells, k latent dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scvae_cli.config import ComputeConfig
from scvae_cli.data.minibatches import Minibatch
from scvae_cli.device import choose_compute
from scvae_cli.model.posterior import MAX_LOG_VARIANCE, MIN_VARIANCE, Posterior
from scvae_cli.model.vae import VAE

# Size of the first step of the optimization, for means (in standard deviations) and for log variances.
_RATE = 0.2
_DECAYS = 0.8, 0.95
# Smallest number of pairs (a sample and its mirror image) in a set of posterior samples. One set is used to decide
# whether a cell keeps its refined posterior.
_LEAST_SET = 16


class Refined(NamedTuple):
    """Refined posteriors, and the increase of each cell's ELBO, shape (n,), nats.

    The increase of the ELBO is estimated with random numbers that the optimization did not use. A cell whose ELBO did
    not increase keeps the posterior of the encoder, so the increase is never negative.
    """

    posterior: Posterior
    gain_n: Tensor


def refine(vae: VAE, cells: Minibatch, start: Posterior, *, n_steps: int, seed: int = 0) -> Refined:
    """Refine the posteriors of the cells of a minibatch.

    Parameters
    ----------
    vae, cells
        Model whose decoder is used without dropout and is not changed; n cells, with batches if the decoder is
        conditioned on batches.
    start
        Posteriors of the encoder.
    n_steps
        Number of steps of the optimizer Adam. Each step decodes all cells twice. With 0 steps, the posteriors of the
        encoder are returned.
    """
    mean_nk = start.mean_nk
    if n_steps == 0:
        return Refined(start, torch.zeros(len(mean_nk), dtype=torch.float64))
    noise = even_noise(mean_nk.shape[1], torch.Generator().manual_seed(seed))
    with choose_compute(ComputeConfig(device=str(mean_nk.device))).matrix_products():
        found = _optimize(vae, cells, start, n_steps, noise)
    # A new generator is needed, because the evaluation needs a complete set of samples, and the optimization may end
    # within a set.
    fresh = even_noise(mean_nk.shape[1], torch.Generator().manual_seed(seed + 1))
    gain_n = _gain(vae, cells, start, found, fresh)
    better_n1 = (gain_n > 0).to(mean_nk.device)[:, None]
    best = (torch.where(better_n1, new_nk, old_nk) for new_nk, old_nk in zip(found, start, strict=True))
    return Refined(Posterior(*best), gain_n.clamp_min(0))


def _optimize(vae: VAE, cells: Minibatch, start: Posterior, n_steps: int, noise: Iterator[Tensor]) -> Posterior:
    mean_nk, var_nk = start
    sd_nk = var_nk.sqrt()
    # `place_2nk` contains the shift of the mean, in standard deviations of the encoder's posterior, and the log
    # variance.
    place_2nk = torch.stack([torch.zeros_like(mean_nk), var_nk.log()])
    first_2nk, second_2nk = torch.zeros_like(place_2nk), torch.zeros_like(place_2nk)
    for step in range(n_steps):
        now = Posterior(mean_nk + sd_nk * place_2nk[0], place_2nk[1].exp())
        d_mean_nk, d_log_var_nk = _descent(vae, cells, now, next(noise).to(mean_nk))
        gradient_2nk = torch.stack([d_mean_nk * sd_nk, d_log_var_nk])
        first_2nk.lerp_(gradient_2nk, 1 - _DECAYS[0])
        second_2nk.lerp_(gradient_2nk.square(), 1 - _DECAYS[1])
        unbiased_2nk = first_2nk / (1 - _DECAYS[0] ** (step + 1))
        scale_2nk = (second_2nk / (1 - _DECAYS[1] ** (step + 1))).sqrt() + 1e-8
        rate = _RATE * 0.5 * (1 + math.cos(math.pi * step / n_steps))
        place_2nk = place_2nk - rate * unbiased_2nk / scale_2nk
        place_2nk[1].clamp_(math.log(MIN_VARIANCE), MAX_LOG_VARIANCE)
    return Posterior(mean_nk + sd_nk * place_2nk[0], place_2nk[1].exp())


def even_noise(k: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield an endless sequence of standard normal vectors of shape (k,) in float64.

    The vectors come in sets of equal size. The vectors of a set are spread evenly, so an average over a set varies less
    than an average over independent vectors. The directions of the vectors are the columns of random orthogonal
    matrices. The lengths of the vectors are stratified: one length is drawn from each quantile interval, in random
    order.
    """
    # scipy is imported within the function, because every embedding imports this file, but few embeddings are refined.
    from scipy.special import gammaincinv

    n_frames = _set_size(k) // k
    while True:
        frames = [torch.randn(k, k, generator=generator, dtype=torch.float64) for _ in range(n_frames)]
        direction_mk = torch.cat([torch.linalg.qr(frame_kk).Q.T for frame_kk in frames])
        m = len(direction_mk)
        turn_m = torch.randperm(m, generator=generator)
        quantile_m = (turn_m + torch.rand(m, generator=generator, dtype=torch.float64)) / m
        length_m = np.sqrt(2 * gammaincinv(k / 2, quantile_m.numpy()))
        yield from direction_mk * torch.from_numpy(length_m)[:, None]


def _descent(vae: VAE, cells: Minibatch, posterior: Posterior, noise_k: Tensor) -> tuple[Tensor, Tensor]:
    """Compute gradients of each cell's negative ELBO with respect to the mean and log variance of its posterior.

    The gradients are computed from a posterior sample and its mirror image about the mean.
    """
    sd_nk = posterior.var_nk.sqrt()
    with torch.enable_grad():
        z_nk, mirrored_nk = (
            (posterior.mean_nk + sign * sd_nk * noise_k).detach().requires_grad_() for sign in (1.0, -1.0)
        )
        # `nll` is the sum of two means over the cells. To obtain the gradient of each cell's own loss, the gradients
        # with respect to latent positions are later multiplied by the number of cells. Scaling the loss itself would
        # take longer, because the gradients with respect to all outputs are much larger arrays.
        nll = vae.decode(z_nk, cells.batch_n).mean_nll(cells) + vae.decode(mirrored_nk, cells.batch_n).mean_nll(cells)
        d_z_nk, d_mirrored_nk = torch.autograd.grad(nll, (z_nk, mirrored_nk))
    half = 0.5 * len(z_nk)
    d_mean_nk = half * (d_z_nk + d_mirrored_nk) + posterior.mean_nk
    d_sd_nk = half * (d_z_nk - d_mirrored_nk) * noise_k
    # The KL is ½(m² + v − 1 − log v), where v is the variance. The derivatives with respect to log v are dv/d log v = v
    # for the variance and d sd/d log v = sd/2 for the standard deviation.
    return d_mean_nk, 0.5 * (sd_nk * d_sd_nk + posterior.var_nk - 1)


@torch.no_grad()
def _gain(vae: VAE, cells: Minibatch, start: Posterior, found: Posterior, noise: Iterator[Tensor]) -> Tensor:
    """Compute how much refinement raised the ELBO of each cell, shape (n,), float64, on the CPU.

    The ELBO before refinement and the ELBO after refinement are estimated with the same noise.
    """
    gain_n = (start.kl_nk() - found.kl_nk()).double().sum(1).cpu()
    n_pairs = _set_size(start.mean_nk.shape[1])
    for _ in range(n_pairs):
        noise_k = next(noise).to(start.mean_nk)
        for sign in (1, -1):
            for posterior, weight in ((start, 1), (found, -1)):
                output = vae.decode(posterior.sample(sign * noise_k), cells.batch_n)
                gain_n += weight * output.nll_n(cells).cpu() / (2 * n_pairs)
    return gain_n


def _set_size(k: int) -> int:
    return k * -(-_LEAST_SET // k)
