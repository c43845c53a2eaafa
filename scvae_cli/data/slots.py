"""Every place in an AnnData that scvae writes, named once.

A result lists its own slots with these names; the two writers (an AnnData in memory, a file on disk) only carry
them out. `key_added` replaces "scvae" in every name, so the results of two models can live in one file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

DEFAULT_KEY = "scvae"


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
        A numeric array, a `pandas.Categorical`, a string, a number, or (layers only) a `RowBlocks`.
    """

    group: str
    key: str
    value: Any

    @property
    def path(self) -> str:
        """The slot's name as it reads in a message and inside the file: "obsm/X_scvae"."""
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
        """`var`: True for the genes the model knows."""
        return f"{self.key_added}_modelled"

    @property
    def elbo(self) -> str:
        """`obs`: evidence lower bound, nats."""
        return f"{self.key_added}_elbo"

    @property
    def iwae(self) -> str:
        """`obs`: importance-weighted bound, nats."""
        return f"{self.key_added}_iwae"

    def pseudotime(self, name: str) -> str:
        """`obs`: position along a path, 0 to 1, NaN for cells far from it."""
        return f"{self.key_added}_pseudotime_{slug(name)}"

    def path_genes(self, name: str) -> str:
        """`varm`: decoded expression along a path, genes × steps."""
        return f"{self.key_added}_path_{slug(name)}"

    def path_latent(self, name: str) -> str:
        """`uns`: a path's latent points, names and settings."""
        return f"{self.key_added}/paths/{slug(name)}"

    def run(self, name: str) -> str:
        """`uns`: provenance of the command that wrote a result, as JSON text."""
        return f"{self.key_added}/runs/{slug(name)}"


def slug(name: str) -> str:
    """A name that is safe inside an HDF5 key, where "/" would nest.

    >>> slug("CD4+ T/naive")
    'CD4_T_naive'
    """
    cleaned = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_")
    return cleaned or "unnamed"
