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
        help="Expected counts to write. state: the mean of all cells in the same state. cell: the rate of the single "
        "cell, estimated from the state and the counts of this cell.",
        panel=DECODING,
    )
    n_samples: int = option(
        10,
        flags=("--samples",),
        help="Number of posterior samples to average over; 0 decodes the posterior mean.",
        least=0,
        panel=DECODING,
    )
    library: str | float = library_option(
        "observed",
        words=("observed", "median"),
        help="Library size to decode at: observed (each cell's own), median (of the training cells), or a number.",
    )
    genes: tuple[str, ...] | None = option(
        None,
        help="Genes to denoise: A,B,C or @FILE.",
        python_help="Names of the genes to denoise.",
        shown_default="all modeled genes",
        parse=parse_genes,
        panel=DECODING,
    )
    batch_as: str = batch_as_option(
        help="Batch to decode in: the name of a batch, average or observed. With average, the decoded values are "
        "averaged over all batches, weighted by number of training cells. With observed, each cell is decoded in its "
        "own batch."
    )
    with_zero_inflation: bool = option(
        False, help="Lower the expected counts by the probability of technical zeros.", panel=DECODING
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
    numbers. Genes outside the model are NaN, and var["scvae_modelled"] is False for them.""",
    example="scvae denoise data.h5ad",
    returns="None; with `inplace=False` the result: `result.rows.whole()` computes the whole matrix.",
)
