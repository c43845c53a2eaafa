"""The options of `scvae sweep` and `scvae_cli.sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scvae_cli.config import MAX_LATENT, ModelConfig, RunConfig
from scvae_cli.errors import ConfigError
from scvae_cli.options import OUTPUT, option, section
from scvae_cli.shared_options import Drawing, Writing
from scvae_cli.verb import Verb

VARIED = "Option to vary (choose one)"
BETAS, DIMENSIONS = "0.1,0.3,1,3,10", "2,5,10,20,40"


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    """Read a list of numbers that are separated by commas.

    >>> _numbers("--beta", "0.1, 1,10")
    (0.1, 1.0, 10.0)
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        example = BETAS if flag == "--beta" else DIMENSIONS
        raise ConfigError(f"{flag} is {text!r}", f"it takes numbers separated by commas, such as {example}") from None


@dataclass(frozen=True, kw_only=True)
class SweepOptions(Drawing, Writing):
    """Options that say which training option is varied, how models are compared, and how each model is trained."""

    beta: tuple[float, ...] | None = option(
        None,
        help=f"Weights of the KL term (β), one for each model to train, for example {BETAS}.",
        metavar="LIST",
        parse=_numbers,
        panel=VARIED,
        above=0,
        takes=f"numbers above 0, such as {BETAS}",
    )
    n_latent: tuple[float, ...] | None = option(
        None,
        help=f"Numbers of latent dimensions, one for each model to train, for example {DIMENSIONS}.",
        metavar="LIST",
        parse=_numbers,
        panel=VARIED,
        above=0,
        takes=f"whole numbers above 0, such as {DIMENSIONS}",
    )
    judge: Literal["thinning", "bound"] | None = option(
        None,
        help="Criterion by which the models are compared. thinning: how well a model predicts molecules that were "
        "withheld from the training. bound: the importance-weighted bound of held-out cells.",
        on_command_line=False,
        shown_default="thinning for counts, bound for real numbers",
    )
    training: RunConfig = section(RunConfig, without=frozenset({"beta", "n_latent"}))
    models: Path | None = option(
        None,
        help="Folder to which the models are written, with names such as beta_0.3.scvae. Models of counts are trained "
        "on only nine tenths of the molecules.",
        metavar="FOLDER",
        panel=OUTPUT,
    )

    def check(self) -> None:
        """Require two or more different values of either β or the number of latent dimensions."""
        if self.beta is not None and self.n_latent is not None:
            raise ConfigError(
                "--beta and --n-latent were both given", "sweep one of them, and set the other in a --config file"
            )
        if self.beta is None and self.n_latent is None:
            raise ConfigError("no values to sweep were given", f"give --beta {BETAS} or --n-latent {DIMENSIONS}")
        flag, example = ("--beta", BETAS) if self.beta is not None else ("--n-latent", DIMENSIONS)
        values = self.values
        text = ",".join(f"{value:g}" for value in values)
        if len(values) < 2:
            raise ConfigError(f"{flag} is {text or 'empty'!r}", f"a sweep takes two values or more: {example}")
        for value in values:
            if self.n_latent is not None and (value % 1 or value > MAX_LATENT):
                raise ConfigError(
                    f"{flag} is {value:g} in {text!r}",
                    f"it takes whole numbers up to {MAX_LATENT:,}, such as {DIMENSIONS}",
                )
        if len(set(values)) < len(values):
            raise ConfigError(f"{flag} is {text!r}", "name each value only once")
        # The values may be given in any order. A field of a frozen dataclass can only be set with object.__setattr__.
        kind = float if self.varied == "beta" else int
        object.__setattr__(self, self.varied, tuple(sorted(map(kind, values))))

    @property
    def varied(self) -> str:
        """Name of the training option that is varied."""
        return "beta" if self.beta is not None else "n_latent"

    @property
    def values(self) -> tuple[float, ...]:
        """Values of the varied option, ascending."""
        return tuple(self.beta or self.n_latent or ())

    def judge_of(self, model: ModelConfig) -> str:
        """Return the criterion by which models are compared."""
        return self.judge or ("thinning" if model.of_counts else "bound")


SWEEP = Verb(
    name="sweep",
    panel="Model",
    options=SweepOptions,
    home="scvae_cli.tools.sweep.sweeping:sweep_and_write",
    about="""Train models with several values of β or of the latent dimension, and suggest which value to use.

    A tenth of every cell's molecules is withheld. Each model is trained on the other molecules and predicts the
    withheld molecules. The default value is suggested if its model predicts as well as the best model, within noise.
    Otherwise, the suggestion is the largest β, or with --n-latent the smallest number of dimensions, whose model
    predicts as well as the best model. With --likelihood normal, no values are withheld, and the models are compared by
    the importance-weighted bound of held-out cells.

    The rate–distortion curve shows the KL term (rate) and the reconstruction loss (distortion) of held-out cells for
    every model. All results are written to uns["scvae"]["sweep"].""",
    example="scvae sweep data.h5ad --beta 0.1,0.3,1,3,10 --plot sweep.png",
    takes_model=False,
)
