"""The options of a training: the data, the model, the fitting and the device.

For most options, None means that training chooses a value and saves the chosen value in the model folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from scvae_cli.errors import ConfigError
from scvae_cli.options import COMPUTE, INPUT, Options, build, option, section
from scvae_cli.shared_options import DEVICES, Rounding, genome_option, modality_option, round_option

MODEL, FITTING = "Model", "Fitting"

Likelihood = Literal["zinb", "nb", "poisson", "normal"]
DecoderKind = Literal["mlp", "linear"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]

# Largest number of latent dimensions. The limit saves memory: each component of the density in latent space has a
# matrix of n_latent × n_latent.
MAX_LATENT = 1000
LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)
# The matrix that is modeled by default.
FIRST_WITH_COUNTS = 'the first of layers["counts"], X and raw that holds raw counts; with a normal likelihood, X'


@dataclass(frozen=True, kw_only=True)
class DataConfig(Options):
    """Options that choose the matrix, the batches, the genes and the cells to model."""

    layer: str | None = option(
        None,
        help="Name of the AnnData layer to model.",
        panel=INPUT,
        shown_default=FIRST_WITH_COUNTS,
    )
    round: Rounding | None = round_option()
    genome: str | None = genome_option()
    modality: str | None = modality_option()
    batch_key: tuple[str, ...] | None = option(
        None,
        help="Column of obs with the batch of each cell. The decoder is conditioned on the batch. The option may be "
        "given several times, for example for donor and lane; the effects of the columns are added.",
        python_help="Column of obs with the batch of each cell, or several columns. The decoder is conditioned on the "
        "batch. The effects of several columns are added.",
        panel=INPUT,
        metavar="COLUMN",
    )
    continuous_key: tuple[str, ...] | None = option(
        None,
        help="Column of obs with numbers, such as age, on which the decoder is conditioned. The option may be "
        "given several times.",
        python_help="Column of obs with numbers, such as age, on which the decoder is conditioned, or several columns.",
        panel=INPUT,
        metavar="COLUMN",
    )
    labels_key: str | None = option(
        None,
        help="Column of obs with the known labels of cells, such as cell types. With enough labeled cells (see "
        "--label-weight), the latent space separates the labels. Cells with a missing value or an empty text have no "
        "label.",
        panel=INPUT,
        metavar="COLUMN",
    )
    unlabeled: str | None = option(
        None,
        help="Value of the --labels-key column that marks cells without a label.",
        panel=INPUT,
        metavar="VALUE",
        label=True,
    )
    n_top_genes: int | None = option(
        None,
        help="Number of highly variable genes to model. Genes are ranked by scanpy's flavor seurat_v3. With a normal "
        "likelihood, genes are ranked by variance.",
        panel=INPUT,
        least=2,
        shown_default="all expressed genes if there are at most 5,000 of them, otherwise 4,000",
    )
    genes: str | None = option(
        None,
        help='Genes to model: "all", or @FILE to read them from a text file with one gene per line.',
        panel=INPUT,
        takes='"all", or "@FILE" with one gene per line',
    )
    gene_symbols: str | None = option(
        None, help="Column of var with the gene names used in --genes @FILE.", panel=INPUT, shown_default="var_names"
    )
    drop_empty: bool = option(
        False,
        help="Leave out cells without any counts. By default, data that contain cells without counts are refused.",
        panel=INPUT,
    )

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """The columns of obs with batches; the tuple is empty if no batch key was given."""
        return self.batch_key or ()

    @property
    def continuous_keys(self) -> tuple[str, ...]:
        """The columns of numbers on which the decoder is conditioned; the tuple is empty if there are none."""
        return self.continuous_key or ()

    def check(self) -> None:
        """Raise a ConfigError if a covariate is named twice, or if options for labels or genes are invalid."""
        check_covariates(self.batch_keys, self.continuous_keys)
        if self.labels_key is not None and self.labels_key in self.batch_keys:
            raise ConfigError(
                f"{self.labels_key!r} was given as both --batch-key and --labels-key",
                "name two different columns: batches are mixed in the latent space, and labels are separated",
            )
        if self.unlabeled is not None and self.labels_key is None:
            raise ConfigError("--unlabeled was given without --labels-key", "name the labels with --labels-key COLUMN")
        if self.genes is None:
            return
        if self.genes != "all" and not (self.genes.startswith("@") and len(self.genes) > 1):
            raise ConfigError(f"--genes is {self.genes!r}", 'it takes "all", or "@FILE" with one gene per line')
        if self.n_top_genes is not None:
            raise ConfigError("--genes and --n-top-genes were both given", "use only one of the two")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Options):
    """The likelihood and the network of the model.

    A linear decoder computes one affine function of the latent position for each gene. The weights of a gene's affine
    function are the loadings of the gene, as in a factor analysis (Svensson et al. 2020,
    doi:10.1093/bioinformatics/btaa169).
    """

    likelihood: Likelihood = option(
        "zinb", help="Likelihood of the data: zinb, nb or poisson for counts, normal for real numbers.", panel=MODEL
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
        help="Kind of decoder. mlp: a network with hidden layers. linear: no hidden layers, so that the weights of a "
        "gene are its loadings on the latent axes.",
        panel=MODEL,
    )
    n_latent: int | None = option(
        None,
        help="Number of latent dimensions.",
        panel=MODEL,
        least=1,
        most=MAX_LATENT,
        shown_default="20; 5 for fewer than 500 training cells",
    )
    n_hidden: int | None = option(
        None,
        help="Number of units in each hidden layer.",
        panel=MODEL,
        least=1,
        most=100_000,
        shown_default="256; 128 for fewer than 500 training cells",
    )
    n_layers: int = option(
        1, help="Number of hidden layers in the encoder and in an mlp decoder.", panel=MODEL, least=1, most=100
    )
    encoder_dropout: float | None = option(
        None,
        help="Dropout rate of the encoder's hidden units in training.",
        least=0,
        below=1,
        takes="a share from 0 to below 1",
        on_command_line=False,
        shown_default="depends on the numbers of cells and genes",
    )
    decoder_dropout: float | None = option(
        None,
        help="Dropout rate of the decoder's hidden units in training.",
        least=0,
        below=1,
        takes="a share from 0 to below 1",
        on_command_line=False,
        shown_default="depends on the numbers of cells and genes",
    )

    def check(self) -> None:
        """Raise a ConfigError if `variance` is given and the likelihood is not normal."""
        if self.variance is not None and self.of_counts:
            raise ConfigError(
                f"--variance was given with --likelihood {self.likelihood}",
                "remove --variance, or use --likelihood normal",
            )

    @property
    def of_counts(self) -> bool:
        """Whether the model describes counts (True) or real-valued data (False)."""
        return self.likelihood != "normal"


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """Options for fitting the model."""

    beta: float = option(
        1.0,
        help="Weight of the KL term (β). With a larger β, the latent space keeps less information about each cell.",
        panel=MODEL,
        least=0,
    )
    flat: float = option(
        0.0,
        help="Weight of the flatness penalty, which makes latent distances follow distances in expression. A weight of "
        "1 works well. Compared with 0, a weight of 1 lowers the ELBO by about 0.35% and makes training two to three "
        "times as long.",
        panel=MODEL,
        least=0,
    )
    mix_batches: float | None = option(
        None,
        help="Weight of the penalty on differences between batches in the latent space. A larger weight mixes the "
        "batches more; with 0, only the decoder accounts for the batches.",
        panel=MODEL,
        least=0,
        shown_default="30 with --batch-key and a likelihood of counts, otherwise 0",
    )
    label_weight: float | None = option(
        None,
        help="Weight of the labels (--labels-key) in the training. A larger weight separates the labels more in the "
        "latent space; with 0, the labels only train the classifiers that scvae annotate uses.",
        panel=MODEL,
        least=0,
        most=10**6,
        shown_default="3 with at least 500 labeled cells, otherwise 0",
    )
    max_epochs: int | None = option(
        None,
        help="Maximum number of passes over the training cells.",
        panel=FITTING,
        least=1,
        most=10**6,
        shown_default="depends on the number of cells",
    )
    batch_size: int | None = option(
        None,
        help="Number of cells in each training step.",
        panel=FITTING,
        least=2,
        most=10**6,
        shown_default="depends on the number of cells",
    )
    learning_rate: float | None = option(
        None,
        help="Highest learning rate of the optimizer AdamW, which is reached after 100 training steps.",
        panel=FITTING,
        above=0,
        shown_default="depends on the batch size",
    )
    weight_decay: float | None = option(
        None,
        help="Weight decay of the optimizer AdamW. Weight decay applies to the weight matrices, but not to biases.",
        least=0,
        on_command_line=False,
        shown_default="depends on the numbers of cells and genes",
    )
    eased_dropout: float | None = option(
        None,
        help="Factor by which the dropout rates are multiplied when the held-out loss stops falling for the first "
        "time. After dropout is lowered, training continues from the best weights, at a lower learning rate, until the "
        "loss stops falling again. If the factor is 1, training ends when the loss stops falling for the first time.",
        least=0,
        most=1,
        takes="a share from 0 to 1",
        on_command_line=False,
        shown_default="depends on the number of cells",
    )
    validation_fraction: float = option(
        0.1,
        help="Share of the cells to hold out of the training. The loss on the held-out cells decides when training "
        "stops and which weights are kept.",
        panel=FITTING,
        above=0,
        most=0.5,
        takes="a share above 0 and at most 0.5",
    )
    patience: int | None = option(
        None,
        help="Number of epochs without a noticeable decrease of the held-out loss before training stops.",
        panel=FITTING,
        least=1,
        most=10**6,
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
    """Options for the computation: the device, precision, reproducibility, threads and compilation."""

    device: str = option("auto", help=f"Device to compute on: {DEVICES}.", panel=COMPUTE)
    precision: Precision = option(
        "auto",
        help="Precision of matrix products. Likelihoods are always computed in float32 or better.",
        panel=COMPUTE,
    )
    deterministic: bool = option(
        False,
        help="On a GPU, use only algorithms that give identical results in every run. On a CPU, results are always "
        "identical.",
        panel=COMPUTE,
    )
    threads: int | None = option(
        None, help="Number of CPU threads.", panel=COMPUTE, least=1, most=1024, shown_default="chosen by torch"
    )
    compile: bool | None = option(
        None,
        help="Let torch compile the training steps.",
        panel=COMPUTE,
        shown_default="yes on a GPU with Triton and at least 100,000 cells, otherwise no",
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig(Options):
    """All options of a training, in four sections."""

    data: DataConfig = section(DataConfig)
    model: ModelConfig = section(ModelConfig)
    train: TrainConfig = section(TrainConfig)
    compute: ComputeConfig = section(ComputeConfig)

    def check(self) -> None:
        """Raise a ConfigError if an option requires another option that is missing, or if two options contradict each
        other.
        """
        if self.train.label_weight is not None and self.data.labels_key is None:
            raise ConfigError(
                "--label-weight was given without --labels-key", "name the labels with --labels-key COLUMN"
            )
        if self.train.mix_batches and not self.data.batch_keys:
            raise ConfigError("--mix-batches was given without --batch-key", "name the batches with --batch-key COLUMN")
        if self.data.round is not None and not self.model.of_counts:
            raise ConfigError(
                "--round was given with --likelihood normal", "remove --round, because real numbers are not rounded"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RunConfig:
        """Make a `RunConfig` from a mapping of option names to values. Each option name occurs in only one section.

        Raises
        ------
        ConfigError
            If a value has the wrong type or is out of range.
        """
        config: RunConfig = build(cls, values)
        return config

    def of_all_genes(self) -> RunConfig:
        """Return a copy of the options with `genes="all"`, to train on counts that contain only the chosen genes."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, genes="all", n_top_genes=None))

    def as_dict(self) -> dict[str, Any]:
        """Return the options as nested dicts of plain values: the content of config.json in a model folder."""
        values = dataclasses.asdict(self)
        # Version 0.2 can read models with at most one batch key and no labels, because their options are written in the
        # format of version 0.2.
        if len(self.data.batch_keys) == 1:
            values["data"]["batch_key"] = self.data.batch_keys[0]
        if not self.data.continuous_keys:
            del values["data"]["continuous_key"]
        if self.data.labels_key is None:
            del values["data"]["labels_key"], values["data"]["unlabeled"], values["train"]["label_weight"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """Make a `RunConfig` from the values that `as_dict` returns.

        Raises
        ------
        ConfigError
            If a value has the wrong type or is out of range.
        """
        return cls(**{f.name: build(f.metadata["section"][0], values[f.name]) for f in dataclasses.fields(cls)})


def check_covariates(batch_keys: tuple[str, ...], continuous_keys: tuple[str, ...]) -> None:
    """Raise a ConfigError if a column is named twice among the covariates."""
    for flag, keys in (("--batch-key", batch_keys), ("--continuous-key", continuous_keys)):
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            raise ConfigError(f"{flag} {twice[0]} was given twice", "name each column once")
    both = [key for key in continuous_keys if key in batch_keys]
    if both:
        raise ConfigError(
            f"{both[0]!r} was given as both --batch-key and --continuous-key",
            "use --batch-key for categories, and --continuous-key for numbers whose effect is proportional to them",
        )
