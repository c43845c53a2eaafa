"""The options of `scvae embed` and `scvae_cli.embed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scvae_cli.errors import ConfigError
from scvae_cli.options import OUTPUT, option
from scvae_cli.shared_options import Reading, Writing
from scvae_cli.verb import Verb

UMAP = "UMAP and clusters"

Space = Literal["expression", "latent"]
Axes = Literal["canonical", "training"]


def parse_colors(flag: str, texts: str | Sequence[str]) -> tuple[str, ...]:
    """Split one or several texts A,B,C at the commas, and return each name once, in the given order.

    >>> parse_colors("--color", ["cell_type, batch", "CD3D"])
    ('cell_type', 'batch', 'CD3D')
    """
    given = [texts] if isinstance(texts, str) else texts
    names = tuple(dict.fromkeys(name.strip() for text in given for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"{flag} {','.join(given)!r} contains no names", f"{flag} takes columns of obs and genes")
    return names


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(Reading, Writing):
    """Options that say how cells are embedded, and whether a UMAP and clusters are computed."""

    space: Space = option(
        "expression",
        help='Coordinates to write to obsm["X_scvae"]. expression: principal components of the decoded expression of '
        "each cell, so that distances between cells are distances in expression. latent: the latent position.",
    )
    axes: Axes = option(
        "canonical",
        help="Axes of the latent position. canonical: rotated axes, ordered by the variance of expression that they "
        "explain. Canonical axes are similar between trainings. training: the axes of the encoder and the decoder.",
    )
    refine: int = option(
        0,
        help="Number of gradient steps that improve the encoder's posterior of each cell. 100 steps are "
        "enough. Refinement needs cells from the batches of the training.",
        least=0,
        most=100_000,
        takes="a number of steps, 0 or more; 100 is enough",
    )
    umap: bool = option(False, help="Also compute a UMAP of the embedding with scanpy.", panel=UMAP, in_record=False)
    leiden: bool = option(
        False,
        help="Also cluster the cells with scanpy: Leiden clusters of the neighbor graph of the embedding. This option "
        "needs the package igraph.",
        panel=UMAP,
        in_record=False,
    )
    resolution: float = option(
        1.0, help="Resolution of the Leiden clusters: a larger value gives more clusters.", above=0, panel=UMAP,
        in_record=False,
    )  # fmt: skip
    n_neighbors: int = option(
        15, help="Number of neighbors of a cell in the neighbor graph.", least=2, most=1000, panel=UMAP, in_record=False
    )
    seed: int = option(
        0, help="Random seed of the UMAP and of the clusters.", least=0, most=2**32 - 1, panel=UMAP, in_record=False
    )
    plot: Path | None = option(
        None,
        help="Also draw the UMAP into a .png, .svg or .pdf file. This option implies --umap.",
        panel=OUTPUT,
        metavar="FILE",
        in_record=False,
    )
    color: tuple[str, ...] = option(
        (),
        help="Columns of obs and genes by which the cells are colored in the figure. The figure has one panel for each "
        "column and each gene. Genes are shown as log1p of normalized counts.",
        metavar="A,B,C",
        shown_default="the clusters and the batches",
        takes="columns of obs and genes",
        parse=parse_colors,
        repeated=True,
        label=True,
        panel=OUTPUT,
        in_record=False,
    )

    def check(self) -> None:
        """Raise an error if options of a figure, UMAP or clustering are given, but not requested themselves."""
        if self.color and self.plot is None:
            raise ConfigError("--color was given without --plot", "use both: --plot umap.png --color NAME")
        if self.resolution != 1.0 and not self.leiden:
            raise ConfigError("--resolution was given without --leiden", "add --leiden")
        if self.n_neighbors != 15 and not self.needs_neighbors:
            raise ConfigError("--n-neighbors was given without --umap or --leiden", "add --umap, --leiden or both")

    @property
    def needs_umap(self) -> bool:
        """True if a UMAP is computed."""
        return self.umap or self.plot is not None

    @property
    def needs_neighbors(self) -> bool:
        """True if a UMAP or clusters are requested, because both are computed from the neighbor graph."""
        return self.needs_umap or self.leiden

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

    Distances in obsm["X_scvae"] are distances in expression, without the effects of batch and library size. The
    posterior mean of each cell's latent position, from which the model decodes, goes to obsm["scvae_latent"], and the
    posterior variances go to obsm["scvae_latent_var"]. The embedded cells need not be the training cells. The encoder
    does not use the batch, so cells of new batches can be embedded too.

    With --umap, the UMAP of the embedding goes to obsm["X_umap_scvae"]. With --leiden, clusters of the cells go to
    obs["scvae_leiden"]. The UMAP and the clusters come from the same neighbor graph. --plot draws the UMAP, with one
    panel for each column of obs and each gene of --color.""",
    example="scvae embed data.h5ad --umap --leiden --plot umap.png",
)
