"""What a walk climbs towards: genes to raise and to lower, or any property of what is decoded.

Of genes the score of a place is the mean, over those to raise, of how many standard deviations (of the cells) the
decoded gene lies above the cells' mean, less the same mean over those to lower. Genes are compared in their isometric
coordinate, in which a count has the same noise at every level; so neither a common gene nor a noisy one decides alone.

Shapes: n cells or places, k latent dimensions, g genes, c genes of a programme.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scvae_cli.errors import ConfigError, DataError
from scvae_cli.latent.decoding import decoder_at
from scvae_cli.latent.posteriors import BLOCK_CELLS
from scvae_cli.model.bundle import Model

Property = Callable[[Tensor], Tensor]
# Standard deviation over the cells that a gene is given at least, in standard deviations of a count: one that is
# decoded alike in all cells has no say.
_LEAST_SD = 1e-3
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Programme:
    """What is to rise and what to fall.

    Parameters
    ----------
    toward
        Genes, or a function of decoded values, (n, g) → (n,), written in torch.
    away
        Genes to lower.

    Raises
    ------
    ConfigError
        For no gene, one on both sides, or genes to lower beside a function.
    """

    toward: tuple[str, ...] | Property = ()
    away: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if callable(self.toward):
            if self.away:
                raise ConfigError("a function and genes to lower were given", "let the function lower them")
            return
        if not self.toward and not self.away:
            raise ConfigError(
                "no gene to raise or to lower", "--toward and --away take A,B,C or @FILE, one gene a line"
            )
        both = [gene for gene in self.toward if gene in self.away]
        if both:
            raise ConfigError(f"{both[0]!r} is to rise and to fall", "leave it out of --toward or of --away")

    def label(self) -> str:
        """What the walk is towards, in few words.

        >>> Programme(toward=("Klf1", "Car1"), away=("Irf8",)).label()
        'more Klf1, Car1, less Irf8'
        """
        if callable(self.toward):
            return f"more {_name(self.toward)}"
        parts = [f"{word} {_listed(genes)}" for word, genes in (("more", self.toward), ("less", self.away)) if genes]
        return ", ".join(parts)

    def default_name(self) -> str:
        """Name of a walk towards it.

        >>> Programme(toward=("Klf1", "Car1")).default_name()
        'toward_Klf1'
        """
        if callable(self.toward):
            return f"toward_{_name(self.toward)}"
        return f"toward_{self.toward[0]}" if self.toward else f"away_{self.away[0]}"

    def told(self) -> dict[str, list[str]]:
        """Both sides by name."""
        toward = [_name(self.toward)] if callable(self.toward) else list(self.toward)
        return {"toward": toward, "away": list(self.away)}


def scorer(
    model: Model, programme: Programme, mean_nk: Tensor, *, library: str | float, batch_as: str
) -> tuple[Callable[[Tensor], Tensor], np.ndarray]:
    """A programme's score of places on the model's device, differentiable, and the scores of the cells, shape (n,).

    Parameters
    ----------
    mean_nk
        The cells' posterior means: the places they are scored at, and what genes are standardised by.
    library, batch_as
        Depth and batch to decode at, as for `decoder_at`.

    Raises
    ------
    DataError
        For a gene that the model does not know.
    ConfigError
        For a function that does not give each place a finite number that torch can differentiate.
    """
    decoded = decoder_at(model, library, batch_as)
    blocks = [block_nk.to(model.device) for block_nk in torch.split(mean_nk, BLOCK_CELLS)]
    if callable(programme.toward):
        wanted = programme.toward
        _check(wanted, decoded, blocks[0][:2])
        with torch.no_grad():
            score_n = torch.cat([wanted(decoded(block_nk)).cpu() for block_nk in blocks])
        if not torch.isfinite(score_n).all():
            raise ConfigError(f"{_name(wanted)} is not finite at every cell", "it must be a number wherever cells are")
        return lambda z_nk: wanted(decoded(z_nk)), score_n.double().numpy()
    columns = torch.as_tensor(_columns(model, (*programme.toward, *programme.away)), device=model.device)
    head = model.vae.decoder.head

    def coordinates(z_nk: Tensor) -> Tensor:
        y_nc: Tensor = head.isometric(decoded(z_nk))[:, columns]
        return y_nc

    with torch.no_grad():
        y_nc = torch.cat([coordinates(block_nk) for block_nk in blocks])
    mean_c, sd_c = y_nc.mean(0), y_nc.std(0, correction=0).clamp_min(_LEAST_SD)
    sides = [sign / len(genes) for sign, genes in ((1, programme.toward), (-1, programme.away)) for _ in genes]
    weight_c = torch.tensor(sides, device=model.device) / sd_c

    def score(z_nk: Tensor) -> Tensor:
        return (coordinates(z_nk) - mean_c) @ weight_c

    return score, ((y_nc - mean_c) @ weight_c).double().cpu().numpy()


def _columns(model: Model, genes: tuple[str, ...]) -> list[int]:
    position = {gene: i for i, gene in enumerate(model.genes)}
    unknown = [gene for gene in genes if gene not in position]
    if unknown:
        more = f" (nor {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise DataError(
            f"gene {unknown[0]!r} is not in the model{more}", f"it models {len(model.genes)} genes: scvae info"
        )
    return [position[gene] for gene in genes]


def _check(wanted: Property, decoded: Callable[[Tensor], Tensor], z_nk: Tensor) -> None:
    with torch.enable_grad():
        value_n = wanted(decoded(z_nk.detach().clone().requires_grad_(True)))
    if not isinstance(value_n, Tensor) or value_n.shape != (len(z_nk),):
        raise ConfigError(
            f"{_name(wanted)} gives no number for each row", "it takes a tensor (n, g) and returns one of shape (n,)"
        )
    if not value_n.requires_grad:
        raise ConfigError(f"{_name(wanted)} has no gradient", "write it in torch, of the tensor it is given")


def _name(wanted: Property) -> str:
    return getattr(wanted, "__name__", type(wanted).__name__)


def _listed(genes: tuple[str, ...]) -> str:
    more = f" and {len(genes) - _NAMED} more" if len(genes) > _NAMED else ""
    return ", ".join(genes[:_NAMED]) + more
