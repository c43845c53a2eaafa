"""What a run is told: four frozen dataclasses, checked when they are made.

Precedence: default < `--config run.toml` < command-line flag. `None` means "chosen from the data", and what was
chosen is recorded in the model folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from scvae_cli.errors import ConfigError

Likelihood = Literal["zinb", "nb", "poisson", "normal"]
DecoderKind = Literal["mlp", "linear"]
Precision = Literal["auto", "fp32", "tf32", "bf16"]

LIKELIHOODS: tuple[str, ...] = get_args(Likelihood)
DECODERS: tuple[str, ...] = get_args(DecoderKind)
PRECISIONS: tuple[str, ...] = get_args(Precision)


# Fields that a --config file sets and no option does.
WITHOUT_OPTION = frozenset({"encoder_dropout", "decoder_dropout", "weight_decay", "eased_dropout"})


def _as_written(name: str) -> str:
    return name if name in WITHOUT_OPTION else "--" + name.replace("_", "-")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{_as_written(name)} is {value!r}", f"it takes {expected}")


def _require_finite(name: str, value: float, expected: str, *, above_zero: bool) -> None:
    good = math.isfinite(value) and (value > 0 if above_zero else value >= 0)
    _require(good, name, value, expected)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which numbers of the file are modelled.

    Parameters
    ----------
    layer
        Layer to model; None takes the first of `layers["counts"]`, X and raw that holds raw counts, and for a normal
        likelihood X.
    batch_key
        Column of obs whose categories the decoder is conditioned on.
    n_top_genes
        Number of most variable genes to model (seurat_v3; of real numbers, by their variance); None decides by the
        number of genes there are.
    genes
        "all", or "@FILE" with one gene name a line; None decides by `n_top_genes`.
    drop_empty
        Leave cells without a count out of the training instead of refusing them.
    """

    layer: str | None = None
    batch_key: str | None = None
    n_top_genes: int | None = None
    genes: str | None = None
    drop_empty: bool = False

    def __post_init__(self) -> None:
        if self.n_top_genes is not None:
            _require(self.n_top_genes >= 2, "n_top_genes", self.n_top_genes, "a whole number, 2 or more")
        if self.genes is not None:
            good = self.genes == "all" or (self.genes.startswith("@") and len(self.genes) > 1)
            _require(good, "genes", self.genes, '"all", or "@FILE" with one gene name a line')
            if self.n_top_genes is not None:
                raise ConfigError(
                    "--genes and --n-top-genes were both given", "choose the genes in one of the two ways"
                )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The shape of the model.

    Parameters
    ----------
    likelihood
        Distribution of a count: "zinb", "nb" or "poisson"; or, of any real number, "normal".
    variance
        Of the normal likelihood, the same for all features; None learns one for each.
    decoder
        "mlp", a network with hidden layers, or "linear", without: every gene's output is then an affine function of
        the latent position, and its weights are loadings, as in a factor analysis (Svensson et al. 2020,
        doi:10.1093/bioinformatics/btaa169).
    n_latent, n_hidden, n_layers
        Latent dimensions; units in a hidden layer; hidden layers in the encoder and, unless it is linear, in the
        decoder.
    encoder_dropout, decoder_dropout
        Share of hidden units dropped while training; None chooses by the number of cells and of genes.
    """

    likelihood: Likelihood = "zinb"
    variance: float | None = None
    decoder: DecoderKind = "mlp"
    n_latent: int = 20
    n_hidden: int = 256
    n_layers: int = 1
    encoder_dropout: float | None = None
    decoder_dropout: float | None = None

    def __post_init__(self) -> None:
        for name, known in (("likelihood", LIKELIHOODS), ("decoder", DECODERS)):
            _require(getattr(self, name) in known, name, getattr(self, name), "one of " + ", ".join(known))
        if self.variance is not None:
            _require_finite("variance", self.variance, "a number above 0", above_zero=True)
            if self.of_counts:
                raise ConfigError(
                    f"--variance was given with --likelihood {self.likelihood}",
                    "a count's variance follows from its mean; it is an option of --likelihood normal",
                )
        for name in ("n_latent", "n_hidden", "n_layers"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number, 1 or more")
        for name in ("encoder_dropout", "decoder_dropout"):
            share = getattr(self, name)
            _require(share is None or 0 <= share < 1, name, share, "a share from 0 to below 1")

    @property
    def of_counts(self) -> bool:
        """Whether it models counts, which have a depth, and not real numbers."""
        return self.likelihood != "normal"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the model is fitted.

    Parameters
    ----------
    beta
        Weight of the KL term; always reached.
    flat
        How much a decoder that distorts distances is penalised: 0 not at all, 1 so that latent distances rank as
        geodesic ones do at a small price in the bound (`scvae_cli.training.flatness`).
    max_epochs
        Upper bound on passes over the training cells; None chooses one by the number of cells.
    batch_size
        Cells in a step; None chooses by the number of cells.
    learning_rate
        Peak rate of AdamW, reached at the end of its warm-up; None chooses by the batch size.
    weight_decay
        Decoupled weight decay of the weight matrices; None chooses by the number of cells and of genes.
    eased_dropout
        Share of the dropout that is left once the held-out loss has stopped falling: the training then goes on from
        the best weights, at a lower rate, until it stops falling again. 1 ends it the first time; None chooses by the
        number of cells.
    validation_fraction
        Share of the cells held out to decide when to stop and which weights to keep.
    patience
        Epochs without a noticeably lower held-out loss before training ends; None chooses by the number of cells, and
        more of them where `flat` is not 0.
    seed
        Of the split, the weights, the order of cells and the noise.
    """

    beta: float = 1.0
    flat: float = 0.0
    max_epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    eased_dropout: float | None = None
    validation_fraction: float = 0.1
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("beta", "flat"):
            _require_finite(name, getattr(self, name), "a number, 0 or more", above_zero=False)
        if self.learning_rate is not None:
            _require_finite("learning_rate", self.learning_rate, "a number above 0", above_zero=True)
        if self.weight_decay is not None:
            _require_finite("weight_decay", self.weight_decay, "a number, 0 or more", above_zero=False)
        eased = self.eased_dropout
        _require(eased is None or 0 <= eased <= 1, "eased_dropout", eased, "a share from 0 to 1")
        for name in ("max_epochs", "patience"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "a whole number, 1 or more")
        if self.batch_size is not None:
            _require(self.batch_size >= 2, "batch_size", self.batch_size, "a whole number, 2 or more")
        share = self.validation_fraction
        _require(0 < share <= 0.5, "validation_fraction", share, "a share above 0 and at most 0.5")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 4294967295")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where and in which precision it runs.

    Parameters
    ----------
    device
        "auto" (cuda where there is one, else cpu), or a torch device: "cpu", "cuda", "cuda:1".
    precision
        Of the matrix products; the likelihood is always at least float32.
    deterministic
        Only algorithms that repeat to the bit (on CPU this is always so).
    threads
        CPU threads; None leaves torch's choice.
    compile
        Whether torch compiles the training steps; None: on a CUDA device that has Triton, where there are enough cells
        to make up for the time that it takes.
    """

    device: str = "auto"
    precision: Precision = "auto"
    deterministic: bool = False
    threads: int | None = None
    compile: bool | None = None

    def __post_init__(self) -> None:
        expected = "one of " + ", ".join(PRECISIONS)
        _require(self.precision in PRECISIONS, "precision", self.precision, expected)
        _require(self.threads is None or self.threads >= 1, "threads", self.threads, "a whole number, 1 or more")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything `scvae train` is told."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    @classmethod
    def resolve(cls, config_file: Path | None = None, flags: dict[str, Any] | None = None) -> RunConfig:
        """Put defaults, a TOML file and flags together, later ones winning.

        Parameters
        ----------
        config_file
            TOML with the sections [data], [model], [train] and [compute], keys as the dataclasses name them.
        flags
            Field name → value; None means "not given".

        Raises
        ------
        ConfigError
            For an unreadable file, an unknown section or key, or a value out of range.
        """
        sections = _read_toml(config_file) if config_file is not None else {}
        parts: dict[str, Any] = {}
        for section in fields(cls):
            config_class = _SECTIONS[section.name]
            known = {f.name for f in fields(config_class)}
            values = sections.pop(section.name, {})
            for key in values:
                if key not in known:
                    raise ConfigError(f"{config_file}: unknown key {key!r} in [{section.name}]", _closest(key, known))
            values |= {k: v for k, v in (flags or {}).items() if k in known and v is not None}
            parts[section.name] = build(config_class, values)
        if sections:
            name = next(iter(sections))
            raise ConfigError(f"{config_file}: unknown section [{name}]", _closest(name, set(_SECTIONS)))
        return cls(**parts)

    @staticmethod
    def option_names() -> set[str]:
        """Names of all fields of the four parts; no two parts share one."""
        return {f.name for config_class in _SECTIONS.values() for f in fields(config_class)}

    def of_all_genes(self) -> RunConfig:
        """The same for counts whose genes have been chosen already."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, genes="all", n_top_genes=None))

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as they stand in a model folder's config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The inverse of `as_dict`."""
        return cls(**{name: build(config_class, values[name]) for name, config_class in _SECTIONS.items()})


_SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "train": TrainConfig,
    "compute": ComputeConfig,
}

_TYPES: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}


def build(config_class: type, values: dict[str, Any]) -> Any:
    """Make one config dataclass from plain values, checking their types.

    Raises
    ------
    ConfigError
        For a value whose type is not the field's.
    """
    for f in fields(config_class):
        if f.name not in values:
            continue
        value = values[f.name]
        kind = str(f.type).split(" |")[0]
        expected = _TYPES.get(kind, (str,))
        is_null = value is None and "None" in str(f.type)
        # bool is an int to Python, but `n_latent = true` is a mistake.
        if not is_null and (not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool")):
            raise ConfigError(f"{f.name} is {value!r}", f"it takes a value of type {kind}")
    return config_class(**values)


def _closest(word: str, known: set[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {match[0]!r}?" if match else "known: " + ", ".join(sorted(known))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "--config takes a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not TOML: {error}", 'for example:  [model]  newline  likelihood = "nb"'
        ) from error
    for name, section in content.items():
        if not isinstance(section, dict):
            raise ConfigError(
                f"{path}: {name!r} stands outside a section", "put it under [data], [model], [train] or [compute]"
            )
    return content
