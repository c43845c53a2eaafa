"""Conversion of label classifiers to the tensors that a model folder stores, and back.

A model folder may come from a stranger, so all shapes and ranges are checked.

Letters in array shapes: h held-out labeled cells, c labels, v views of a cell, k parts of the labeled cells, j
coordinates of the decoded states, e coordinates of the embedding, g genes, p principal components of genes, d
coordinates by which cells are compared (d = e + p).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from scvae_cli.errors import ConfigError, ModelError
from scvae_cli.model.bundle import Model
from scvae_cli.model.stored_labels import StoredLabels
from scvae_cli.tools.annotate.classifier import Regression
from scvae_cli.tools.annotate.learned_checks import check_values
from scvae_cli.tools.annotate.learning import Learned
from scvae_cli.tools.annotate.novelty import Metric
from scvae_cli.tools.annotate.views import COMPARED_COMPONENTS, VIEWS, Scaling

# The letters after the last "_" in the name of a tensor give its shape. Tensors in _SCALES hold one number each.
_SCALES = ("scale", "state_scale", "n_trained")
# Upper limit of the number of labeled cells from which a classifier learns.
_MOST_TRAINED = 1 << 20
# Tolerance for the sum of the probabilities of a cell.
_PROBABILITY = 1e-3
_KINDS = {"b": "boolean", "i": "integer", "u": "integer", "f": "number"}
_NAMES = {
    *("rank_c", "size_c", "center_e", "state_center_j", "deviation_g", "gene_center_g", "center_kcj", "factor_kjj"),
    *("log_p_vhc", "nearest_h", "state_hj", "compared_hd", "component_gp", "code_h", "part_h", "weight_h"),
    *(f"{view}_coefficient_k{letter}c" for view, letter in zip(VIEWS, "jeg", strict=True)),
    *(f"{view}_intercept_kc" for view in VIEWS),
    *_SCALES,
}
_BOOLEANS = {"True": True, "False": False}


def stored(learned: Learned) -> StoredLabels:
    """Convert classifiers to tensors."""
    scaling, values = learned.scaling, learned.values
    arrays: dict[str, np.ndarray] = {
        "rank_c": learned.rank_c,
        "size_c": learned.size_c,
        "center_e": scaling.center_j,
        "scale": np.asarray(scaling.scale),
        "state_center_j": scaling.state_center_j,
        "state_scale": np.asarray(scaling.state_scale),
        "deviation_g": scaling.deviation_g,
        "gene_center_g": scaling.gene_center_g,
        "n_trained": np.asarray(learned.n_trained),
        "center_kcj": np.stack([metric.center_cj for metric in learned.metrics_k]),
        "factor_kjj": np.stack([metric.factor_jj for metric in learned.metrics_k]),
        "log_p_vhc": learned.log_p_vhc,
        "nearest_h": learned.nearest_h,
        "state_hj": learned.state_hj,
        "compared_hd": learned.compared_hd,
        "component_gp": scaling.component_gj[:, :COMPARED_COMPONENTS],
        "code_h": learned.code_h,
        "part_h": learned.part_h,
        "weight_h": learned.weight_h,
    }
    for view, letter in zip(VIEWS, "jeg", strict=True):
        fitted = [of_v[VIEWS.index(view)] for of_v in learned.regressions_kv]
        arrays[f"{view}_coefficient_k{letter}c"] = np.stack([one.coefficient_jc for one in fitted])
        arrays[f"{view}_intercept_kc"] = np.stack([one.intercept_c for one in fitted])
    tensors = {name: torch.tensor(np.asarray(array), dtype=torch.float32) for name, array in arrays.items()}
    return StoredLabels(learned.names, "text" if values is None else _KINDS[values.dtype.kind], tensors)


def learned_of(model: Model) -> Learned:
    """Return the classifiers that were saved with a model.

    Raises
    ------
    ConfigError
        If the model has no classifiers of labels. Models that were trained without labels, and models of `sweep`, have
        none.
    ModelError
        If the saved classifiers are damaged.
    """
    if model.labels is None:
        key = model.config.data.labels_key
        lacks = "was trained without labels" if key is None else "has no classifiers of labels"
        raise ConfigError(
            f"the model {lacks}, so known labels are needed",
            "use --labels-key to name a column of obs with the labels of some cells"
            + ("" if key is None else f"; the model was trained with the labels in obs[{key!r}]"),
        )
    try:
        learned = _learned(model.labels, model)
        check_values(learned, model.facts["n_cells"])
        return learned
    except ValueError as error:
        raise ModelError(f"the labels of the model are damaged: {error}", "train again") from error


def _learned(labels: StoredLabels, model: Model) -> Learned:
    arrays = {name: tensor.numpy() for name, tensor in labels.tensors.items()}
    if other := sorted(arrays.keys() - _NAMES):
        raise ValueError(f"the array {other[0]} does not belong to this model")
    if lacking := sorted(_NAMES - arrays.keys()):
        raise ValueError(f"the array {lacking[0]} is missing")
    n_labels = len(labels.names)
    lengths = {"c": n_labels, "g": len(model.genes), "v": len(VIEWS)}
    if model.expression is not None:
        lengths |= {"j": len(model.expression.component_jg)}
    _check_shapes(arrays, lengths)
    if lengths["d"] != lengths["e"] + lengths["p"]:
        raise ValueError(f"compared_hd has shape {arrays['compared_hd'].shape}, which does not fit component_gp")
    rank_c, code_h, part_h = (_whole(name, arrays[name]) for name in ("rank_c", "code_h", "part_h"))
    n_parts, n_trained = len(arrays["center_kcj"]), int(_whole("n_trained", arrays["n_trained"]))
    if not len(code_h) <= n_trained <= _MOST_TRAINED:
        raise ValueError("the number of training cells (n_trained) is impossible")
    if sorted(rank_c) != list(range(n_labels)):
        raise ValueError("the order of the labels (rank_c) is not a permutation")
    if code_h.min() < 0 or code_h.max() >= n_labels or part_h.min() < 0 or part_h.max() >= n_parts:
        raise ValueError("a label or part of a held-out cell (code_h, part_h) does not exist")
    for name in ("scale", "state_scale", "deviation_g", "size_c", "weight_h"):
        if not (arrays[name] > 0).all():
            raise ValueError(f"the array {name} has values that are not positive")
    total_vh = np.exp(arrays["log_p_vhc"].astype(np.float64)).sum(2)
    if not np.allclose(total_vh, 1, atol=_PROBABILITY):
        raise ValueError("the label probabilities of a cell (log_p_vhc) do not add up to 1")
    scaling = Scaling(
        center_j=arrays["center_e"],
        scale=float(arrays["scale"]),
        state_center_j=arrays["state_center_j"],
        state_scale=float(arrays["state_scale"]),
        deviation_g=arrays["deviation_g"],
        gene_center_g=arrays["gene_center_g"],
        component_gj=arrays["component_gp"],
    )
    by_view = [
        [
            Regression(coefficient, intercept.astype(np.float64))
            for coefficient, intercept in zip(
                arrays[f"{view}_coefficient_k{letter}c"], arrays[f"{view}_intercept_kc"], strict=True
            )
        ]
        for view, letter in zip(VIEWS, "jeg", strict=True)
    ]
    return Learned(
        names=labels.names,
        rank_c=rank_c,
        values=_values(labels),
        size_c=_whole("size_c", arrays["size_c"]),
        scaling=scaling,
        n_trained=n_trained,
        regressions_kv=[list(of_k) for of_k in zip(*by_view, strict=True)],
        metrics_k=[
            Metric(center, factor) for center, factor in zip(arrays["center_kcj"], arrays["factor_kjj"], strict=True)
        ],
        log_p_vhc=arrays["log_p_vhc"].astype(np.float64),
        nearest_h=arrays["nearest_h"].astype(np.float64),
        state_hj=arrays["state_hj"],
        compared_hd=arrays["compared_hd"],
        code_h=code_h,
        part_h=part_h,
        weight_h=arrays["weight_h"].astype(np.float64),
    )


def _values(labels: StoredLabels) -> np.ndarray | None:
    """Convert label names that are numbers or booleans to values. The result is None if the labels are texts."""
    if labels.kind == "text":
        return None
    parsers: dict[str, Callable[[str], Any]] = {"boolean": _BOOLEANS.get, "integer": int, "number": float}
    values = np.asarray([parsers[labels.kind](name) for name in labels.names])
    if values.dtype.kind not in _KINDS or len(set(values.tolist())) < len(values):
        raise ValueError(f"the labels are not different values of the type {labels.kind}")
    return values


def _check_shapes(arrays: Mapping[str, np.ndarray], lengths: dict[str, int]) -> None:
    """Check that dimensions with the same letter have the same length in all tensors, and that no length is 0."""
    for name, array in arrays.items():
        letters = "" if name in _SCALES else name.rpartition("_")[2]
        if array.ndim != len(letters) or 0 in array.shape:
            raise ValueError(f"the array {name} has the wrong shape {array.shape}")
        for letter, length in zip(letters, array.shape, strict=True):
            if lengths.setdefault(letter, length) != length:
                raise ValueError(f"the array {name} has shape {array.shape}, which does not fit the other arrays")


def _whole(name: str, array: np.ndarray) -> np.ndarray:
    """Convert whole numbers to int64."""
    if not (array == np.trunc(array)).all() or not (np.abs(array) < 2**31).all():
        raise ValueError(f"the array {name} has values that are not whole numbers")
    whole: np.ndarray = array.astype(np.int64)
    return whole
