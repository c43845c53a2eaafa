"""What a walk comes to, and where its parts go in an AnnData.

Shapes: n cells, k latent dimensions, g genes of the model, f genes of the file, t steps, j nearest cells, p paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scvae_cli.data.slots import Slot, SlotNames, slug
from scvae_cli.tools.trajectory.gene_changes import GeneChanges
from scvae_cli.tools.trajectory.steps import Steps

# The kind of a trajectory that ascends toward a property; it is no path between two populations.
ASCENT = "ascent"


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A walk and what lies along it.

    Parameters
    ----------
    name
        Name of the result, in slots.
    kind, endpoint, couple
        How it was found: the kind of path, the position that stands for a population, and how cells were paired.
    library, batch_as
        Library size and batch it is decoded at.
    labels
        Names of its waypoints.
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

    name: str
    kind: str
    endpoint: str = "density"
    couple: str = "none"
    library: str | float
    batch_as: str
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
        if self.kind == ASCENT:
            unusual = "the start is an unusual place: begin at a population, or another cell"
            remedy = unusual if off_t[0] == 0 else "leave out --unconstrained, which lets it"
        elif self.kind != "geodesic":
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
        name = self.name
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
            "name": self.name,
            "kind": self.kind,
            "endpoint": self.endpoint,
            "couple": self.couple,
            "waypoints": np.asarray(self.labels, dtype=object),
            "latent": self.z_tk,
            "position": steps.position_t,
            "speed": steps.speed_t,
            "length": steps.length,
            "off_manifold": steps.off_manifold_t,
            "nearest_cells": self.nearest_names_tj.astype(object),
            "library": str(self.library),
            "batch_as": self.batch_as,
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
