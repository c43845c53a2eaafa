"""The options of `scvae denoise` and `scvae_cli.denoise`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scvae_cli.errors import ConfigError
from scvae_cli.gene_list import parse_genes
from scvae_cli.options import DECODING, OUTPUT, option
from scvae_cli.shared_options import SEVERAL_COVARIATES, Reading, Writing, batch_as_option, library_option
from scvae_cli.verb import Verb

Estimate = Literal["state", "cell"]


@dataclass(frozen=True, kw_only=True)
class DenoiseOptions(Reading, Writing):
    """Options that say which expected counts are computed, and how."""

    estimate: Estimate = option(
        "state",
        help="Expected counts to write. state: the mean counts of cells with the same latent position. cell: the "
        "expected counts of each single cell, estimated from its latent position and its own counts.",
        panel=DECODING,
    )
    n_samples: int = option(
        0,
        flags=("--samples",),
        help="Number of posterior samples that are decoded and averaged. If the number is 0, the posterior mean is "
        "decoded.",
        least=0,
        most=10_000,
        panel=DECODING,
    )
    library: str | float = library_option(
        "observed",
        words=("observed", "median"),
        help="Library size to decode at: observed (each cell's own library size), median (the median of the training "
        "cells), or a number of counts.",
    )
    genes: tuple[str, ...] | None = option(
        None,
        help="Genes to denoise: A,B,C, or @FILE to read them from a text file with one gene per line.",
        python_help="Names of the genes to denoise.",
        shown_default="all modeled genes",
        parse=parse_genes,
        panel=DECODING,
    )
    all_genes: bool = option(
        False,
        help="Write a column for every gene of the data, with NaN for genes that are not denoised. The file becomes "
        "large if many genes are not denoised.",
        panel=OUTPUT,
    )
    groupby: str | None = option(
        None,
        help="Column of obs that names groups, such as cell types. The mean denoised counts of each group are compared "
        "with its mean raw counts.",
        shown_default="the clusters of scvae embed --leiden, if the data have them",
    )
    batch_as: str = batch_as_option(
        help="Batch to decode in: the name of a batch, average or observed. With average, the decoded values are "
        "averaged over all batches. The weight of a batch is its number of training cells. With observed, each cell is "
        f"decoded in its own batch. {SEVERAL_COVARIATES}"
    )
    with_zero_inflation: bool | None = option(
        None,
        help="Include zero inflation: an expected count is lowered by the probability of an inflated zero. Without "
        "zero inflation, genes appear to be expressed in cell types that do not express them.",
        shown_default="included, if the model has zero inflation",
        panel=DECODING,
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1, panel=DECODING)

    def check(self) -> None:
        """Refuse an empty list of genes: an empty list does not mean all genes."""
        if self.genes == ():
            raise ConfigError("--genes contains no gene names", "leave out --genes to denoise all modeled genes")

    @property
    def needs_batch(self) -> bool:
        """True if the batch of each cell must be known."""
        return self.estimate == "cell" or self.batch_as == "observed" or self.groupby is not None


DENOISE = Verb(
    name="denoise",
    panel="Results",
    options=DenoiseOptions,
    home="scvae_cli.tools.denoise.question:Denoise",
    about="""Write the expected counts of every cell to layers["scvae_denoised"].

    Genes that the model lacks, or that --genes leaves out, are not denoised. If less than nine tenths of the data's
    genes are denoised, the expected counts are written to obsm["scvae_denoised"] instead of a layer, and the names of
    the denoised genes to uns["scvae"]["denoised_genes"]. var["scvae_modelled"] is True for genes that were denoised.

    If groups of cells are known, the mean denoised counts of each group are compared with its mean raw counts. Genes
    whose denoised and raw means differ by more than the sampling error are shown.""",
    example="scvae denoise data.h5ad --groupby cell_type",
    returns="None. With `inplace=False`, the result is returned, and `result.rows.whole()` computes the whole matrix.",
)
