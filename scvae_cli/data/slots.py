"""Names of all elements (slots) that scvae writes to an AnnData.

The results of the commands take the names of their slots from this module. Slots are written to an AnnData in memory or
to a file. `key_added` replaces "scvae" in every name, so that one file can contain the results of several models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scvae_cli.errors import ConfigError

DEFAULT_KEY = "scvae"


@dataclass(frozen=True, kw_only=True)
class RowBlocks:
    """A matrix that may be too large for memory, as consecutive blocks of rows that can be read only once."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    blocks: Iterator[np.ndarray]

    def whole(self) -> np.ndarray:
        """Return the whole matrix in memory, with shape `shape`."""
        matrix = np.empty(self.shape, dtype=self.dtype)
        start = 0
        for block in self.blocks:
            matrix[start : start + len(block)] = block
            start += len(block)
        assert start == self.shape[0], "the blocks must cover every row"
        return matrix


@dataclass(frozen=True, kw_only=True)
class Slot:
    """One element of an AnnData that scvae writes.

    Parameters
    ----------
    group, key
        The AnnData mapping ("obs", "var", "obsm", "varm", "layers" or "uns"), and the name of the element in this
        mapping. In "uns", the name may be a path with "/" between the keys of nested dicts.
    value
        A numeric array, a `pandas.Categorical`, a string, an array of strings (uns only), a number, a dict of such
        values, or (layers and obsm only) a `RowBlocks`.
    may_lack
        Whether the value may contain NaN for missing values. Results for cells that were left out are always NaN.
    """

    group: str
    key: str
    value: Any
    may_lack: bool = False

    @property
    def path(self) -> str:
        """Name of the slot in messages and in the file, for example "obsm/X_scvae"."""
        return f"{self.group}/{self.key}"


@dataclass(frozen=True)
class _Key:
    """The name of a slot in `SlotNames`, made from a template in which {} is replaced by `key_added`."""

    template: str

    def __get__(self, names: SlotNames, _: type) -> str:
        return self.template.format(names.key_added)


@dataclass(frozen=True)
class _NamedKey:
    """The name of a slot that also contains the name of a result, such as the name of a trajectory.

    The attribute of `SlotNames` is a function that takes the name of the result and returns the name of the slot.
    """

    template: str

    def __get__(self, names: SlotNames, _: type) -> Callable[[str], str]:
        return lambda name: self.template.format(names.key_added, slug(name))


