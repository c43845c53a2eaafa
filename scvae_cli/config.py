"""The options of a training: the data, the model, the fitting and the device.

If an option is None, its value is chosen from the data, and the chosen value is recorded in the model folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from scvae_cli.errors import ConfigError
from scvae_cli.options import COMPUTE, INPUT, Options, build, option, section
from scvae_cli.shared_options import DEVICES

MODEL, FITTING = "Model", "Fitting"

Likelihood = Literal["zinb", "nb", "poisson", "normal"]
DecoderKind = Literal["mlp", "linear"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]

LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)
# The matrix that is modeled by default.
FIRST_WITH_COUNTS = "the first of layer counts, X and raw that holds raw counts; X for a normal likelihood"


@dataclass(frozen=True, kw_only=True)
class DataConfig(Options):
    """Which matrix, batches, genes and cells of the data are modeled."""

    layer: str | None = option(
        None,
        help="Layer to model.",
        panel=INPUT,
        shown_default=FIRST_WITH_COUNTS,
    )
    batch_key: str | None = option(
        None, help="Column of obs with batches. The decoder is conditioned on the batch.", panel=INPUT
    )
    n_top_genes: int | None = option(
        None,
        help="Number of highly variable genes to model. Genes are ranked by flavor seurat_v3, and features of real "
        "numbers by variance.",
        panel=INPUT,
        least=2,
        shown_default="all expressed genes if at most 5,000, else 4,000",
    )
    genes: str | None = option(
        None,
        help='Genes to model: "all", or @FILE with one gene per line.',
        panel=INPUT,
        takes='"all", or "@FILE" with one gene per line',
    )
    gene_symbols: str | None = option(
        None, help="Column of var with the gene names used in --genes @FILE.", panel=INPUT, shown_default="var_names"
    )
    drop_empty: bool = option(False, help="Leave out cells without counts instead of refusing the data.", panel=INPUT)

    def check(self) -> None:
        """Refuse an invalid `genes`, and `genes` together with `n_top_genes`."""
        if self.genes is None:
            return
        if self.genes != "all" and not (self.genes.startswith("@") and len(self.genes) > 1):
            raise ConfigError(f"--genes is {self.genes!r}", 'it takes "all", or "@FILE" with one gene per line')
        if self.n_top_genes is not None:
            raise ConfigError("--genes and --n-top-genes were both given", "use only one of the two")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Options):
    """The likelihood and the network of the model.

    With a linear decoder, the output for every gene is an affine function of the latent position. The weights of this
    function are loadings, as in a factor analysis (Svensson et al. 2020, doi:10.1093/bioinformatics/btaa169).
    """

    likelihood: Likelihood = option(
        "zinb", help="Likelihood: zinb, nb or poisson for counts, normal for real numbers.", panel=MODEL
    )
    variance: float | None = option(
        None,
        help="Variance of the normal likelihood, the same for all features.",
        panel=MODEL,
        above=0,
        shown_default="learned for each feature",
    )
    decoder: DecoderKind = option(
        "mlp",
        help="Decoder. mlp: with hidden layers. linear: without hidden layers; a gene's weights are its loadings on "
        "the latent axes.",
        panel=MODEL,
    )
    n_latent: int = option(20, help="Number of latent dimensions.", panel=MODEL, least=1)
    n_hidden: int = option(256, help="Number of units in each hidden layer.", panel=MODEL, least=1)
    n_layers: int = option(
        1, help="Number of hidden layers in the encoder and in an mlp decoder.", panel=MODEL, least=1
    )
    encoder_dropout: float | None = option(
        None,
        help="Share of the encoder's hidden units dropped in training.",
        least=0,
        below=1,
        takes="a share from 0 to below 1",
        on_command_line=False,
        shown_default="depends on the numbers of cells and genes",
    )
    decoder_dropout: float | None = option(
        None,
        help="Share of the decoder's hidden units dropped in training.",
        least=0,
        below=1,
        takes="a share from 0 to below 1",
        on_command_line=False,
        shown_default="depends on the numbers of cells and genes",
    )

    def check(self) -> None:
        """Refuse a variance for any likelihood except the normal one."""
        if self.variance is not None and self.of_counts:
            raise ConfigError(
                f"--variance was given with --likelihood {self.likelihood}",
                "remove --variance, or use --likelihood normal",
            )

    @property
    def of_counts(self) -> bool:
        """Whether the model describes counts, which have a library size, and not real numbers."""
        return self.likelihood != "normal"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """How the model is fitted."""

    beta: float = option(
        1.0,
        help="Weight of the KL term (β). With a larger β, the latent space keeps less information about each cell.",
        panel=MODEL,
        least=0,
    )
    flat: float = option(
        0.0,
        help="Weight of the flatness penalty, which makes latent distances follow distances in expression. 1 is a good "
        "weight: it lowers the ELBO by about 0.35%, and training takes two to three times as long.",
        panel=MODEL,
        least=0,
    )
    max_epochs: int | None = option(
        None,
        help="Maximum number of passes over the training cells.",
        panel=FITTING,
        least=1,
        shown_default="depends on the number of cells",
    )
    batch_size: int | None = option(
        None,
        help="Number of cells in each training step.",
        panel=FITTING,
        least=2,
        shown_default="depends on the number of cells",
    )
    learning_rate: float | None = option(
        None,
        help="Peak learning rate of AdamW, reached after the warm-up.",
        panel=FITTING,
        above=0,
        shown_default="depends on the batch size",
    )
    weight_decay: float | None = option(
        None,
        help="Decoupled weight decay of the weight matrices.",
        least=0,
        on_command_line=False,
        shown_default="depends on the numbers of cells and genes",
    )
    eased_dropout: float | None = option(
        None,
        help="Share of the dropout to keep after the held-out loss has stopped falling. Training then continues from "
        "the best weights, at a lower learning rate, until the loss stops falling again. With 1, training ends when "
        "the loss stops falling for the first time.",
        least=0,
        most=1,
        takes="a share from 0 to 1",
        on_command_line=False,
        shown_default="depends on the number of cells",
    )
    validation_fraction: float = option(
        0.1,
        help="Share of the cells to hold out. The held-out cells decide when training stops and which weights are "
        "kept.",
        panel=FITTING,
        above=0,
        most=0.5,
        takes="a share above 0 and at most 0.5",
    )
    patience: int | None = option(
        None,
        help="End training after this number of epochs without a noticeable improvement of the held-out loss.",
        panel=FITTING,
        least=1,
        shown_default="depends on the number of cells",
    )
    seed: int = option(
        0,
        help="Random seed.",
        panel=FITTING,
        least=0,
        most=2**32 - 1,
        takes="a whole number from 0 to 4294967295",
    )


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Options):
    """Where training runs and in which precision."""

    device: str = option("auto", help=f"Device to compute on: {DEVICES}.", panel=COMPUTE)
    precision: Precision = option(
        "auto", help="Precision of matrix products; likelihoods are computed in float32 or better.", panel=COMPUTE
    )
    deterministic: bool = option(
        False,
        help="Use only GPU algorithms that give identical results in every run; results on a CPU are always identical.",
        panel=COMPUTE,
    )
    threads: int | None = option(
        None, help="Number of CPU threads.", panel=COMPUTE, least=1, shown_default="chosen by torch"
    )
    compile: bool | None = option(
        None,
        help="Let torch compile the training steps.",
        panel=COMPUTE,
        shown_default="on a GPU with Triton, for many cells",
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig(Options):
    """All options of a training, by section."""

    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    train: TrainConfig = section(TrainConfig)
    compute: ComputeConfig = section(ComputeConfig)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunConfig:
        """Make a `RunConfig` from values by option name. An option name occurs in only one section.

        Raises
        ------
        ConfigError
            For a value of another type or out of range.
        """
        config: RunConfig = build(cls, values)
        return config

    def of_all_genes(self) -> RunConfig:
        """Return the same options for counts that are already restricted to the chosen genes: all genes are modeled."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, genes="all", n_top_genes=None))

    def as_dict(self) -> dict[str, Any]:
        """Return the options as nested plain values, as they are stored in the config.json of a model folder."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Make a `RunConfig` from the values that `as_dict` returns.

        Raises
        ------
        ConfigError
            For a value of another type or out of range.
        """
        return cls(**{f.name: build(f.metadata["section"][0], values[f.name]) for f in dataclasses.fields(cls)})
