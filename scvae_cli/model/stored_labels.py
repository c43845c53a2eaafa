"""The classifiers of labels in a model folder. Models that were trained with labels have them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class StoredLabels:
    """The labels of a model.

    Parameters
    ----------
    names
        Names of the labels, in the order in which they are shown.
    kind
        Type of the labels in their column, one of `KINDS`.
    tensors
        The classifiers, as tensors in float32 (`tools/annotate/learned_file.py`).
    """

    names: tuple[str, ...]
    kind: str
    tensors: dict[str, Tensor]


KINDS = ("text", "integer", "number", "boolean")
