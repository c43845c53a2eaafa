"""The steps of `pseudotime`, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae_cli.amounts import amount, noun
from scvae_cli.errors import ConfigError
from scvae_cli.question import Question
from scvae_cli.text_table import table_lines
from scvae_cli.tools.pseudotime.options import PseudotimeOptions
from scvae_cli.tools.pseudotime.ordering import pseudotime
from scvae_cli.tools.pseudotime.result import Pseudotime, default_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class OrderCells(Question[PseudotimeOptions, Pseudotime]):
    """Order the cells by their distance from a root."""

    def prepare(self) -> None:
        options = self.options
        label = options.root_cell or options.root
        assert label is not None, "PseudotimeOptions.check requires a root"
        groupby = options.groupby if options.root_cell is None else None
        [self.root] = self.session.populations([label], groupby=groupby)
        self.ends = self.session.populations(options.ends, groupby=options.groupby) if options.ends else []
        # Labels that are spelled differently may mean the same group.
        named = [population.label for population in (*([self.root] if groupby else []), *self.ends)]
        for group in named:
            if named.count(group) > 1:
                raise ConfigError(f"the group {group!r} was named twice", "--root and --to must name different groups")
        self.name = options.name or default_name(label)
        self.genes = self.session.genes.ids_of(options.genes)

    @property
    def run(self) -> str:
        return f"{self.request.verb.name}_{self.name}"

    def planned(self) -> list[str]:
        names, name = self.names, self.name
        order = [f"obs/{names.pseudotime(name)}", f"obs/{names.root_distance(name)}"]
        return [*order, f"obs/{names.branch(name)}", f"obsm/{names.end_weights(name)}"] if self.ends else order

    def made_of(self) -> dict[str, Any] | None:
        return None if self.options.name else {"root": self.root.label}

    def answer(self) -> Pseudotime:
        groupby = self.options.groupby
        return pseudotime(
            self.session,
            self.root,
            self.ends,
            name=self.name,
            seed=self.options.seed,
            endpoint=self.options.endpoint,
            groups_n=None if groupby is None else self.session.labels(groupby),
        )

    def record(self, result: Pseudotime) -> dict[str, Any]:
        return super().record(result) | {"name": self.name, "root": self.root.label}

    def warnings(self, result: Pseudotime) -> Sequence[str]:
        return result.warnings()

    def facts(self, result: Pseudotime) -> dict[str, Any]:
        return {
            "name": self.name,
            "root": result.root,
            "ends": result.ends,
            "root_cells": result.root_cells,
            "n_cells": len(result.pseudotime_n),
            "branches": result.branch_sizes(),
            "root_branches": result.root_branches,
            "n_components": result.n_components,
            "longest_steps": {end: step.share for end, step in zip(result.ends, result.longest_steps, strict=True)},
            "unnamed_ends": dict(result.unnamed),
        }

    def text(self, result: Pseudotime, facts: dict[str, Any]) -> str:
        lines = [
            (
                f"ordered {amount(facts['n_cells'], 'cell')} from {result.root}; largest distance "
                f"{result.distance_n.max():.1f} {self.session.distance_unit}"
            )
        ]
        branches = [(branch, f"{size:,}", noun(size, "cell")) for branch, size in facts["branches"].items()]
        return "\n".join(lines + (table_lines(branches, left=(0, 2)) if branches else []))

    def figure(self, result: Pseudotime) -> Figure:
        from scvae_cli.report.column_colors import column_colors
        from scvae_cli.tools.pseudotime.figure import pseudotime_figure

        session, groupby = self.session, self.options.groupby
        xy_n2, axes = session.umap(), ("UMAP 1", "UMAP 2")
        if xy_n2 is None:
            xy_n2, axes = session.position_n2, ("latent axis 1", "latent axis 2")
        counts = session.counts
        columns = [session.model.genes.index(gene) for gene in self.genes]
        count_nc = counts.matrix[:, columns].toarray() / counts.library_n[:, None] * np.median(counts.library_n)
        return pseudotime_figure(
            result,
            xy_n2,
            axes,
            groups_n=None if groupby is None else session.labels(groupby),
            group_color=None if groupby is None else column_colors(session.store, groupby),
            genes=session.genes.shown(self.genes),
            count_nc=count_nc,
            unit="counts at the same library size" if session.model.of_counts else "values",
        )

    def next_step(self, result: Pseudotime) -> str:  # noqa: ARG002  # an argument of every `Question`
        return self.on_umap(self.names.pseudotime(self.name))
