"""The options of `scvae denoise` and `scvae_cli.denoise`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scvae_cli.errors import ConfigError
from scvae_cli.gene_list import parse_genes
from scvae_cli.options import DECODING, option
from scvae_cli.shared_options import Reading, Writing, batch_as_option, library_option
from scvae_cli.verb import Verb

Estimate = Literal["state", "cell"]


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions(Reading, Writing):
    """Options that say which expected counts are computed, and how."""

    estimate: Estimate = option(
        "state",
        help="Expected counts to write. state: the mean counts of cells with the same latent position. cell: the "
        "expected counts of this single cell, estimated from its latent position and its own counts.",
        panel=DECODING,
    )
    n_samples: int = option(
        10,
        flags=("--samples",),
        help="Number of posterior samples that are decoded and averaged. With 0, the posterior mean is decoded.",
        least=0,
        panel=DECODING,
    )
    library: str | float = library_option(
        "observed",
        words=("observed", "median"),
        help="Library size to decode at: observed (that of each cell), median (of the training cells), or a number of "
        "counts.",
    )
    genes: tuple[str, ...] | None = option(
        None,
        help="Genes to denoise: A,B,C, or @FILE to read them from a text file with one gene per line.",
        python_help="Names of the genes to denoise.",
        shown_default="all modeled genes",
        parse=parse_genes,
        panel=DECODING,
    )
    batch_as: str = batch_as_option(
        help="Batch to decode in: the name of a batch, average or observed. With average, the decoded values are "
        "averaged over all batches. The weight of a batch is its number of training cells. With observed, each cell is "
        "decoded in its own batch."
    )
    with_zero_inflation: bool = option(
        False,
        help="Include zero inflation: an expected count is lowered by the probability of a technical zero.",
        panel=DECODING,
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1, panel=DECODING)

    def check(self) -> None:
        """Refuse an empty list of genes: an empty list does not mean all genes."""
        if self.genes == ():
            raise ConfigError("--genes contains no gene names", "leave it out to denoise all modeled genes")

    @property
    def needs_batch(self) -> bool:
        """True if each cell is decoded in its own batch, or if each cell's own rates are estimated."""
        return self.estimate == "cell" or self.batch_as == "observed"


DENOISE = Verb(
    name="denoise",
    panel="Results",
    options=DenoiseOptions,
    home="scvae_cli.tools.denoise.question:Denoise",
    about="""Write the expected counts of every cell to layers["scvae_denoised"].

    The expected counts are averaged over posterior samples with a fixed seed, so the same command gives the same
    numbers. For genes that the model does not contain, all values are NaN and var["scvae_modelled"] is False.""",
    example="scvae denoise data.h5ad",
    returns="None; with `inplace=False` the result: `result.rows.whole()` computes the whole matrix.",
)
