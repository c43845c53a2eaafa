"""Checks of the files of a model folder.

A model folder may come from an untrusted source, so every part of the folder is checked. Before a network is made, the
sizes in config.json are compared with the sizes of the files. A check that fails raises a ValueError that describes the
fault.

Letters in array shapes: g genes, k latent dimensions, c components of the density, j components of expression space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from scvae_cli.config import DataConfig, ModelConfig
from scvae_cli.model.design import MOST_VALUE, Continuous, Design
from scvae_cli.model.network import sizes
from scvae_cli.model.vae import VAE

# Smallest number of bytes that a tensor takes in the header of a safetensors file.
_HEADER_BYTES = 50
_MOST_HEADER_BYTES = 1 << 24
# Upper limits of the number of components of a density, and of the number of held-out densities.
_MOST_COMPONENTS, _MOST_DENSITIES = 1024, 1 << 24
# Tolerance for the logarithm of the sum of the weights of a density, which should be 0.
_WEIGHTS = 1e-2
# Tolerance for the orthonormality of the rows of a rotation.
_ORTHONORMAL = 1e-2

_COUNTED = ("epochs", "best_epoch", "n_heldout", "active_units", "n_cells", "n_training", "n_genes", "rollbacks")
# Number of labeled cells, a result of trainings with labels.
N_LABELED = "n_labeled"
_MEASURED = ("heldout_elbo", "heldout_nll", "heldout_kl", "seconds")
_TEXTS = ("counts_source", "genes_chosen", "compute")


def check_facts(facts: Any) -> None:
    """Check that the stored results of a training exist and have the right types: whole numbers, numbers and texts."""
    if not isinstance(facts, dict):
        raise ValueError("the results of the training (facts) in config.json are not a JSON object")
    counted = (*_COUNTED, N_LABELED) if N_LABELED in facts else _COUNTED
    for keys, kinds in ((counted, int), (_MEASURED, (int, float)), (_TEXTS, str)):
        for key in keys:
            value = facts.get(key)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ValueError(f"the training result {key!r} in config.json is missing or has the wrong type")


def check_names(what: str, names: Any) -> Sequence[str]:
    """Return names after checking that all names are texts and differ from each other."""
    if not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"the names of the {what} are not all texts")
    if len(set(names)) < len(names):
        raise ValueError(f"the names of the {what} are not all different")
    return names


def check_mapped(n_mapped: Any, batches: Sequence[str]) -> int:
    """Return the number of batches that were mapped onto the model, after checking that the number is possible."""
    if isinstance(n_mapped, bool) or not isinstance(n_mapped, int) or not 0 <= n_mapped <= len(batches):
        raise ValueError("the number of mapped batches in config.json is out of range")
    return n_mapped


def check_design(batches: Any, continuous: Any, data: DataConfig) -> Design:
    """Return the design of a model with several covariates, after checking combinations and continuous keys."""
    keys = data.batch_keys
    if not isinstance(batches, list) or not all(isinstance(one, list) and len(one) == len(keys) for one in batches):
        raise ValueError("a combination of categories in config.json does not have one category for each batch key")
    if bool(batches) != bool(keys):
        raise ValueError("config.json must have combinations of categories if, and only if, the model has batch keys")
    for one in batches:
        if not all(isinstance(category, str) for category in one):
            raise ValueError("the categories of the batch keys are not all texts")
    combinations = tuple(map(tuple, batches))
    check_names("combinations of categories", [repr(one) for one in combinations])
    if not isinstance(continuous, list) or len(continuous) != len(data.continuous_keys):
        raise ValueError("config.json does not describe all continuous keys of the model")
    found = []
    for key, values in zip(data.continuous_keys, continuous, strict=True):
        if not isinstance(values, dict) or values.keys() != {"mean", "sd", "least", "most"}:
            raise ValueError(f"config.json lacks the mean, standard deviation or range of continuous key {key!r}")
        for name, value in values.items():
            check_number(f"{name} of {key!r}", value)
            if not abs(value) < MOST_VALUE:
                raise ValueError(f"{name} of {key!r} is out of range")
        # The standard deviation of n values is at least their range divided by √(2n), so a smaller value is an error.
        extent = values["most"] - values["least"]
        if not (extent / 1e6 < values["sd"] <= extent and values["least"] <= values["mean"] <= values["most"]):
            raise ValueError(f"mean, standard deviation and range of the continuous key {key!r} contradict each other")
        found.append(Continuous(key=key, **{name: float(value) for name, value in values.items()}))
    return Design(batch_keys=keys, combinations=combinations, continuous=tuple(found))


def empty_network(
    config: ModelConfig,
    n_genes: int,
    batches: Sequence[str],
    *,
    n_mapped: int = 0,
    design: Design | None = None,
    n_bytes: int,
) -> VAE:
    """Return a network whose weights take no memory (torch's meta device).

    A ValueError is raised if a file of `n_bytes` bytes is too small for the weights of the network.
    """
    if config.n_latent is None or config.n_hidden is None:
        raise ValueError("config.json lacks the number of latent dimensions or of hidden units")
    k, h = sizes(config)
    # Lower bounds on the size of a file with the weights of the encoder's first and other layers and of the last layer.
    parts = {"n_hidden": h * n_genes, "n_latent": 2 * k * h, "genes": n_genes * k}
    if design is not None:
        # The numbers of values in the design matrix and in the effects on genes are known before the matrix is made.
        parts["batches"] = design.n_effects * (len(design.combinations) + n_genes)
    parts["n_layers"] = config.n_layers * _HEADER_BYTES + 4 * (config.n_layers - 1) * h * h
    for part, least in parts.items():
        if least > n_bytes:
            raise ValueError(f"the file of weights has {n_bytes:,} bytes, too few for the {part} in config.json")
    with torch.device("meta"):
        return VAE(config, n_genes, batches, n_mapped=n_mapped, design=design)


def check_combinations(vae: VAE) -> None:
    """Check that the design matrix in the file of weights agrees with the categories in config.json."""
    effect = vae.decoder.batch
    if vae.design is None or effect is None or effect.combination_br is None:
        return
    if not torch.equal(effect.combination_br, torch.as_tensor(vae.design.combination_br)):
        raise ValueError("the design matrix in the weights does not agree with the categories in config.json")


def most_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the largest possible size of a safetensors file with tensors of the given shapes, in bytes."""
    return _MOST_HEADER_BYTES + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def most_latent_bytes(n_latent: int, n_genes: int) -> int:
    """Return the largest possible size in bytes of the file latent.safetensors of a model folder."""
    values = _MOST_COMPONENTS * (1 + n_latent + n_latent**2) + _MOST_DENSITIES + 2 * n_latent**2 + 64 * n_genes
    return _MOST_HEADER_BYTES + 4 * values


def read_tensors(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, after checking that each is in float32 and has finite values."""
    try:
        tensors: dict[str, Tensor] = load_tensors(content)
    except (SafetensorError, KeyError, OverflowError, RuntimeError, TypeError) as error:
        raise ValueError(f"the tensors in a file cannot be read: {str(error).splitlines()[0]}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"the tensor {name} has type {tensor.dtype}, not torch.float32")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the tensor {name} holds values that are not finite numbers")
    return tensors


def check_shapes(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that exactly the expected tensors exist, and that each has the expected shape."""
    if found.keys() != expected.keys():
        other = sorted(found.keys() ^ expected.keys())[0]
        raise ValueError(f"the tensor {other} is {'missing' if other in expected else 'not a part of this model'}")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise ValueError(f"the tensor {name} has shape {tuple(found[name].shape)} instead of {tuple(tensor.shape)}")


def check_latent(latent: Mapping[str, Tensor], *, n_latent: int, n_genes: int) -> None:
    """Check the shapes of the density, the axes and the map to expression space, and that the axes are a rotation.

    The suffix of a tensor's name gives the expected shape. Two tensors have no suffix for their shape: `heldout_nll`
    has one dimension, and `residual_weight` is a scalar.
    """
    lengths = {"k": n_latent, "g": n_genes}
    for name, tensor in latent.items():
        letters = {"heldout_nll": "n", "residual_weight": ""}.get(name, name.rpartition("_")[2])
        shape = tuple(tensor.shape)
        if len(shape) != len(letters) or any(
            lengths.setdefault(letter, length) != length for letter, length in zip(letters, shape, strict=True)
        ):
            raise ValueError(f"the tensor {name} has shape {shape}, which does not fit the other parts of the model")
        if 0 in shape:
            raise ValueError(f"the tensor {name} has no values")
    if abs(float(latent["log_weight_c"].double().logsumexp(0))) > _WEIGHTS:
        raise ValueError("the weights of the mixture components of the latent density do not add up to 1")
    rotation_kk = latent["rotation_kk"].double()
    if (rotation_kk @ rotation_kk.T - torch.eye(n_latent)).abs().max() > _ORTHONORMAL:
        raise ValueError("the stored canonical axes are not a rotation of latent space")


def check_number(name: str, value: Any, *, whole: bool = False, least: float = -math.inf) -> None:
    """Check that a value is a number that is not smaller than `least`. Infinity is accepted, and NaN is refused."""
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value >= least:
        raise ValueError(f"{name} is missing or out of range")
