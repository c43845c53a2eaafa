"""`pseudotime` as the driver runs it, and what the command line shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scvae_cli.data.slots import Slot
from scvae_cli.question import Question
from scvae_cli.tools.pseudotime.options import PseudotimeOptions
from scvae_cli.tools.pseudotime.ordering import pseudotime
from scvae_cli.tools.pseudotime.result import Pseudotime, default_name


class OrderCells(Question[PseudotimeOptions, Pseudotime]):
    """Order the cells from a root."""

    def prepare(self) -> None:
        """Find the cells of the root and of the ends."""
        options = self.options
        label = options.root_cell or options.root
        assert label is not None, "checked by the options"
        by_group = options.root_cell is None
        [self.root] = self.session.populations([label], groupby=options.groupby if by_group else None)
        self.ends = self.session.populations(options.ends, groupby=options.groupby) if options.ends else []
        self.name = options.name or default_name(label)

    @property
    def run(self) -> str:
        """Orders stand side by side by name."""
        return f"{self.request.verb.name}_{self.name}"

    def planned(self) -> list[str]:
        """Slots under the name; without ends there are no branches."""
        return self.names.written_by("pseudotime", self.name)[: None if self.ends else 2]

    def made_of(self) -> dict[str, Any] | None:
        """A default name may be the same for two roots."""
        return None if self.options.name else {"root": self.root.label}

    def answer(self) -> Pseudotime:
        """Order the cells."""
        return pseudotime(
            self.session.model,
            self.session.counts,
            self.root,
            self.ends,
            self.options,
            name=self.name,
            cells=self.session.cells,
            progress=self.shell.progress,
        )

    def slots(self, result: Pseudotime) -> list[Slot]:
        """Order, distances, and branches."""
        return result.slots(self.names)

    def record(self, result: Pseudotime) -> dict[str, Any]:
        """With the name and the root that the options stand for."""
        return super().record(result) | {"name": self.name, "root": self.root.label}

    def warnings(self, result: Pseudotime) -> Sequence[str]:
        """Whether the neighbor graph is disconnected."""
        warning = result.warning()
        return [] if warning is None else [warning]

    def facts(self, result: Pseudotime) -> dict[str, Any]:
        """Root, ends, and the sizes of branches."""
        return {
            "name": self.name,
            "root": result.root,
            "ends": result.ends,
            "root_cells": result.root_cells,
            "n_cells": len(result.pseudotime_n),
            "branches": result.branch_sizes(),
            "n_components": result.n_components,
        }

    def text(self, result: Pseudotime, facts: dict[str, Any]) -> str:
        """The same in words."""
        lines = [
            f"ordered {facts['n_cells']:,} cells from {result.root}; largest distance {result.distance_n.max():.1f} "
            f"{self.session.distance_unit}"
        ]
        return "\n".join(lines + [f"{branch:<30}{size:>10,} cells" for branch, size in facts["branches"].items()])

    def next_step(self, result: Pseudotime) -> str:  # noqa: ARG002
        """Color a UMAP by it."""
        return f'sc.pl.umap(adata, color="{self.names.pseudotime(self.name)}")'
