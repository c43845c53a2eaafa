"""scvae: variational autoencoders for raw single-cell counts.

    import scvae_cli as scvae

    model = scvae.train(adata)
    scvae.embed(adata, model)

Everything is imported when it is first asked for, so that `scvae --help` is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvae_cli._version import __version__ as __version__

if TYPE_CHECKING:
    from scvae_cli.api import check, denoise, embed, interpolate, load, pseudotime, score, train
    from scvae_cli.api_de import de
    from scvae_cli.api_diagnose import diagnose
    from scvae_cli.api_optimize import optimize
    from scvae_cli.api_perturb import perturb
    from scvae_cli.api_sample import sample
    from scvae_cli.api_sweep import sweep
    from scvae_cli.errors import ConfigError, DataError, DeviceError, ModelError, ScvaeError, ScvaeWarning
    from scvae_cli.model.bundle import Model

_HOMES = {
    **dict.fromkeys(
        ("check", "denoise", "embed", "interpolate", "load", "pseudotime", "score", "train"), "scvae_cli.api"
    ),
    **dict.fromkeys(
        ("ConfigError", "DataError", "DeviceError", "ModelError", "ScvaeError", "ScvaeWarning"), "scvae_cli.errors"
    ),
    "diagnose": "scvae_cli.api_diagnose",
    "de": "scvae_cli.api_de",
    "optimize": "scvae_cli.api_optimize",
    "perturb": "scvae_cli.api_perturb",
    "sample": "scvae_cli.api_sample",
    "sweep": "scvae_cli.api_sweep",
    "Model": "scvae_cli.model.bundle",
}

__all__ = [  # noqa: RUF022  # verbs in the order they are used, then types
    "check",
    "train",
    "load",
    "embed",
    "denoise",
    "interpolate",
    "optimize",
    "pseudotime",
    "score",
    "de",
    "sample",
    "perturb",
    "sweep",
    "diagnose",
    "Model",
    "ScvaeError",
    "ConfigError",
    "DataError",
    "ModelError",
    "DeviceError",
    "ScvaeWarning",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scvae_cli' has no attribute {name!r}")
    import importlib

    from scvae_cli.importing import importing

    with importing():
        home = importlib.import_module(_HOMES[name])
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
