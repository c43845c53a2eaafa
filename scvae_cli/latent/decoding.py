"""Expected counts at places in latent space that are not cells.

Shapes: t places, k latent dimensions, g genes, s samples.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scvae_cli.errors import DataError
from scvae_cli.latent.expected_counts import batch_index, library_size
from scvae_cli.model.bundle import Model

_SAMPLES = 100


def decoder_at(
    model: Model, library: str | float, batch_as: str, *, with_zero_inflation: bool = False
) -> Callable[[Tensor], Tensor]:
    """What turns places, on the model's device, into their expected counts, (t, k) → (t, g); differentiable.

    Parameters
    ----------
    library, batch_as
        Depth and batch, as for denoising; there is no "observed" depth.
    with_zero_inflation
        Whether technical zeros count.

    Raises
    ------
    DataError
        For an unknown batch or library size.
    """
    size = library_size(model, library, usual="median")
    if size is None:
        raise DataError("a walk has no observed library size", "--library takes median or a number")
    batch = batch_index(model, batch_as)

    def decoded(z_tk: Tensor) -> Tensor:
        library_t = torch.full((len(z_tk),), size, device=z_tk.device)
        batch_t = None if batch is None else torch.full((len(z_tk),), batch, device=z_tk.device)
        return model.vae.expected_counts(z_tk, library_t, batch_t, with_zero_inflation=with_zero_inflation)

    return decoded


@torch.inference_mode()
def decode(
    model: Model, z_tk: np.ndarray, library: str | float, batch_as: str, *, with_zero_inflation: bool = False
) -> np.ndarray:
    """Expected counts at a depth and in a batch, shape (t, g), float32.

    Parameters
    ----------
    z_tk
        In the frame of the training.
    library, batch_as, with_zero_inflation
        As for `decoder_at`, which also says what is refused.
    """
    z = torch.as_tensor(z_tk, dtype=torch.float32, device=model.device)
    result: np.ndarray = decoder_at(model, library, batch_as, with_zero_inflation=with_zero_inflation)(z).cpu().numpy()
    return result


def posterior_band(
    model: Model, z_tk: np.ndarray, var_tk: np.ndarray, library: str | float, batch_as: str, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """5% and 95% quantiles of the expected counts over N(z, var) at every place, each of shape (t, g), float32.

    They tell how surely a cell that lay there would be placed, and so what the decoder could say about it.
    """
    random = np.random.default_rng(seed)
    low_tg = np.empty((len(z_tk), len(model.genes)), dtype=np.float32)
    high_tg = np.empty_like(low_tg)
    for t, (z_k, var_k) in enumerate(zip(z_tk, var_tk, strict=True)):
        z_sk = z_k + np.sqrt(var_k) * random.standard_normal((_SAMPLES, len(z_k)))
        mean_sg = np.sort(decode(model, z_sk, library, batch_as), axis=0)
        low_tg[t], high_tg[t] = mean_sg[round(0.05 * (_SAMPLES - 1))], mean_sg[round(0.95 * (_SAMPLES - 1))]
    return low_tg, high_tg
