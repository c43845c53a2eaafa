"""The options of `scvae diagnose` and `scvae_cli.diagnose`."""

from __future__ import annotations

from dataclasses import dataclass

from scvae_cli.errors import ConfigError
from scvae_cli.heldout import MIN_HELDOUT
from scvae_cli.options import option
from scvae_cli.shared_options import Drawing, Reading, Subset, Writing
from scvae_cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions(Reading, Subset, Drawing, Writing):
    """Options that say how a model is diagnosed."""

    n_samples: int = option(
        200,
        help="Number of importance samples from which log p(x) of each cell is estimated.",
        flags=("--samples",),
        least=2,
        most=10_000,
    )
    refine: int = option(
        100,
        help="Number of gradient steps that improve the posterior of each cell. The encoder's posterior is compared "
        "with the improved posterior.",
        least=1,
        most=100_000,
    )
    max_cells: int = option(
        1000,
        help="Maximum number of cells on which the encoder and the likelihood are evaluated.",
        flags=("--cells",),
        least=MIN_HELDOUT,
    )
    quick: bool = option(False, help="Train no further models, and leave out the comparisons with other models.")
    n_trainings: int = option(
        3,
        help="Number of models to compare, each trained with another random seed. The diagnosed model counts too.",
        flags=("--trainings",),
        most=100,
    )
    labels: str | None = option(
        None,
        help="Column of obs with known labels, such as cell types. The embedding is evaluated by how well it separates "
        "the known labels.",
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1)

    def check(self) -> None:
        """Refuse to compare fewer than two trainings, or trainings on different sets of cells."""
        if self.subset and not self.quick:
            raise ConfigError(
                "--subset needs --quick: the further models would be trained on fewer cells than the diagnosed model",
                "add --quick",
            )
        if not self.quick and self.n_trainings < 2:
            raise ConfigError(
                f"--trainings is {self.n_trainings}",
                "use 2 or more, since the diagnosed model counts too, or use --quick to train no further models",
            )

    @property
    def needs_batch(self) -> bool:
        """Always True, because the likelihood depends on the batch."""
        return True


DIAGNOSE = Verb(
    name="diagnose",
    panel="Checks",
    options=DiagnoseOptions,
    home="scvae_cli.tools.diagnose.question:Diagnose",
    about="""Diagnose a trained model: print verdicts on its quality, each with a number and advice.

    The verdicts state whether the latent space is used, whether the prior matches the cells, and how close the encoder
    comes to the best posteriors. Further verdicts state whether the likelihood reproduces the zeros and variances of
    the genes, and whether distances between cells follow distances in expression. The embedding is compared with PCA by
    the neighbors of the cells. With --labels, the embedding and PCA are also compared by how well they separate known
    labels. For a model with --batch-key, the embedding and PCA are also compared by how well batches are mixed. If the
    cells have batches and harmonypy is installed, the embedding is compared with Harmony too. If the data has at least
    ten held-out cells, the encoder and the likelihood are evaluated on held-out cells only.

    Further models are trained unless --quick is given. The VAE is compared with simpler models: a VAE with a linear
    decoder, PCA, and a model that gives every gene a fixed mean. In one part of the comparison, some molecules of every
    cell are withheld from the training, and the models predict the withheld molecules. Models trained with other random
    seeds show how well trainings agree. All numbers are written to uns["scvae"]["diagnosis"].""",
    example="scvae diagnose data.h5ad --plot diagnosis.png",
    returns="None. With `inplace=False`, the diagnosis with its `verdicts` is returned and nothing is written.",
)
