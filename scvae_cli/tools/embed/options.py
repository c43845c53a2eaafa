"""The options of `scvae embed` and `scvae_cli.embed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scvae_cli.options import option
from scvae_cli.shared_options import Reading, Writing
from scvae_cli.verb import Verb

Axes = Literal["canonical", "training"]


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(Reading, Writing):
    """Options that say how cells are embedded."""

    axes: Axes = option(
        "canonical",
        help="Latent axes to use. canonical: rotated axes, ordered by the variance of expression that they explain. "
        "These axes are similar between trainings. training: the axes of the encoder and the decoder, not rotated.",
    )
    refine: int = option(
        0,
        help="Number of gradient steps that improve the encoder's posterior of each cell. 100 steps are plenty. The "
        "cells must come from batches that the model was trained on.",
        least=0,
        takes="a number of steps, 0 or more; 100 is plenty",
    )

    @property
    def needs_batch(self) -> bool:
        """True if posteriors are refined: refinement evaluates the likelihood, which depends on the batch."""
        return self.refine > 0


EMBED = Verb(
    name="embed",
    panel="Results",
    options=EmbedOptions,
    home="scvae_cli.tools.embed.question:Embed",
    about="""Write the latent position of every cell to obsm["X_scvae"].

    The latent position is the mean of the posterior. The variances of the posterior are written to
    obsm["scvae_latent_var"]. The cells need not be those of the training. The encoder does not use the batch, so cells
    of new batches can be embedded too. With --refine, the posterior of each cell is improved separately.""",
    example="scvae embed data.h5ad",
)
