"""A test of a network that was read from a folder: decoded expression must be encoded at plausible latent positions.

Without the test, extreme weights of a network could give meaningless results, or errors deep inside a computation.

Letters in array shapes: c components of the density, k latent dimensions, g genes.
"""

from __future__ import annotations

import scipy.sparse as sp
import torch
from torch import Tensor

from scvae_cli.data.minibatches import CellTable
from scvae_cli.model.posterior import Posterior
from scvae_cli.model.vae import VAE

# Largest latent coordinate that is accepted. Latent positions usually have about the standard deviation of the prior,
# which is 1. In models trained without a KL term, the standard deviation of latent positions may be larger, but is
# always far below the limit.
FARTHEST = 1e6
_MOST_LOG_VARIANCE, _MOST_LIBRARY = 80.0, 1e12
_CELLS = 8


@torch.no_grad()
def check_network(vae: VAE, mean_ck: Tensor) -> None:
    """Decode the component means of the latent density, and encode the expected counts at these positions.

    Raises
    ------
    ValueError
        If a library size, proportion of a batch, expected count or latent position is outside the range that a training
        can produce.
    """
    vae.eval()
    if not 0 < float(vae.reference_library) < _MOST_LIBRARY:
        raise ValueError("the reference library size is out of range")
    if vae.batches and not ((vae.batch_share_b >= 0).all() and abs(float(vae.batch_share_b.sum()) - 1) < 1e-3):
        raise ValueError("the proportions of the batches do not add up to 1")
    z_ck = mean_ck[:_CELLS]
    if z_ck.abs().max() > FARTHEST:
        raise ValueError("the latent density of the cells lies too far from the origin of latent space")
    mean_cg = vae.expected_counts(z_ck, vae.reference_library.expand(len(z_ck)), None, with_zero_inflation=True)
    if not torch.isfinite(mean_cg).all():
        raise ValueError("the weights of the decoder give expected counts that are not finite numbers")
    cells = CellTable(sp.csr_matrix(mean_cg.numpy()), None, torch.device("cpu"), real=not vae.config.of_counts)
    for _, some in cells.in_order(_CELLS):
        posterior = Posterior.from_network(*vae.encoder(some, vae.reference_library))
        near = posterior.mean_nk.abs().max() <= FARTHEST and posterior.var_nk.log().abs().max() <= _MOST_LOG_VARIANCE
        if not near:
            raise ValueError("the weights of the encoder give latent positions or variances that are out of range")
