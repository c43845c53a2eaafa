"""The options of `scvae score` and `scvae_cli.score`."""

from __future__ import annotations

from dataclasses import dataclass

from scvae_cli.options import option
from scvae_cli.shared_options import Drawing, Reading, Writing
from scvae_cli.verb import Verb


@dataclass(frozen=True, kw_only=True)
class ScoreOptions(Reading, Drawing, Writing):
    """How cells are scored."""

    n_samples: int = option(100, flags=("--samples",), help="Number of importance samples per cell.", least=1)
    n_simulated: int = option(
        4000, flags=("--simulated",), help="Number of cells to simulate from the model for comparison.", least=100
    )
    fdr: float = option(
        0.05, help="False discovery rate at which cells are called anomalies.", above=0, below=1, in_record=False
    )
    seed: int = option(0, help="Random seed.", least=0, most=2**32 - 1)

    @property
    def needs_batch(self) -> bool:
        """Always True, because the likelihood of a cell depends on its batch."""
        return True


SCORE = Verb(
    name="score",
    panel="Results",
    options=ScoreOptions,
    home="scvae_cli.tools.score.question:Score",
    about="""Write how likely each cell is under the model, and whether it is an anomaly.

    Writes the ELBO of each cell, obs["scvae_elbo"], and its parts, obs["scvae_reconstruction"] and obs["scvae_kl"].
    The importance-weighted bound, obs["scvae_iwae"], is tighter than the ELBO. obs["scvae_iwae_density"] is the same
    bound with another prior: the density of the training cells in latent space. All these values are in nats.

    obs["scvae_anomaly_p"] is a p-value: the share of simulated cells that fit the model as badly as this cell or
    worse, after accounting for library size and batch. obs["scvae_anomaly_p_adjusted"] is the p-value adjusted to
    control the false discovery rate.""",
    example="scvae score data.h5ad --plot scores.png",
)
