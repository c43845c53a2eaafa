"""The score that increases along a trajectory: the score of a gene program, or any differentiable torch function.

A function other than a gene program is computed from the decoded values of the genes.

A gene program consists of genes to increase and genes to decrease. The decoded values of each gene are standardized:
the mean over the cells is subtracted, and the difference is divided by the standard deviation over the cells. The score
of a gene program at a latent position is the mean standardized value of the genes to increase minus the mean
standardized value of the genes to decrease. Before standardization, decoded values are transformed to Fisher–Rao
coordinates, in which the noise of a count is the same at all expression levels. Highly expressed genes and noisy genes
therefore do not dominate the score.

Letters in array shapes: n cells or latent positions, k latent dimensions, g genes, c genes of the program.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scvae_cli.errors import ConfigError
from scvae_cli.latent.decoding import decoder_at
from scvae_cli.latent.posteriors import BLOCK_CELLS
from scvae_cli.model.bundle import Model
from scvae_cli.tools.optimize.options import OptimizeOptions

# The standard deviation of a gene's decoded values over the cells is raised to at least this value, in units of the
# noise of a count. Otherwise, a gene with nearly equal decoded values in all cells could dominate the score.
_LEAST_SD = 1e-3


def scorer(model: Model, options: OptimizeOptions, mean_nk: Tensor) -> tuple[Callable[[Tensor], Tensor], np.ndarray]:
    """Make the score function of a gene program, and score the cells at their posterior means.

    The genes in `options` must have the gene names of the model. The score function is differentiable and
    computes scores, shape (n,), from latent positions, shape (n, k), on the device of the model. The scores of the
    cells are returned too, shape (n,).

    Raises
    ------
    DataError
        If the batch in `options` is unknown to the model.
    ConfigError
        If the function in `options` does not map each cell to a finite number that torch can differentiate.
    """
    decoded = decoder_at(model, options.library, options.batch_as)
    blocks = [block_nk.to(model.device) for block_nk in torch.split(mean_nk, BLOCK_CELLS)]
    if callable(function := options.toward):
        [name] = options.increased
        _check(function, name, decoded, blocks[0][:2])
        with torch.no_grad():
            score_n = torch.cat([function(decoded(block_nk)).cpu() for block_nk in blocks])
        if not torch.isfinite(score_n).all():
            raise ConfigError(f"{name} returns NaN or infinity for some cells", f"{name} must return finite numbers")
        return lambda z_nk: function(decoded(z_nk)), score_n.double().numpy()
    column = {gene: i for i, gene in enumerate(model.genes)}
    columns = torch.as_tensor([column[gene] for gene in (*options.increased, *options.away)], device=model.device)
    head = model.vae.decoder.head

    def coordinates(z_nk: Tensor) -> Tensor:
        y_nc: Tensor = head.isometric(decoded(z_nk))[:, columns]
        return y_nc

    with torch.no_grad():
        y_nc = torch.cat([coordinates(block_nk) for block_nk in blocks])
    mean_c, sd_c = y_nc.mean(0), y_nc.std(0, correction=0).clamp_min(_LEAST_SD)
    signs = [sign / len(genes) for sign, genes in ((1, options.increased), (-1, options.away)) for _ in genes]
    weight_c = torch.tensor(signs, device=model.device) / sd_c

    def score(z_nk: Tensor) -> Tensor:
        return (coordinates(z_nk) - mean_c) @ weight_c

    return score, ((y_nc - mean_c) @ weight_c).double().cpu().numpy()


def _check(function: Callable[..., Tensor], name: str, decoded: Callable[[Tensor], Tensor], z_nk: Tensor) -> None:
    with torch.enable_grad():
        value_n = function(decoded(z_nk.detach().clone().requires_grad_(True)))
    if not isinstance(value_n, Tensor) or value_n.shape != (len(z_nk),):
        raise ConfigError(
            f"{name} does not return one number per cell",
            "the function must map decoded values of shape (cells, genes) to a tensor of shape (cells,)",
        )
    if not value_n.requires_grad:
        raise ConfigError(f"{name} has no gradient", "compute the score with torch functions from the decoded values")
