"""Implementation of `interpolate`, and the output that all commands with a trajectory have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from scvae_cli.amounts import amount, beside
from scvae_cli.data.atomic import check_new_file, check_writable
from scvae_cli.data.slots import Slot
from scvae_cli.errors import ConfigError
from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.latent.decoding_batch import DecodedWith, decoded_with
from scvae_cli.question import Question
from scvae_cli.text_table import table_lines
from scvae_cli.tools.trajectory.interpolation import interpolate
from scvae_cli.tools.trajectory.options import InterpolateOptions
from scvae_cli.tools.trajectory.recorded_orders import recorded_ends, recorded_orders
from scvae_cli.tools.trajectory.result import Trajectory, default_name
from scvae_cli.verb import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_GENES = 20

AnyOptions = TypeVar("AnyOptions")
Result = TypeVar("Result")


class AlongTrajectory(Question[AnyOptions, Result]):
    """Base class of the commands whose result contains a trajectory."""

    extra_files: ClassVar[tuple[str, ...]] = ("path_out",)
    name: str
    groups_key: str | None
    groups_n: np.ndarray | None

    def trajectory_of(self, result: Result) -> Trajectory:
        """Return the trajectory in a result."""
        raise NotImplementedError

    def score_of(self, result: Result) -> np.ndarray | None:  # noqa: ARG002  # only an optimization has scores
        """Return the score of every step; None for a trajectory without scores."""
        return None

    @classmethod
    def check_files(cls, request: Request) -> None:
        options = request.options
        if options.path_out is not None:
            check_new_file(options.path_out, force=options.force)
            check_writable(options.path_out)

    @property
    def run(self) -> str:
        return f"{self.request.verb.name}_{self.name}"

    def planned(self) -> list[str]:
        names, name = self.names, self.name
        genes = [f"varm/{key}" for key in (names.path_genes(name), *names.path_band(name))]
        return [f"uns/{names.path_latent(name)}", *genes, f"obs/{names.pseudotime(name)}"]

    def slots(self, result: Result) -> list[Slot]:
        return self.trajectory_of(result).slots(self.names, self.session.store.gene_names)

    def files(self, result: Result) -> AbstractContextManager[None]:
        options = self.request.options
        if options.path_out is None:
            return contextlib.nullcontext()
        from scvae_cli.tools.trajectory.steps_file import steps_file

        trajectory, score_t = self.trajectory_of(result), self.score_of(result)
        return steps_file(trajectory, options.path_out, self.names, force=options.force, score_t=score_t)

    def figure(self, result: Result) -> Figure:
        from scvae_cli.tools.trajectory.figure import trajectory_figure

        return trajectory_figure(self.session, self.trajectory_of(result), self.groups_n, self.groups_key)

    def next_step(self, result: Result) -> str:  # noqa: ARG002  # an argument of every `Question`
        return self.on_umap(self.names.pseudotime(self.name))

    def shared_facts(self, trajectory: Trajectory) -> dict[str, Any]:
        """Return the facts that are reported for every trajectory."""
        return {
            "off_manifold": float(trajectory.steps.off_manifold_t.max()),
            "groups_passed": trajectory.steps.groups_passed(),
            "steps_without_cells": None if trajectory.empty is None else list(trajectory.empty),
            "returns": None if trajectory.returning is None else list(trajectory.returning),
            "n_cells": len(trajectory.pseudotime_n),
            "n_cells_on_path": int(np.isfinite(trajectory.pseudotime_n).sum()),
            "groups_on_path": trajectory.group_sizes,
            "decoded_with": asdict(self._decoded_with(trajectory)),
        }

    def _decoded_with(self, trajectory: Trajectory) -> DecodedWith:
        return decoded_with(self.session.model, trajectory.batch_as)

    def gene_table(self, trajectory: Trajectory) -> list[dict[str, Any]]:
        """Return one row for each of the genes that change most."""
        top = trajectory.top_genes(SHOWN_GENES)
        return [
            {
                "gene": name,
                "start": float(trajectory.mean_tg[0, g]),
                "end": float(trajectory.mean_tg[-1, g]),
                "change": float(trajectory.changes.effect_g[g]),
                "direction": str(trajectory.changes.direction_g[g]),
                "monotonicity": float(trajectory.changes.monotonicity_g[g]),
                "switch_step": int(trajectory.changes.switch_g[g]),
            }
            for g, name in zip(top, self.session.genes.shown([trajectory.genes[g] for g in top]), strict=True)
        ]

    def shared_lines(self, trajectory: Trajectory, facts: dict[str, Any]) -> list[str]:
        """Return the lines that are printed for every trajectory."""
        lines = [f"passes {' → '.join(facts['groups_passed'])}"] if facts["groups_passed"] else []
        highest = facts["off_manifold"]
        lines.append(
            f"highest off-manifold score: {beside(highest, OFF_MANIFOLD)} (no cells were observed where the score is "
            f"above {OFF_MANIFOLD})"
        )
        rows = [("gene", "start", "end", "change", "direction", "switch step")]
        for row in facts["genes"]:
            numbers = (f"{row['start']:.3g}", f"{row['end']:.3g}", f"{row['change']:.2f}")
            rows.append((row["gene"], *numbers, row["direction"], str(row["switch_step"])))
        lines += table_lines(rows)
        library = trajectory.library
        size = "the median library size" if library == "median" else f"a library size of {library:g}"
        expected = f"expected counts at {size}" if trajectory.of_counts else "expected values"
        lines.append(f"({expected}; change in {self.session.distance_unit})")
        return lines + self._decoded_with(trajectory).lines


class Interpolate(AlongTrajectory[InterpolateOptions, Trajectory]):
    """Interpolate between groups, cells or time points."""

    def prepare(self) -> None:
        options = self.options
        key = options.time_key
        named = options.groups or options.cells if key is None else self.session.time_points(key)
        self.waypoints = self.session.populations(named, groupby=None if options.cells else key or options.groupby)
        self.labels = [population.label for population in self.waypoints]
        for before, after in pairwise(self.labels):
            if before == after:
                raise ConfigError(f"the trajectory runs from {before!r} to itself", "choose two different ends")
        self.name = options.name or default_name(self.labels)
        self.groups_key = options.groupby or key
        self.groups_n = None if self.groups_key is None else self.session.labels(self.groups_key)

    def made_of(self) -> dict[str, Any] | None:
        return None if self.options.name else {"waypoints": self.labels}

    def answer(self) -> Trajectory:
        return interpolate(
            self.session,
            self.waypoints,
            self.options,
            name=self.name,
            groups_n=self.groups_n,
            orders=recorded_orders(self.session, self.names),
            fates=recorded_ends(self.session, self.names, self.options.groupby),
        )

    def trajectory_of(self, result: Trajectory) -> Trajectory:
        return result

    def record(self, result: Trajectory) -> dict[str, Any]:
        return super().record(result) | {"name": self.name, "waypoints": self.labels}

    def warnings(self, result: Trajectory) -> Sequence[str]:
        return result.warnings()

    def notes(self, result: Trajectory) -> Sequence[str]:
        key = self.options.time_key
        times = None if key is None else f"the time points in obs[{key!r}], in order: {', '.join(self.labels)}"
        return [note for note in (times, result.note_of_avoided()) if note is not None]

    def facts(self, result: Trajectory) -> dict[str, Any]:
        return {
            "name": self.name,
            "waypoints": self.labels,
            "kind": result.kind,
            "n_steps": self.options.n_steps,
            "length": result.steps.length,
            "groups_beyond": list(result.beyond),
            "fates_avoided": list(result.avoided),
            "fates_passed": list(result.sisters),
            "fates_via": list(result.visited),
            "gap": None if result.gap is None else result.gap.share,
            "share_in_other_cloud": dict(result.apart),
            "turns": None if result.turning is None else {"step": result.turning[0], "root": result.turning[1]},
            **self.shared_facts(result),
            "genes": self.gene_table(result),
        }

    def text(self, result: Trajectory, facts: dict[str, Any]) -> str:
        first = (
            f"{' → '.join(self.labels)}: {result.kind}, {amount(facts['n_steps'], 'step')}, length "
            f"{facts['length']:.1f} {self.session.distance_unit}; {facts['n_cells_on_path']:,} of {facts['n_cells']:,} "
            "cells belong to the trajectory"
        )
        return "\n".join([first, *self.shared_lines(result, facts)])
