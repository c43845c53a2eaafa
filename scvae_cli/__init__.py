"""scvae: variational autoencoders for raw single-cell counts.

    import scvae_cli as scvae

    model = scvae.train(adata)
    scvae.embed(adata, model)

A function or class is imported only when it is first used, so that `scvae --help` starts quickly.
"""

from __future__ import annotations

from scvae_cli._version import __version__ as __version__

_HOMES = {
    **dict.fromkeys(
        ("ConfigError", "DataError", "DeviceError", "ModelError", "ScvaeError", "ScvaeWarning"), "scvae_cli.errors"
    ),
    **dict.fromkeys(("Model", "load"), "scvae_cli.model.bundle"),
}

__all__ = [  # noqa: RUF022  # functions in the order of an analysis, then classes
    "check",
    "train",
    "load",
    "embed",
    "annotate",
    "denoise",
    "interpolate",
    "optimize",
    "pseudotime",
    "score",
    "de",
    "sample",
    "perturb",
    "sweep",
    "map",
    "diagnose",
    "Model",
    "ScvaeError",
    "ConfigError",
    "DataError",
    "ModelError",
    "DeviceError",
    "ScvaeWarning",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'scvae_cli' has no attribute {name!r}")
    import importlib

    from scvae_cli.importing import importing

    with importing():
        return getattr(importlib.import_module(_HOMES.get(name, "scvae_cli.api")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