@dataclass(frozen=True, kw_only=True)
class SlotNames:
    """The names of all slots under one `key_added`.

    >>> SlotNames().embedding
    'X_scvae'
    >>> SlotNames(key_added="wide").path_genes("stem to ery/1")
    'wide_path_stem_to_ery_1'
    """

    key_added: str = DEFAULT_KEY

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.key_added):
            raise ConfigError(
                f"--key-added is {self.key_added!r}", "use letters, digits, _ and -, for example: wide_model"
            )

    # obsm: positions in expression space, cells × components.
    embedding = _Key("X_{}")
    # obsm: posterior means and variances, cells × latent dimensions.
    latent = _Key("{}_latent")
    latent_var = _Key("{}_latent_var")
    # obsm: UMAP of the embedding, cells × 2. obs: Leiden cluster of each cell. The UMAP and the clusters come from one
    # neighbor graph.
    umap = _Key("X_umap_{}")
    leiden = _Key("{}_leiden")
    # layers, or obsm if only some genes are denoised: expected counts, cells × genes. var: True for the denoised genes.
    # uns: names of the denoised genes, in the order of the columns in obsm.
    denoised = _Key("{}_denoised")
    modelled = _Key("{}_modelled")
    denoised_genes = _Key("{}/denoised_genes")
    # obs, nats: evidence lower bound; importance-weighted bound; importance-weighted bound with the density of the
    # cells in latent space as the prior; expected log-likelihood E_q[log p(x|z)]; KL of a cell's posterior to the
    # prior.
    elbo = _Key("{}_elbo")
    iwae = _Key("{}_iwae")
    iwae_density = _Key("{}_iwae_density")
    reconstruction = _Key("{}_reconstruction")
    kl = _Key("{}_kl")
    # obs: how much less likely a cell is than simulated cells of its kind, in standard deviations. obs: p-value, the
    # fraction of simulated cells that are at least as unlikely as the cell. obs: p-value adjusted for the number of
    # cells by Benjamini and Hochberg's method.
    anomaly_score = _Key("{}_anomaly_score")
    anomaly_p = _Key("{}_anomaly_p")
    anomaly_p_adjusted = _Key("{}_anomaly_p_adjusted")
    # obs: share of the held-out cells whose states are at least as rare as the state of the cell. obs: whether the
    # share is so small that the training has no cells with a state like that of the cell.
    counterpart_p = _Key("{}_counterpart_p")
    no_counterpart = _Key("{}_no_counterpart")
    # obs: off-manifold score of sampled cells, 0 to 1, and the library size at which the sampled cells were decoded.
    off_manifold = _Key("{}_off_manifold")
    library = _Key("{}_library")
    # uns: differential expression between two groups, in the format of scanpy.
    rank_genes_groups = _Key("rank_genes_groups_{}")
    rank_genes_groups_named = _NamedKey("rank_genes_groups_{}_{}")
    # uns: results of a diagnosis, with its sections and verdicts.
    diagnosis = _Key("{}/diagnosis")
    # obs: predicted label, or "unknown". obs: probability of the most probable label. obs: labels of the prediction
    # set, joined by " | ". obs: p-value of belonging to a known type. obs: coarse label and its probability. obs:
    # label, or coarse label for cells whose label is uncertain. obsm: probability of each label, cells × labels. uns:
    # the labels, in the order of the columns of the probabilities.
    label = _Key("{}_label")
    label_probability = _Key("{}_label_probability")
    label_set = _Key("{}_label_set")
    label_p = _Key("{}_label_p")
    label_coarse = _Key("{}_label_coarse")
    label_coarse_probability = _Key("{}_label_coarse_probability")
    label_backed_off = _Key("{}_label_backed_off")
    label_probabilities = _Key("{}_label_probabilities")
    label_names = _Key("{}/label_names")
    # obs: position along a path, 0 to 1, NaN for cells far from the path.
    pseudotime = _NamedKey("{}_pseudotime_{}")
    # obs: Fisher–Rao distance from the root of an ordering, in standard deviations of a count. obs: the most probable
    # end of a cell, or "uncommitted". obsm: probability of each end (fate) for each cell, cells × ends.
    root_distance = _NamedKey("{}_distance_{}")
    branch = _NamedKey("{}_branch_{}")
    end_weights = _NamedKey("{}_ends_{}")
    # varm: decoded expression along a path, genes × steps. uns: settings, and the latent points, cells and
    # genes along the path.
    path_genes = _NamedKey("{}_path_{}")
    path_latent = _NamedKey("{}/paths/{}")
    # uns: results of a sweep over one training option, which names the result; one array per column.
    sweep = _NamedKey("{}/sweep/{}")
    # uns: settings of a perturbation prediction; and the accuracy of the prediction, if the true response is known.
    perturbation = _NamedKey("{}/perturbations/{}")
    # uns: provenance of the command that wrote a result, as JSON text.
    run = _NamedKey("{}/runs/{}")

    def path_band(self, name: str) -> tuple[str, str]:
        """Return two names in `varm`, for the 5% and the 95% quantiles of expression along a path."""
        return f"{self.path_genes(name)}_low", f"{self.path_genes(name)}_high"

    def comparison(self, name: str | None) -> str:
        """Return the key in `uns` of a comparison of two groups; `name` is the name that the user gave, or None."""
        return self.rank_genes_groups if name is None else self.rank_genes_groups_named(name)

    def perturbation_gene(self, column: str) -> str:
        """Return the name in `var` for the effect of a perturbation on every gene."""
        return f"{self.key_added}_{column}"


def slug(name: str) -> str:
    """Convert a name to a key for an HDF5 file, where a character such as "/" has a special meaning.

    Letters of all scripts are kept, and special characters are replaced by "_". If two names give the same key,
    `provenance.refuse_another` refuses to overwrite the first result.

    >>> slug("CD4+ T/naive"), slug("γδ T")
    ('CD4_T_naive', 'γδ_T')
    """
    cleaned = re.sub(r"[^\w.-]+", "_", name).strip("_.")
    return cleaned or "unnamed"


def spread(slots: Sequence[Slot], kept: np.ndarray) -> list[Slot]:
    """Extend results of a part of the cells to all cells, with NaN for cells without a result.

    `kept` is a mask over all cells. The given results in obs, obsm and layers have one row for each cell whose mask is
    True.
    """
    if kept.all():
        return list(slots)
    return [
        replace(slot, value=_spread(slot.value, kept)) if slot.group in ("obs", "obsm", "layers") else slot
        for slot in slots
    ]


def _spread(value: Any, kept: np.ndarray) -> Any:
    if isinstance(value, RowBlocks):
        return replace(value, shape=(len(kept), value.shape[1]), blocks=_spread_blocks(value, kept))
    if hasattr(value, "categories"):
        # In a pandas Categorical, the code of a missing value is -1.
        codes = np.full(len(kept), -1, dtype=value.codes.dtype)
        codes[kept] = value.codes
        return type(value).from_codes(codes, dtype=value.dtype)
    whole = np.full((len(kept), *value.shape[1:]), np.nan, dtype=value.dtype)
    whole[kept] = value
    return whole


def _spread_blocks(rows: RowBlocks, kept: np.ndarray) -> Iterator[np.ndarray]:
    start = 0
    for block in rows.blocks:
        # Among all cells, `end` is the position after the last cell of this block.
        end = start + int(np.searchsorted(np.cumsum(kept[start:]), len(block), side="left")) + 1
        whole = np.full((end - start, rows.shape[1]), np.nan, dtype=rows.dtype)
        whole[kept[start:end]] = block
        yield whole
        start = end
    if start < len(kept):
        yield np.full((len(kept) - start, rows.shape[1]), np.nan, dtype=rows.dtype)
