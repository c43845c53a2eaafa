"""What a walk comes to, and where its parts go in an AnnData.

Shapes: n cells, k latent dimensions, g genes of the model, f genes of the file, t steps, j nearest cells, p paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scvae_cli.data.slots import Slot, SlotNames, slug
from scvae_cli.errors import ConfigError
from scvae_cli.tools.trajectory.curves import PATHS
from scvae_cli.tools.trajectory.gene_changes import GeneChanges
from scvae_cli.tools.trajectory.steps import Steps

ENDPOINTS = ("density", "centroid")
COUPLINGS = ("none", "ot")
MAX_PATHS = 1000
# The kind of a walk that goes uphill; it is no way between two places.
ASCENT = "ascent"


class WalkOptions(Protocol):
    """What a walk must know of how it was asked for."""

    @property
    def name(self) -> str:
        """Of the walk, in slots."""

    @property
    def path(self) -> str:
        """Its kind."""

    @property
    def endpoint(self) -> str:
        """Where a population stands."""

    @property
    def couple(self) -> str:
        """How cells of two populations were paired."""

    @property
    def library(self) -> str | float:
        """Depth it is decoded at."""

    @property
    def batch_as(self) -> str:
        """Batch it is decoded in."""

    @property
    def seed(self) -> int:
        """Of its bands."""


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """What is asked for.

    Parameters
    ----------
    name
        Of the path, in slots.
    n_steps
        Points on it, both ends included.
    path
        Kind of path, one of `PATHS`.
    endpoint
        Where a population stands, one of `ENDPOINTS`.
    couple
        "ot" walks from cells of the first population to the cells of the last that optimal transport pairs them with.
    n_paths
        So many of these.
    library, batch_as
        Depth and batch to decode at, as for denoising.
    seed
        Of sampled bands and pairs.
    """

    name: str
    n_steps: int = 50
    path: str = "geodesic"
    endpoint: str = "density"
    couple: str = "none"
    n_paths: int = 50
    library: str | float = "median"
    batch_as: str = "average"
    seed: int = 0

    def __post_init__(self) -> None:
        for option, known in (("path", PATHS), ("endpoint", ENDPOINTS), ("couple", COUPLINGS)):
            value = getattr(self, option)
            if value not in known:
                raise ConfigError(f"--{option} is {value!r}", f"it takes one of: {', '.join(known)}")
        if self.n_steps < 2:
            raise ConfigError(f"--steps is {self.n_steps}", "it takes a whole number, 2 or more")
        if not 2 <= self.n_paths <= MAX_PATHS:
            raise ConfigError(f"--paths is {self.n_paths}", f"it takes a whole number from 2 to {MAX_PATHS:,}")


@dataclass(frozen=True, kw_only=True)
class Path:
    """A walk and what lies along it.

    Parameters
    ----------
    options
        What was asked for.
    labels
        Of the way-points.
    genes
        g modelled genes.
    z_tk
        Latent points along the canonical axes, as `obsm["X_scvae"]` has them.
    steps
        Position, speed, off-manifold score, nearest cells and groups of every step.
    nearest_names_tj
        Names of the nearest cells.
    mean_tg
        Expected counts at the depth and batch asked for.
    low_tg, high_tg
        5% and 95% quantiles of the expected counts: over the posterior of the cells around each step, or over the
        paths of a bundle.
    changes
        What each gene does.
    pseudotime_n
        Where each cell lies along the walk, 0 to 1; NaN for cells far from it.
    bundle_ptk
        Latent points of all coupled paths, of which this is the most central one; None for a single path.
    of_counts
        Whether the model is one of counts, and not of real numbers.
    """

    options: WalkOptions
    labels: tuple[str, ...]
    genes: tuple[str, ...]
    z_tk: np.ndarray
    steps: Steps
    nearest_names_tj: np.ndarray
    mean_tg: np.ndarray
    low_tg: np.ndarray
    high_tg: np.ndarray
    changes: GeneChanges
    pseudotime_n: np.ndarray
    bundle_ptk: np.ndarray | None
    of_counts: bool = True

    def top_genes(self, n: int) -> np.ndarray:
        """Indices of the n genes that change most, most first."""
        return np.argsort(-self.changes.effect_g, kind="stable")[:n]

    def warning(self) -> str | None:
        """Where the walk leaves the manifold and what to try; None where it does not."""
        off_t = np.flatnonzero(self.steps.off)
        if len(off_t) == 0:
            return None
        stretches = np.split(off_t, np.flatnonzero(np.diff(off_t) > 1) + 1)
        named = ", ".join(f"{s[0]}" if len(s) == 1 else f"{s[0]} to {s[-1]}" for s in stretches)
        score = float(self.steps.off_manifold_t[off_t].max())
        share = float(np.mean(off_t % (len(self.steps.position_t) - 1) == 0))
        if self.options.path == ASCENT:
            unusual = "the start is an unusual place: begin at a population, or another cell"
            remedy = unusual if off_t[0] == 0 else "leave out --unconstrained, which lets it"
        elif self.options.path != "geodesic":
            remedy = "try --path geodesic, which keeps to the cells"
        elif share > 0.5:
            remedy = "an end of the walk is an unusual place: try --endpoint density, or another cell"
        else:
            remedy = "no cells lie between: sample the states in between, or name one with --via"
        return (
            f"the walk leaves the manifold at step(s) {named} of 0 to {len(self.steps.position_t) - 1} "
            f"(off-manifold score up to {score:.3f}; 0.95 is the limit): do not trust the genes decoded there; {remedy}"
        )

    def slots(self, names: SlotNames, file_genes: np.ndarray) -> list[Slot]:
        """Where the result goes; genes of the file that are not modelled get NaN."""
        name = self.options.name
        position = {gene: i for i, gene in enumerate(self.genes)}
        columns_f = np.asarray([position.get(gene, -1) for gene in file_genes])

        def genes_by_steps(value_tg: np.ndarray) -> np.ndarray:
            value_ft = np.full((len(file_genes), len(value_tg)), np.nan, dtype=np.float32)
            value_ft[columns_f >= 0] = value_tg.T[columns_f[columns_f >= 0]]
            return value_ft

        low, high = names.path_band(name)
        return [
            Slot(group="uns", key=names.path_latent(name), value=self._facts()),
            Slot(group="varm", key=names.path_genes(name), value=genes_by_steps(self.mean_tg)),
            Slot(group="varm", key=low, value=genes_by_steps(self.low_tg)),
            Slot(group="varm", key=high, value=genes_by_steps(self.high_tg)),
            Slot(group="obs", key=names.pseudotime(name), value=self.pseudotime_n),
        ]

    def _facts(self) -> dict[str, Any]:
        steps, changes = self.steps, self.changes
        facts = {
            "name": self.options.name,
            "kind": self.options.path,
            "endpoint": self.options.endpoint,
            "couple": self.options.couple,
            "waypoints": np.asarray(self.labels, dtype=object),
            "latent": self.z_tk,
            "position": steps.position_t,
            "speed": steps.speed_t,
            "length": steps.length,
            "off_manifold": steps.off_manifold_t,
            "nearest_cells": self.nearest_names_tj.astype(object),
            "library": str(self.options.library),
            "batch_as": self.options.batch_as,
            "genes": {
                "names": np.asarray(self.genes, dtype=object),
                "effect": changes.effect_g,
                "net": changes.net_g,
                "direction": changes.direction_g,
                "monotonicity": changes.monotonicity_g,
                "switch_step": changes.switch_g,
            },
        }
        if steps.groups_passed():
            facts |= {"nearest_group": steps.group_t, "nearest_group_share": steps.group_share_t}
        if self.bundle_ptk is not None:
            facts["bundle"] = self.bundle_ptk
        return facts


def default_name(labels: Sequence[str]) -> str:
    """A path's name made of its way-points, of many only of the ends.

    >>> default_name(["HSC", "CD4+ T"])
    'HSC_to_CD4_T'
    """
    labels = labels if len(labels) < 4 else [labels[0], labels[-1]]
    return "_to_".join(slug(label) for label in labels)
