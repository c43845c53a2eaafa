"""A decoded trajectory, and the slots of an AnnData to which the trajectory is written.

Letters in array shapes: n cells, k latent dimensions, g genes of the model, f genes of the file, t steps, j nearest
cells, p paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scvae_cli.amounts import beside, noun
from scvae_cli.brief import brief
from scvae_cli.data.finite import refuse_not_finite
from scvae_cli.data.slots import Slot, SlotNames, slug
from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.latent.gaps import LongestStep
from scvae_cli.tools.trajectory.gene_changes import GeneChanges
from scvae_cli.tools.trajectory.steps import Steps

# Kind of the trajectories of `optimize`, along which a score increases.
ASCENT = "ascent"
# A warning abbreviates the list of groups that the trajectory passes if there are more groups than this number.
_LISTED_GROUPS = 6
# A warning names groups that the trajectory does not pass if they make up more than this fraction of its cells.
_OTHERS = 0.25


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A decoded trajectory.

    Parameters
    ----------
    name, labels, genes
        Name of the result, names of the waypoints, and names of the g genes of the model.
    kind, endpoint, couple
        How the trajectory was computed: the kind of path, the position that represents a population, and how cells were
        paired.
    library, batch_as
        Library size and batch at which the trajectory is decoded.
    z_tk
        Latent positions of the steps in the coordinates of `obsm["scvae_latent"]`.
    steps, nearest_names_tj
        Description of every step (`Steps`), and names of the cells nearest to every step.
    mean_tg, low_tg, high_tg
        Expected counts at every step, and 5% and 95% quantiles of the expected counts. Without a bundle, the quantiles
        are taken over the posterior of the cells around each step. With a bundle (trajectories between paired cells),
        the quantiles are taken over all trajectories of the bundle.
    changes
        Summary of the changes of every gene along the trajectory.
    pseudotime_n
        Position of each cell along the trajectory, from 0 to 1. Cells that do not belong to the trajectory have NaN.
    empty, returning
        `empty` contains the first and the last step of a long gap without cells; it is None if there is no such gap.
        `returning` contains the steps where an excursion begins, is farthest, and has come back to where it began; it
        is None if no excursion comes back.
    beyond
        Groups that the trajectory passes although they are farther from the start than the end is, along the order of
        the cells.
    avoided, sisters
        Sister fates toward which the path of least change leads, and which the trajectory avoids; sister fates toward
        which the trajectory leads all the same. A sister fate is a group that does not develop into the end.
    visited
        Groups that the user named between the ends of the trajectory, although they are sister fates.
    gap
        Gap without cells on the way from the start to the end; None without a gap, or if it is unknown.
    apart
        Groups of which a part lies in another cloud than the position that represents the group, each with the share of
        its cells in the other cloud.
    turning
        Step up to which the trajectory goes back along an order of the cells, and root of this order. The step is the
        last one if the trajectory ends earlier in the order than it starts. `turning` is None if the trajectory goes
        back along none of the orders in the data.
    group_sizes
        Number of the cells of each group that belong to the trajectory, largest first; empty without groups.
    bundle_ptk
        Latent positions of all trajectories of a bundle; None without a bundle. The result describes the most central
        trajectory of the bundle.
    of_counts
        True for a model of counts, False for a model of real-valued data.
    leading
        Indices of the genes that come first in tables and figures, such as the genes of an optimization.
    """

    __repr__ = brief

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
    empty: tuple[int, int] | None = None
    returning: tuple[int, int, int] | None = None
    beyond: tuple[str, ...] = ()
    avoided: tuple[str, ...] = ()
    sisters: tuple[str, ...] = ()
    visited: tuple[str, ...] = ()
    gap: LongestStep | None = None
    apart: tuple[tuple[str, float], ...] = ()
    turning: tuple[int, str] | None = None
    group_sizes: dict[str, int] = field(default_factory=dict)
    bundle_ptk: np.ndarray | None
    of_counts: bool
    leading: tuple[int, ...] = ()

    @property
    def without_cells(self) -> np.ndarray:
        """Mask of the steps where no cells were observed, and of the steps in a gap to which no cell belongs."""
        mask: np.ndarray = self.steps.off.copy()
        if self.empty is not None:
            mask[self.empty[0] : self.empty[1] + 1] = True
        return mask

    def top_genes(self, n: int) -> np.ndarray:
        """Return the indices of n genes: the genes in `leading`, then the genes that change most."""
        order = np.argsort(-self.changes.effect_g, kind="stable")
        leading = np.asarray(self.leading, dtype=order.dtype)
        return np.concatenate([leading, order[~np.isin(order, leading)]])[:n]

    def warnings(self) -> list[str]:
        """Return all warnings about the trajectory."""
        texts = (
            self.warning(),
            self.warning_of_gap(),
            self.warning_of_missing_cells(),
            self.warning_of_clouds(),
            self.warning_of_return(),
            self.warning_of_groups_beyond(),
            self.warning_of_sisters(),
            self.warning_of_visits(),
            self.warning_of_turning(),
            self.warning_of_groups(),
        )
        return [text for text in texts if text is not None]

    def warning(self) -> str | None:
        """Warn of steps where no cells were observed; return None if cells were observed along the whole trajectory."""
        off_t = np.flatnonzero(self.steps.off)
        if len(off_t) == 0:
            return None
        last = len(self.steps.position_t) - 1
        runs = np.split(off_t, np.flatnonzero(np.diff(off_t) > 1) + 1)
        named = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
        steps, lie = ("step", "lies") if len(off_t) == 1 else ("steps", "lie")
        passed = self.steps.groups_passed()
        if len(passed) > _LISTED_GROUPS:
            passed[3:-2] = ["…"]
        where = f"the trajectory passes {' → '.join(passed)};" if passed else "on the trajectory,"
        score = float(self.steps.off_manifold_t[off_t].max())
        return (
            f"{where} {steps} {named} of 0–{last} {lie} where no cells were observed (off-manifold score up to "
            f"{beside(score, OFF_MANIFOLD)}, limit {OFF_MANIFOLD}): do not trust the genes decoded there; "
            f"{self._remedy(off_t, last)}"
        )

    def warning_of_gap(self) -> str | None:
        """Warn of steps to which no cell belongs; return None if cells lie along the whole trajectory."""
        if self.empty is None:
            return None
        first, last = self.empty
        steps = f"steps {first}–{last} of 0–{len(self.z_tk) - 1}"
        text = f"no cell belongs to {steps}: no cell is similar to the states decoded at these steps"
        if self.kind == ASCENT:
            return text
        return f"{text}, and {self.labels[0]!r} and {self.labels[-1]!r} may belong to different lineages"

    def warning_of_missing_cells(self) -> str | None:
        """Warn of a gap without cells along the order from the start to the end; return None if there is none."""
        if self.gap is None:
            return None
        return (
            f"there is a gap without cells on the way from {self.labels[0]!r} to {self.labels[-1]!r} in the order of "
            f"the cells ({self.gap.described()}): it is unknown which groups develop into {self.labels[-1]!r}; with "
            "--subset, include the groups between them"
        )

    def warning_of_clouds(self) -> str | None:
        """Warn of groups that consist of two clouds; return None if there are none."""
        if not self.apart:
            return None
        named = ", ".join(f"{share:.0%} of the cells of {label!r}" for label, share in self.apart)
        return (
            f"{named} lie in another cloud than the position that represents the group in the trajectory: the group "
            "may consist of several cell types; divide the group, and name the right part"
        )

    def warning_of_return(self) -> str | None:
        """Warn of an excursion that comes back to where it began; return None if there is none."""
        if self.returning is None:
            return None
        begin, farthest, end = (
            f"{step} (near {group!r})" if (group := self.steps.group_t[step]) else str(step) for step in self.returning
        )
        return (
            f"the trajectory returns to an earlier state: it moves away until step {farthest}, but the expression at "
            f"step {end} is similar to that at step {begin} again; {self._remedy_of_return()}"
        )

    def _remedy_of_return(self) -> str:
        if not self.visited:
            return "check the order of the groups, or end the trajectory at an earlier group"
        named, are, ends = self._visits()
        return f"{named} {are} probably {ends} of other branches, so do not name {named} with --via"

    def _visits(self) -> tuple[str, str, str]:
        """Name the other fates that the trajectory visits, with the verb and the noun of a sentence about them."""
        are, ends = ("is", "an end") if len(self.visited) == 1 else ("are", "ends")
        return " and ".join(repr(group) for group in self.visited), are, ends

    def warning_of_groups_beyond(self) -> str | None:
        """Warn of groups that are farther from the start than the end is; return None if there are none."""
        if not self.beyond:
            return None
        named = ", ".join(repr(group) for group in self.beyond)
        return (
            f"the trajectory passes {named} before {self.labels[-1]!r}, but the cells of {named} are farther from "
            f"{self.labels[0]!r} along the order of the cells than those of {self.labels[-1]!r}, so they are probably "
            "the end of another branch; name an intermediate group of the right branch with --via, or leave these "
            "cells out with --subset"
        )

    def warning_of_sisters(self) -> str | None:
        """Warn of a trajectory through cells that develop into another fate; return None if there are none."""
        others = [repr(group) for group in self.sisters if group not in self.beyond]
        if not others:
            return None
        named, end = " or ".join(others), self.labels[-1]
        # Naming a further group does not help if the trajectory passes named groups already.
        via = "" if len(self.labels) > 2 else "name an intermediate group of the right branch with --via, or "
        again = "although it was computed again to avoid them" if self.avoided else "and other paths do not avoid them"
        return (
            f"the trajectory leads through cells that develop into {named} rather than {end!r}, {again}: there may be "
            f"no cells between {self.labels[0]!r} and {end!r} in the data; {via}leave {named} out with --subset"
        )

    def warning_of_visits(self) -> str | None:
        """Warn of groups between the ends that are fates of their own; return None if there are none.

        If the trajectory also returns to an earlier state, `warning_of_return` names these groups.
        """
        if not self.visited or self.returning is not None:
            return None
        named, are, ends = self._visits()
        return (
            f"{named} {are} probably {ends} of other branches: the order of the cells ends there, or these cells are "
            f"about as far from {self.labels[0]!r} as those of {self.labels[-1]!r}; no cell develops from {named} into "
            f"{self.labels[-1]!r} in this case, so do not name {named} with --via"
        )

    def note_of_avoided(self) -> str | None:
        """Say which fates the trajectory avoids; return None if there are none.

        Fates toward which the trajectory leads all the same are named in `warning_of_sisters`.
        """
        avoided = [repr(group) for group in self.avoided if group not in {*self.sisters, *self.beyond}]
        if not avoided:
            return None
        return (
            "the path with the least change of expression leads through cells that develop into "
            f"{' or '.join(avoided)} rather than {self.labels[-1]!r}; the trajectory was computed again and avoids "
            "these cells"
        )

    def warning_of_turning(self) -> str | None:
        """Warn of a trajectory that goes back along an order of the cells; return None if it does not go back."""
        if self.turning is None:
            return None
        step, root = self.turning
        if step == len(self.z_tk) - 1:
            return (
                f"the trajectory goes back toward {root!r}, where an order of scvae pseudotime in the data begins: if "
                f"cells develop from {root!r}, it runs against the direction in which they develop, so exchange its "
                "start and its end; if they do not, compute scvae pseudotime again from the right root"
            )
        where = f" (near {group!r})" if (group := self.steps.group_t[step]) else ""
        return (
            f"up to step {step}{where}, the trajectory goes back toward {root!r}, where an order of scvae pseudotime "
            f"in the data begins, and then it goes forward: if cells develop from {root!r}, the trajectory joins two "
            f"ends through their progenitors, and no cell develops along this path, so start at {root!r}; if they do "
            "not, compute scvae pseudotime again from the right root"
        )

    def warning_of_groups(self) -> str | None:
        """Warn of groups that contain many cells of the trajectory although the trajectory does not pass the groups."""
        known = {*self.labels, *self.steps.groups_passed()}
        others = {group: n for group, n in self.group_sizes.items() if group not in known}
        n_cells = int(np.isfinite(self.pseudotime_n).sum())
        if sum(others.values()) <= _OTHERS * n_cells:
            return None
        named = ", ".join(f"{n:,} of {group!r}" for group, n in list(others.items())[:3])
        n_more = len(others) - 3
        more = f" and {n_more} other {noun(n_more, 'group')}" if n_more > 0 else ""
        return (
            f"{sum(others.values()) / n_cells:.0%} of the {n_cells:,} cells of the trajectory belong to groups that "
            f"the trajectory does not pass: {named}{more}; the expression of these cells may differ from the decoded "
            "expression"
        )

    def _remedy(self, off_t: np.ndarray, last: int) -> str:
        """Say how to avoid steps where no cells were observed."""
        if self.kind == ASCENT:
            if off_t[0] == 0:
                return "few cells are similar to the start: choose another --group or --from-cell"
            return "without --unconstrained, the trajectory stays in regions with cells"
        if self.kind != "geodesic":
            return "--path geodesic stays in regions with cells where possible"
        if np.mean(off_t % last == 0) <= 0.5:
            return "collect cells of the states in between, or name an intermediate group with --via"
        if self.endpoint == "density":
            return "few cells are similar to the ends of the trajectory: choose other ends"
        return "few cells are similar to the ends of the trajectory: use --endpoint density"

    def slots(self, names: SlotNames, file_genes: np.ndarray) -> list[Slot]:
        """List the slots of the data to which the trajectory is written, with NaN for genes that the model lacks."""
        name = self.name
        column = {gene: i for i, gene in enumerate(self.genes)}
        columns_f = np.asarray([column.get(gene, -1) for gene in file_genes])

        def genes_by_steps(value_tg: np.ndarray) -> np.ndarray:
            refuse_not_finite(value_tg, f"varm/{names.path_genes(name)}")
            value_ft = np.full((len(file_genes), len(value_tg)), np.nan, dtype=np.float32)
            value_ft[columns_f >= 0] = value_tg.T[columns_f[columns_f >= 0]]
            return value_ft

        low, high = names.path_band(name)
        return [
            Slot(group="uns", key=names.path_latent(name), value=self._facts()),
            Slot(group="varm", key=names.path_genes(name), value=genes_by_steps(self.mean_tg), may_lack=True),
            Slot(group="varm", key=low, value=genes_by_steps(self.low_tg), may_lack=True),
            Slot(group="varm", key=high, value=genes_by_steps(self.high_tg), may_lack=True),
            Slot(group="obs", key=names.pseudotime(name), value=self.pseudotime_n, may_lack=True),
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
            facts["cells_of_groups"] = {
                "names": np.asarray(list(self.group_sizes), dtype=object),
                "sizes": np.asarray(list(self.group_sizes.values()), dtype=int),
            }
            facts |= {"nearest_group": steps.group_t, "nearest_group_share": steps.group_share_t}
        if self.bundle_ptk is not None:
            facts["bundle"] = self.bundle_ptk
        return facts


def default_name(labels: Sequence[str]) -> str:
    """Make the name of a trajectory from its waypoints, or from its two ends if there are more than three waypoints.

    >>> default_name(["HSC", "CD4+ T"])
    'HSC_to_CD4_T'
    """
    labels = labels if len(labels) < 4 else [labels[0], labels[-1]]
    return "_to_".join(slug(label) for label in labels)
