"""The options of `scvae check` and `scvae_cli.check`."""

from __future__ import annotations

from dataclasses import dataclass

from scvae_cli.config import FIRST_WITH_COUNTS, Likelihood, check_covariates
from scvae_cli.options import INPUT, Options, option
from scvae_cli.shared_options import Rounding, genome_option, modality_option, round_option
from scvae_cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class CheckOptions(Options):
    """The training options that decide which matrix and which batches are checked."""

    layer: str | None = option(
        None,
        help="Name of the AnnData layer to check.",
        panel=INPUT,
        shown_default=FIRST_WITH_COUNTS,
    )
    round: Rounding | None = round_option()
    genome: str | None = genome_option()
    modality: str | None = modality_option()
    batch_key: tuple[str, ...] | None = option(
        None,
        help="Column of obs with the batch of each cell. This option may be used several times.",
        python_help="Column of obs with the batch of each cell, or several columns.",
        panel=INPUT,
        metavar="COLUMN",
    )
    continuous_key: tuple[str, ...] | None = option(
        None,
        help="Column of obs with numbers on which the decoder would be conditioned. This option may be used several "
        "times.",
        python_help="Column of obs with numbers on which the decoder would be conditioned, or several columns.",
        panel=INPUT,
        metavar="COLUMN",
    )
    likelihood: Likelihood = option(
        "zinb",
        help="Likelihood with which you want to train: zinb, nb or poisson for counts, normal for real numbers.",
        panel=INPUT,
    )

    def check(self) -> None:
        """Raise a ConfigError if a covariate is named twice."""
        check_covariates(self.batch_key or (), self.continuous_key or ())


CHECK = Verb(
    name="check",
    panel="Start",
    options=CheckOptions,
    home="scvae_cli.tools.check.checking:check",
    about="""Report what a file contains, and what training would refuse or warn about.

    The exit code is 3 if training would refuse the file.""",
    python_about="Report what the data contain, and what training would refuse or warn about.",
    argument_help="Cells: an .h5ad file, a 10x .h5, an mtx folder, an .h5mu or a .zarr.",
    example="scvae check data.h5ad --batch-key donor",
    takes_model=False,
    inplace=False,
    returns="The findings, an object of the class `scvae_cli.data.inspection.Inspection`.",
)
