"""The Python API; made by docs/make_reference.py of the options that every verb declares."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from anndata import AnnData

from scvae_cli.errors import ConfigError as ConfigError
from scvae_cli.errors import DataError as DataError
from scvae_cli.errors import DeviceError as DeviceError
from scvae_cli.errors import ModelError as ModelError
from scvae_cli.errors import ScvaeError as ScvaeError
from scvae_cli.errors import ScvaeWarning as ScvaeWarning
from scvae_cli.model.bundle import Model as Model
from scvae_cli.model.bundle import load as load

__version__: str

def check(
    data: AnnData | Path | str,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
    config: Path | str | None = None,
) -> Any: ...
def train(
    data: AnnData | Path | str,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    n_top_genes: int | None = None,
    genes: str | None = None,
    drop_empty: bool = False,
    likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
    variance: float | None = None,
    decoder: Literal["mlp", "linear"] = "mlp",
    n_latent: int = 20,
    n_hidden: int = 256,
    n_layers: int = 1,
    encoder_dropout: float | None = None,
    decoder_dropout: float | None = None,
    beta: float = 1.0,
    flat: float = 0.0,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    eased_dropout: float | None = None,
    validation_fraction: float = 0.1,
    patience: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto",
    deterministic: bool = False,
    threads: int | None = None,
    compile: bool | None = None,
    on_event: Callable[[Any], None] | None = None,
    config: Path | str | None = None,
) -> Model: ...
def sweep(
    data: AnnData | Path | str,
    *,
    beta: Sequence[float] | None = None,
    n_latent: Sequence[float] | None = None,
    judge: Literal["thinning", "bound"] | None = None,
    layer: str | None = None,
    batch_key: str | None = None,
    n_top_genes: int | None = None,
    genes: str | None = None,
    drop_empty: bool = False,
    likelihood: Literal["zinb", "nb", "poisson", "normal"] = "zinb",
    variance: float | None = None,
    decoder: Literal["mlp", "linear"] = "mlp",
    n_hidden: int = 256,
    n_layers: int = 1,
    encoder_dropout: float | None = None,
    decoder_dropout: float | None = None,
    flat: float = 0.0,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
    eased_dropout: float | None = None,
    validation_fraction: float = 0.1,
    patience: int | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto",
    deterministic: bool = False,
    threads: int | None = None,
    compile: bool | None = None,
    models: Path | str | None = None,
    output: Path | str | None = None,
    key_added: str = "scvae",
    force: bool = False,
    plot: Path | str | None = None,
    config: Path | str | None = None,
    inplace: bool = True,
) -> Any: ...
def embed(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    axes: Literal["canonical", "training"] = "canonical",
    refine: int = 0,
    output: Path | str | None = None,
    key_added: str = "scvae",
    force: bool = False,
    layer: str | None = None,
    gene_symbols: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    device: str = "auto",
    config: Path | str | None = None,
    inplace: bool = True,
) -> Any: ...
def interpolate(
    data: AnnData | Path | str,
    model: Model | Path | str,
    *,
    groupby: str | None = None,
    groups: Sequence[str] = (),
    cells: Sequence[str] = (),
    time_key: str | None = None,
    name: str | None = None,
    n_steps: int = 50,
    path: Literal["geodesic", "graph", "straight"] = "geodesic",
    endpoint: Literal["density", "centroid"] = "density",
    couple: Literal["none", "ot"] = "none",
    n_paths: int = 50,
    seed: int = 0,
    library: str | float = "median",
    batch_as: str = "average",
    path_out: Path | str | None = None,
    output: Path | str | None = None,
    key_added: str = "scvae",
    force: bool = False,
    plot: Path | str | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    allow_missing_genes: bool = False,
    drop_empty: bool = False,
    device: str = "auto",
    config: Path | str | None = None,
    inplace: bool = True,
) -> Any: ...
