"""The options of `scvae embed` and `scvae_cli.embed`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scvae_cli.options import option
from scvae_cli.shared_options import Reading, Writing
from scvae_cli.verb import Verb

Space = Literal["expression", "latent"]
Axes = Literal["canonical", "training"]


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(Reading, Writing):
    """Options that say how cells are embedded."""

    space: Space = option(
        "expression",
        help='Coordinates to write to obsm["X_scvae"]. expression: principal components of the decoded expression of '
        "each cell, so that distances between cells are distances in expression. latent: the latent position.",
    )
    axes: Axes = option(
        "canonical",
        help="Axes of the latent position. canonical: rotated axes, ordered by the variance of expression that they "
        "explain. These axes are similar between trainings. training: the axes of the encoder and the decoder.",
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
    about="""Write coordinates of every cell to obsm["X_scvae"], for neighbors, clusters and UMAPs.

    Distances between these coordinates are distances in expression, without the effects of batch and library size. The
    latent position of each cell, from which the model decodes, goes to obsm["scvae_latent"], and the variances of its
    posterior go to obsm["scvae_latent_var"]. The cells need not be those of the training. The encoder does not use the
    batch, so cells of new batches can be embedded too.""",
    example="scvae embed data.h5ad",
)
