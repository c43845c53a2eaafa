"""Names of all elements (slots) of an AnnData to which scvae writes.

Each result lists its slots with these names, and two writers (for an AnnData in memory and for a file) write them.
`key_added` replaces "scvae" in every name, so that one file can contain the results of several models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scvae_cli.errors import ConfigError

DEFAULT_KEY = "scvae"


@dataclass(frozen=True, kw_only=True)
class RowBlocks:
    """A matrix that is too large for memory, as blocks of rows that can be read once.

    Parameters
    ----------
    shape
        Rows × columns.
    dtype
        Data type of every block.
    blocks
        Matrix as consecutive blocks of rows.
    """

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
    """One element to be written.

    Parameters
    ----------
    group
        The AnnData mapping: "obs", "var", "obsm", "varm", "layers" or "uns".
    key
        The name inside it; for "uns" a "/"-separated path.
    value
        A numeric array, a `pandas.Categorical`, a string, a number, a dict of these, or (layers only) a `RowBlocks`.
    """

    group: str
    key: str
    value: Any

    @property
    def path(self) -> str:
        """Name of the slot in messages and in the file, for example "obsm/X_scvae"."""
        return f"{self.group}/{self.key}"


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

    @property
    def embedding(self) -> str:
        """`obsm`: posterior means, cells × latent dimensions."""
        return f"X_{self.key_added}"

    @property
    def latent_var(self) -> str:
        """`obsm`: posterior variances, cells × latent dimensions."""
        return f"{self.key_added}_latent_var"

    @property
    def denoised(self) -> str:
        """`layers`: expected counts, cells × genes."""
        return f"{self.key_added}_denoised"

    @property
    def modelled(self) -> str:
        """`var`: True for the genes of the model."""
        return f"{self.key_added}_modelled"

    @property
    def elbo(self) -> str:
        """`obs`: evidence lower bound, nats."""
        return f"{self.key_added}_elbo"

    @property
    def iwae(self) -> str:
        """`obs`: importance-weighted bound, nats."""
        return f"{self.key_added}_iwae"

    @property
    def iwae_density(self) -> str:
        """`obs`: importance-weighted bound with the density of the cells in latent space as the prior, nats."""
        return f"{self.key_added}_iwae_density"

    @property
    def reconstruction(self) -> str:
        """`obs`: expected log-likelihood E_q[log p(x|z)], nats."""
        return f"{self.key_added}_reconstruction"

    @property
    def kl(self) -> str:
        """`obs`: KL of a cell's posterior to the prior, nats."""
        return f"{self.key_added}_kl"

    @property
    def anomaly_score(self) -> str:
        """`obs`: how much less likely a cell is than simulated cells of its kind, standard deviations."""
        return f"{self.key_added}_anomaly_score"

    @property
    def anomaly_p(self) -> str:
        """`obs`: fraction of cells simulated from the model that are as unlikely or more unlikely."""
        return f"{self.key_added}_anomaly_p"

    @property
    def anomaly_p_adjusted(self) -> str:
        """`obs`: p-value of the anomaly score, adjusted for the number of cells by Benjamini and Hochberg's method."""
        return f"{self.key_added}_anomaly_p_adjusted"

    @property
    def off_manifold(self) -> str:
        """`obs`: off-manifold score of sampled cells, 0 to 1."""
        return f"{self.key_added}_off_manifold"

    @property
    def library(self) -> str:
        """`obs`: library size at which sampled cells were decoded."""
        return f"{self.key_added}_library"

    @property
    def rank_genes_groups(self) -> str:
        """`uns`: differential expression between two groups, in the format of scanpy."""
        return f"rank_genes_groups_{self.key_added}"

    def pseudotime(self, name: str) -> str:
        """`obs`: position along a path, 0 to 1, NaN for cells far from it."""
        return f"{self.key_added}_pseudotime_{slug(name)}"

    def root_distance(self, name: str) -> str:
        """`obs`: Fisher–Rao distance from the root of an ordering, standard deviations of a count."""
        return f"{self.key_added}_distance_{slug(name)}"

    def branch(self, name: str) -> str:
        """`obs`: end (fate) of an ordering to which a cell belongs, or "shared"."""
        return f"{self.key_added}_branch_{slug(name)}"

    def end_weights(self, name: str) -> str:
        """`obsm`: weight of each end (fate) of an ordering for each cell, cells × ends."""
        return f"{self.key_added}_ends_{slug(name)}"

    def path_genes(self, name: str) -> str:
        """`varm`: decoded expression along a path, genes × steps."""
        return f"{self.key_added}_path_{slug(name)}"

    def path_band(self, name: str) -> tuple[str, str]:
        """`varm`: 5% and 95% quantiles of expression along a path, genes × steps."""
        return f"{self.path_genes(name)}_low", f"{self.path_genes(name)}_high"

    def path_latent(self, name: str) -> str:
        """`uns`: latent points of a path, cells and genes along it, and settings."""
        return f"{self.key_added}/paths/{slug(name)}"

    def sweep(self, varied: str) -> str:
        """`uns`: results of a sweep over a training option, one array per column."""
        return f"{self.key_added}/sweep/{slug(varied)}"

    @property
    def diagnosis(self) -> str:
        """`uns`: results of a diagnosis, with its sections and verdicts."""
        return f"{self.key_added}/diagnosis"

    def perturbation(self, name: str) -> str:
        """`uns`: settings of a perturbation prediction, and its accuracy where the true response is known."""
        return f"{self.key_added}/perturbations/{slug(name)}"

    def perturbation_gene(self, column: str) -> str:
        """`var`: effect of a perturbation on every gene."""
        return f"{self.key_added}_{column}"

    def run(self, name: str) -> str:
        """`uns`: provenance of the command that wrote a result, as JSON text."""
        return f"{self.key_added}/runs/{slug(name)}"

    def written_by(self, verb: str, path: str = "") -> list[str]:
        """Return the paths of all slots that a command writes; they are known before the computation.

        `path` is the name of the trajectory or ordering, or of the option that a sweep varies.

        >>> SlotNames().written_by("denoise")
        ['layers/scvae_denoised', 'var/scvae_modelled']
        """
        trajectory = [
            f"uns/{self.path_latent(path)}",
            *(f"varm/{key}" for key in (self.path_genes(path), *self.path_band(path))),
            f"obs/{self.pseudotime(path)}",
        ]
        by_verb = {
            "embed": [f"obsm/{self.embedding}", f"obsm/{self.latent_var}"],
            "denoise": [f"layers/{self.denoised}", f"var/{self.modelled}"],
            "interpolate": trajectory,
            "optimize": trajectory,
            "pseudotime": [
                f"obs/{self.pseudotime(path)}",
                f"obs/{self.root_distance(path)}",
                f"obs/{self.branch(path)}",
                f"obsm/{self.end_weights(path)}",
            ],
            "score": [
                *(f"obs/{key}" for key in (self.elbo, self.iwae, self.iwae_density, self.reconstruction, self.kl)),
                *(f"obs/{key}" for key in (self.anomaly_score, self.anomaly_p, self.anomaly_p_adjusted)),
            ],
            "sweep": [f"uns/{self.sweep(path)}"],
            "diagnose": [f"uns/{self.diagnosis}"],
            "de": [f"uns/{self.rank_genes_groups}"],
        }  # fmt: skip
        return by_verb[verb]


def slug(name: str) -> str:
    """Convert a name to a safe HDF5 key, in which "/" would create a group; letters of all scripts are kept.

    Different names may have the same result; `provenance.refuse_another` prevents overwriting in that case.

    >>> slug("CD4+ T/naive"), slug("γδ T")
    ('CD4_T_naive', 'γδ_T')
    """
    cleaned = re.sub(r"[^\w.-]+", "_", name).strip("_.")
    return cleaned or "unnamed"


def spread(slots: Sequence[Slot], kept: np.ndarray) -> list[Slot]:
    """Extend results for some cells to all cells, with NaN for the other cells.

    Parameters
    ----------
    slots
        Results; obs, obsm and layers have one row for each True in `kept`.
    kept
        Mask over all cells.
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
        # The segment of all cells that ends with the last cell of this block.
        end = start + int(np.searchsorted(np.cumsum(kept[start:]), len(block), side="left")) + 1
        whole = np.full((end - start, rows.shape[1]), np.nan, dtype=rows.dtype)
        whole[kept[start:end]] = block
        yield whole
        start = end
    if start < len(kept):
        yield np.full((len(kept) - start, rows.shape[1]), np.nan, dtype=rows.dtype)
