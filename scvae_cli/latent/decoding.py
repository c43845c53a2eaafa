"""Expected counts at any latent positions, for example at the steps of a trajectory.

Letters in array shapes: t positions, k latent dimensions, g genes, s samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scvae_cli.errors import DataError
from scvae_cli.latent.decoding_batch import decoding_mixture
from scvae_cli.latent.expected_counts import library_size
from scvae_cli.model.bundle import Model

_SAMPLES = 100


def decoder_at(model: Model, library: str | float, batch_as: str) -> Callable[[Tensor], Tensor]:
    """Return a differentiable function that maps latent positions, shape (t, k), to expected counts, shape (t, g).

    The expected counts include zero inflation, as denoised counts do. The returned function takes positions on the
    device of the model. `library` and `batch_as` have the same meaning as in `expected_counts`. However, `library` and
    `batch_as` must not be "observed", because a latent position has no observed library size or batch.

    Raises
    ------
    DataError
        If `batch_as` names a batch that the model does not have, or if the library size is invalid.
    """
    size = library_size(model, library, usual="median")
    if size is None:
        raise DataError("a trajectory has no observed library size", "use --library median, or a number of counts")
    mixture = decoding_mixture(model, batch_as)

    def decoded(z_tk: Tensor) -> Tensor:
        library_t = torch.full((len(z_tk),), size, device=z_tk.device)
        return model.vae.expected_counts(z_tk, library_t, mixture, with_zero_inflation=True)

    return decoded


@torch.inference_mode()
def decode(model: Model, z_tk: np.ndarray, library: str | float, batch_as: str) -> np.ndarray:
    """Compute expected counts at latent positions, shape (t, g), float32.

    The latent positions are in the coordinates that the encoder and the decoder use.

    Raises
    ------
    DataError
        If the model has no batch with the name `batch_as`, or if `library` is neither "median" nor a number above 0.
    """
    z = torch.as_tensor(z_tk, dtype=torch.float32, device=model.device)
    result: np.ndarray = decoder_at(model, library, batch_as)(z).cpu().numpy()
    return result


def posterior_band(
    model: Model, z_tk: np.ndarray, var_tk: np.ndarray, library: str | float, batch_as: str, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute 5% and 95% quantiles of the expected counts of every gene at uncertain latent positions.

    `var_tk` is the posterior variance of a cell at each latent position. Samples from the posterior at each position
    are decoded, and the quantiles of the expected counts are returned. The quantiles show how uncertain the expected
    counts of the cell are, because the latent position of the cell is uncertain. The two quantiles have the shape (t,
    g), in float32.
    """
    random = np.random.default_rng(seed)
    low_tg = np.empty((len(z_tk), len(model.genes)), dtype=np.float32)
    high_tg = np.empty_like(low_tg)
    for t, (z_k, var_k) in enumerate(zip(z_tk, var_tk, strict=True)):
        z_sk = z_k + np.sqrt(var_k) * random.standard_normal((_SAMPLES, len(z_k)))
        mean_sg = np.sort(decode(model, z_sk, library, batch_as), axis=0)
        low_tg[t], high_tg[t] = mean_sg[round(0.05 * (_SAMPLES - 1))], mean_sg[round(0.95 * (_SAMPLES - 1))]
    return low_tg, high_tg
