"""The classifiers of labels in the folder of a model that was trained with labels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StoredLabels:
    """The labels of a model, and the classifiers that predict these labels.

    Parameters
    ----------
    names
        Names of the labels, in the order in which they are shown.
    kind
        Type of the labels in their column of obs, one of `KINDS`.
    tensors
        The classifiers as float32 tensors, which `tools/annotate/learned_file.py` describes.
    """

    names: tuple[str, ...]
    kind: str
    tensors: dict[str, Tensor]


KINDS = ("text", "integer", "number", "boolean")
