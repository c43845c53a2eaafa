"""The options of `scvae score` and `scvae_cli.score`."""

from __future__ import annotations

from dataclasses import dataclass

from scvae_cli.options import option
from scvae_cli.shared_options import Drawing, Reading, Subset, Writing
from scvae_cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(Reading, Subset, Drawing, Writing):
    """Options that say how cells are scored."""

    n_samples: int = option(
        100,
        flags=("--samples",),
        help="Number of importance samples per cell for the importance-weighted bound.",
        least=1,
        most=10_000,
    )
    n_simulated: int = option(
        4000,
        flags=("--simulated",),
        help="Number of cells to simulate from the model. Each cell is compared with the simulated cells.",
        least=100,
        most=100_000,
    )
    fdr: float = option(
        0.05,
        help="False discovery rate. Cells with an adjusted p-value up to this value are counted as anomalies.",
        above=0,
        below=1,
        in_record=False,
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1)

    @property
    def needs_batch(self) -> bool:
        """Always True: the batches of the cells must be known, because the likelihood depends on the batch."""
        return True


SCORE = Verb(
    name="score",
    panel="Results",
    options=ScoreOptions,
    home="scvae_cli.tools.score.question:Score",
    about="""Write how likely each cell is under the model, and whether it is an anomaly.

    obs["scvae_elbo"] is the ELBO of each cell: obs["scvae_reconstruction"] minus obs["scvae_kl"]. obs["scvae_iwae"] is
    the importance-weighted bound, which is tighter than the ELBO. obs["scvae_iwae_density"] is the importance-weighted
    bound with another prior: the density of the training cells in latent space. All bounds are in nats.

    obs["scvae_anomaly_score"] says by how many standard deviations each cell fits the model worse than expected for its
    library size and batch. obs["scvae_anomaly_p"] is the p-value of each cell: the share of cells simulated from the
    model whose anomaly score is at least as high. obs["scvae_anomaly_p_adjusted"] is the p-value adjusted to control
    the false discovery rate.""",
    example="scvae score data.h5ad --plot scores.png",
)
