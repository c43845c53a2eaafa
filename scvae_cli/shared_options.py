"""Options that several commands share: options for reading cells, writing results, drawing figures and decoding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scvae_cli.options import COMPUTE, DECODING, INPUT, OUTPUT, Options, option

# Ways to round fractions of counts to whole numbers.
Rounding = Literal["nearest", "stochastic"]

DEVICES = "auto, cpu, cuda (the default GPU) or cuda:N (GPU number N)"


def round_option(*, shown_default: str = "fractions are refused") -> Any:
    """Make the option that rounds fractions of counts."""
    return option(
        None,
        help="How to round fractions of counts, such as those of SoupX, alevin, kallisto and RSEM. With nearest, "
        "values are rounded to the nearest whole number. With stochastic, values are rounded up or down at random, so "
        "that sums stay the same on average. Normalized values are refused.",
        panel=INPUT,
        shown_default=shown_default,
        in_record=False,
    )


def genome_option() -> Any:
    """Make the option that chooses one of several genomes of a file."""
    return option(
        None,
        help="Genome to read from a 10x .h5 file with several genomes.",
        panel=INPUT,
        shown_default="all genes, or as in training",
        in_record=False,
    )


def modality_option() -> Any:
    """Make the option that chooses one of several modalities of a file."""
    return option(
        None,
        help="Modality to read from a .h5mu file, such as rna.",
        panel=INPUT,
        shown_default="the only one, or as in training",
        in_record=False,
    )


@dataclass(frozen=True, kw_only=True)
class Reading(Options):
    """Options for reading the cells."""

    layer: str | None = option(
        None,
        help="Name of the AnnData layer to read. The layer must hold the same kind of values as the training data: "
        "counts or real numbers.",
        panel=INPUT,
        shown_default="chosen as in training",
        in_record=False,
    )
    round: Rounding | None = round_option(shown_default="as in training")
    genome: str | None = genome_option()
    modality: str | None = modality_option()
    gene_symbols: str | None = option(
        None,
        help="Column of var with gene symbols, by which genes are named in options and results.",
        panel=INPUT,
        shown_default="var_names",
        in_record=False,
    )
    allow_missing_genes: bool = option(
        False,
        help="Accept data that lack more than a fifth of the model's genes. The counts of missing genes are set to 0. "
        "In a model of real-valued data, missing values are set to the mean over the training cells.",
        panel=INPUT,
        in_record=False,
    )
    drop_empty: bool = option(
        False, help="Skip cells without any counts, whose results are NaN.", panel=INPUT, in_record=False
    )
    device: str = option("auto", help=f"Device to compute on: {DEVICES}.", panel=COMPUTE, in_record=False)


@dataclass(frozen=True, kw_only=True)
class Subset(Options):
    """The option that restricts a computation to some of the cells."""

    subset: tuple[str, ...] = option(
        (),
        help="Use only the cells whose value in the column KEY of obs is one of the given values. If --subset is given "
        "several times, a cell must fulfill all conditions. The results of cells that are not used are NaN.",
        python_help="Use only the cells that fulfill all conditions. A condition is a text KEY=VALUE[,VALUE…], where "
        "KEY is a column of obs. The results of cells that are not used are NaN.",
        panel=INPUT,
        metavar="KEY=VALUE[,VALUE…]",
    )


@dataclass(frozen=True, kw_only=True)
class Writing(Options):
    """Options for writing results."""

    output: Path | None = option(
        None,
        flags=("--output", "-o"),
        help="The .h5ad file to write.",
        panel=OUTPUT,
        shown_default="back into DATA",
        in_record=False,
    )
    key_added: str = option(
        "scvae",
        help='Text that replaces "scvae" in the names of the results in the AnnData, such as obsm["X_scvae"].',
        panel=OUTPUT,
        in_record=False,
    )
    force: bool = option(
        False,
        help="Overwrite an existing file, elements of the AnnData that scvae did not write, or a result of other "
        "groups that has the same automatic name. Without --force, a command replaces its earlier result of the same "
        "groups.",
        panel=OUTPUT,
        in_record=False,
    )


@dataclass(frozen=True, kw_only=True)
class WritingNewCells(Writing):
    """Options for writing new cells to a file."""

    output: Path | None = option(
        None,
        flags=("--output", "-o"),
        help="The .h5ad file to which the new cells are written.",
        panel=OUTPUT,
        in_record=False,
    )
    force: bool = option(False, help="Replace an existing file.", panel=OUTPUT, in_record=False)


@dataclass(frozen=True, kw_only=True)
class Drawing(Options):
    """The option to draw a figure."""

    plot: Path | None = option(
        None,
        help="Also draw a figure, and save it to this .png, .svg or .pdf file.",
        panel=OUTPUT,
        metavar="FILE",
        in_record=False,
    )


def library_option(
    default: str | None, *, words: tuple[str, ...] = ("median",), help: str = "", shown_default: str = ""
) -> Any:
    """Make the option for the library size at which the model decodes."""
    return option(
        default,
        help=help or f"Library size to decode at: {', '.join(words)} (of the training cells), or a number of counts.",
        panel=DECODING,
        choices=words,
        above=0,
        most=10**9,
        shown_default=shown_default,
    )


# The values that `--batch-as` takes if the model has several covariates.
SEVERAL_COVARIATES = (
    "If the model was trained with several batch keys or continuous keys, KEY=VALUE[,KEY=VALUE…] sets the values of "
    "some keys."
)


def batch_as_option(default: str | None = "average", *, help: str = "", shown_default: str = "") -> Any:
    """Make the option for the batch in which the model decodes."""
    return option(
        default,
        help=help
        or "Batch to decode in: the name of a batch, or average. With average, the decoded values are averaged over "
        f"all batches. The weight of a batch is its number of training cells. {SEVERAL_COVARIATES}",
        panel=DECODING,
        label=True,
        shown_default=shown_default,
    )
