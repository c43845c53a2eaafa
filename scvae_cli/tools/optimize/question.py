"""The steps of `optimize`, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.slots import Slot
from scvae_cli.tools.optimize.optimization import optimize
from scvae_cli.tools.optimize.options import OptimizeOptions
from scvae_cli.tools.optimize.result import Optimization, Start
from scvae_cli.tools.trajectory.question import AlongTrajectory
from scvae_cli.tools.trajectory.result import Trajectory

_ENDS = {
    "maximum": "a local maximum of the score",
    "max_length": "its largest length",
    "max_steps": "the largest number of optimization steps",
}


class Optimize(AlongTrajectory[OptimizeOptions, Optimization]):
    """Find a trajectory along which the score of a gene program increases."""

    def prepare(self) -> None:
        options = self.options
        self.name = options.result_name
        genes = self.session.genes
        # The options with the gene names of the model, and the options with the gene names that are printed.
        self.by_id = _renamed(options, genes.ids_of)
        self.shown = _renamed(self.by_id, lambda ids: tuple(genes.shown(ids)))
        self.groups_key = options.groupby
        self.groups_n = None if options.groupby is None else self.session.labels(options.groupby)
        label = options.from_cell or options.group
        assert label is not None, "OptimizeOptions.check requires a start"
        groupby = None if options.from_cell is not None else options.groupby
        [self.start] = self.session.populations([label], groupby=groupby)

    def answer(self) -> Optimization:
        target = self.shown.target
        return optimize(self.session, self.start, self.by_id, name=self.name, target=target, groups_n=self.groups_n)

    def trajectory_of(self, result: Optimization) -> Trajectory:
        return result.trajectory

    def score_of(self, result: Optimization) -> np.ndarray:
        return result.score_t

    def slots(self, result: Optimization) -> list[Slot]:
        return result.slots(self.names, self.session.store.gene_names)

    def warnings(self, result: Optimization) -> Sequence[str]:
        return result.warnings()

    def notes(self, result: Optimization) -> Sequence[str]:
        return result.notes()

    def facts(self, result: Optimization) -> dict[str, Any]:
        return {
            "name": self.name,
            "start": self.start.label,
            "toward": self.shown.increased,
            "away": self.shown.away,
            "n_steps": self.options.n_steps,
            "length": result.trajectory.steps.length,
            "score_start": float(result.score_t[0]),
            "score_end": float(result.score_t[-1]),
            "best_score": result.best_score,
            "best_cell": result.best_cell,
            "share_below": result.share_below,
            "extrapolated_from": result.extrapolated_from,
            "stopped": result.stopped,
            "through_cells": result.through_cells,
            "start_cell": result.starts[0].cell,
            "starts": [start._asdict() for start in result.starts],
            **self.shared_facts(result.trajectory),
            "genes": self.gene_table(result.trajectory),
        }

    def text(self, result: Optimization, facts: dict[str, Any]) -> str:
        lines = [
            f"{facts['start']} → {self.shown.target}: {amount(facts['n_steps'], 'step')}, length {facts['length']:.1f} "
            f"{self.session.distance_unit}; {facts['n_cells_on_path']:,} of {facts['n_cells']:,} cells belong to the "
            "trajectory",
            f"score {facts['score_start']:.2f} → {facts['score_end']:.2f}; best cell {facts['best_score']:.2f}; "
            f"{facts['share_below']:.1%} of the cells have a lower score than the end",
            f"ends at {_ENDS[facts['stopped']]}",
            *self._starts(result),
        ]
        return "\n".join([*lines, *self.shared_lines(result.trajectory, facts)])

    def _starts(self, result: Optimization) -> list[str]:
        """Say at which cell the trajectory starts, and which scores gradient ascent from other cells reaches."""
        first, *others = result.starts
        typical = "" if self.options.from_cell is not None else f", a typical cell of {self.start.label}"
        lines = [f"starts at {first.cell}{typical}"]
        if result.through_cells:
            lines.append(
                f"gradient ascent alone ends at a score of {first.end:.2f}, so the trajectory leads through cells to a "
                "higher maximum"
            )
        if others:
            lines.append(f"other cells of {self.start.label} as the start (score → end): {_listed(others)}")
        return lines


def _listed(starts: Sequence[Start]) -> str:
    return ", ".join(f"{start.cell} {start.score:.2f} → {start.end:.2f}" for start in starts)


def _renamed(options: OptimizeOptions, rename: Callable[[tuple[str, ...]], tuple[str, ...]]) -> OptimizeOptions:
    """Rename the genes of a gene program."""
    toward = options.toward if callable(options.toward) else rename(options.toward)
    return replace(options, toward=toward, away=rename(options.away))
