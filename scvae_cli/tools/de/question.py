"""How `de` runs, and what the command line prints about the result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scvae_cli.data.atomic import check_writable, replacing
from scvae_cli.data.slots import Slot
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.question import Question
from scvae_cli.tools.de.comparison import differential_expression
from scvae_cli.tools.de.options import DeOptions, compared_with_itself
from scvae_cli.tools.de.result import REST, Contrast, DifferentialExpression
from scvae_cli.verb import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_GENES = 20
# Smaller rates are printed as "<1e-06". They depend on the far tails of normal distributions and say little about real
# data.
_LEAST_SHOWN = 1e-6
_GENE_COLUMNS = (
    "gene", "change", "low", "high", "probability", "expected_fdr", "false_sign", "estimate", "error", "raw", "mean",
    "reference_mean",
)  # fmt: skip


class De(Question[DeOptions, DifferentialExpression]):
    """Compare two groups of cells."""

    extra_files: ClassVar[tuple[str, ...]] = ("table",)

    @classmethod
    def check_files(cls, request: Request) -> None:
        table: Path | None = request.options.table
        if table is None:
            return
        if table.suffix.lower() != ".csv":
            raise ConfigError(f"{table} does not end in .csv", "--table takes a file that ends in .csv")
        check_writable(table)
        if table.exists() and not request.options.force:
            raise DataError(f"{table} exists", "use --force to replace it, or another name")

    def prepare(self) -> None:
        options, session = self.options, self.session
        if not session.model.of_counts:
            raise ConfigError(
                "differential expression needs a model of counts, and this one models real numbers",
                "train a model on the raw counts",
            )
        # Labels as the data spells them, and the cells that have them.
        self.within: dict[str, str] = {}
        inside = np.arange(session.counts.n_cells)
        for key, value in (options.within or {}).items():
            [part] = session.populations([value], groupby=key)
            self.within[key] = part.label
            inside = np.intersect1d(inside, part.cells)
        named = [options.group] if options.reference is None else [options.group, options.reference]
        groups = session.populations(named, groupby=options.groupby)
        group, reference = groups[0].label, REST if options.reference is None else groups[-1].label
        if options.reference is not None and group == reference:
            raise compared_with_itself(group)
        cells = [one.cells for one in groups]
        if options.reference is None:
            labeled = np.flatnonzero([label is not None for label in session.labels(options.groupby)])
            cells.append(np.setdiff1d(labeled, cells[0]))
            if not len(cells[1]):
                raise DataError(
                    f"{session.store.title}: all cells have obs[{options.groupby!r}] == {group!r}",
                    "there are no other cells to compare them with; choose another column",
                )
        self.contrast = Contrast(
            groupby=options.groupby,
            group=group,
            reference=reference,
            group_cells=np.intersect1d(cells[0], inside),
            reference_cells=np.intersect1d(cells[1], inside),
        )

    def _named(self, result: DifferentialExpression) -> DifferentialExpression:
        """Return the result with the gene names that are shown to users."""
        return replace(result, genes=tuple(self.session.genes.shown(result.genes)))

    def planned(self) -> list[str]:
        return [f"uns/{self.names.rank_genes_groups}"]

    def answer(self) -> DifferentialExpression:
        session, progress = self.session, self.shell.progress
        return differential_expression(session.model, session.counts, self.contrast, self.options, progress=progress)

    def slots(self, result: DifferentialExpression) -> list[Slot]:
        return result.slots(self.names, self.session.store.gene_names)

    @contextlib.contextmanager
    def files(self, result: DifferentialExpression) -> Iterator[None]:
        if self.options.table is None:
            yield
            return
        import pandas as pd

        # The most certain genes first, the untested ones last.
        rows = np.concatenate([result.order, np.flatnonzero(~result.tested)])
        with replacing(self.options.table) as sibling:
            pd.DataFrame(self._named(result).columns()).iloc[rows].to_csv(sibling, index=False)
            yield

    def record(self, result: DifferentialExpression) -> dict[str, Any]:
        reference = None if self.options.reference is None else result.contrast.reference
        labels = {"group": result.contrast.group, "reference": reference, "within": self.within}
        return super().record(result) | labels

    def figure(self, result: DifferentialExpression) -> Figure:
        from scvae_cli.tools.de.figure import de_figure

        return de_figure(self._named(result))

    def facts(self, result: DifferentialExpression) -> dict[str, Any]:
        contrast, called, columns = result.contrast, result.called, self._named(result).columns()
        facts: dict[str, Any] = {"groupby": self.options.groupby, "group": contrast.group}
        facts |= {"reference": contrast.reference, "within": self.within}
        facts |= {name: getattr(result, name) for name in ("n_group", "n_reference", "n_left_out")}
        facts |= {"threshold": self.options.threshold, "fdr": self.options.fdr, "centre": result.centre}
        facts |= {name: getattr(result, name) for name in ("common_change", "near_common_share", "unchanged_share")}
        facts |= {"n_tested": int(result.tested.sum()), "n_genes": len(self.session.store.gene_names)}
        facts |= {"called": int(called.sum()), "up": int((called & (result.change_g > 0)).sum())}
        facts |= {"down": int((called & (result.change_g < 0)).sum())}
        shown = result.order[: max(SHOWN_GENES, called.sum())]
        return facts | {"genes": [{name: columns[name][g] for name in _GENE_COLUMNS} for g in shown]}

    def text(self, result: DifferentialExpression, facts: dict[str, Any]) -> str:  # noqa: ARG002
        inside = "".join(f", {key} {value}" for key, value in facts["within"].items())
        lines = [
            f"{facts['group']} ({facts['n_group']:,} cells) against {facts['reference']} ({facts['n_reference']:,})"
            f"{inside}: {facts['called']:,} of {facts['n_tested']:,} genes changed by more than "
            f"{facts['threshold']:g} (log2), {facts['up']:,} up and {facts['down']:,} down, at an expected FDR of "
            f"{facts['fdr']:g}"
        ]
        if facts["n_left_out"]:
            lines.append(
                f"left out: {facts['n_left_out']:,} cells in batches with fewer than two cells of one of the groups"
            )
        use = (
            "the common change was subtracted from the changes below"
            if facts["centre"] == "bulk"
            else "the common change was not subtracted: the changes below are those of each gene's share of the counts"
        )
        lines.append(
            f"common change of the genes: {facts['common_change']:+.2f} (log2), with {facts['near_common_share']:.0%} "
            f"of the genes within 0.25 of it; {use}"
        )
        if not_tested := facts["n_genes"] - facts["n_tested"]:
            lines.append(f"not tested: {not_tested:,} genes that the model lacks or that have no counts in these cells")
        lines += _gene_lines(facts["genes"][:SHOWN_GENES])
        return "\n".join(
            [*lines, "(change and raw are log2 ratios; raw uses no model and no shrinkage; means are counts at the "
             "median library size)"]
        )  # fmt: skip

    def next_step(self, result: DifferentialExpression) -> str:
        group, key = result.contrast.group, self.names.rank_genes_groups
        return f'sc.get.rank_genes_groups_df(adata, group="{group}", key="{key}")'


def _gene_lines(rows: list[dict[str, Any]]) -> list[str]:
    width = max(len(row["gene"]) for row in rows) + 2
    lines = [
        f"{'gene':<{width}}{'change':>8}{'90% interval':>17}{'P(changed)':>12}{'exp. FDR':>10}{'raw':>8}{'mean':>9}"
        f"{'reference':>11}"
    ]
    for row in rows:
        fdr = f"{row['expected_fdr']:.2g}" if row["expected_fdr"] >= _LEAST_SHOWN else f"<{_LEAST_SHOWN:g}"
        interval = f"{row['low']:.2f} to {row['high']:.2f}"
        lines.append(
            f"{row['gene']:<{width}}{row['change']:>8.2f}{interval:>17}{row['probability']:>12.4f}{fdr:>10}"
            f"{row['raw']:>8.2f}{row['mean']:>9.3g}{row['reference_mean']:>11.3g}"
        )
    return lines
