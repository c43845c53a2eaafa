"""`de` as the driver runs it, and what the command line shows of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scvae_cli.data.atomic import check_writable, replacing
from scvae_cli.data.slots import Slot
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.latent.populations import Population
from scvae_cli.question import Question
from scvae_cli.tools.de.comparison import differential_expression, refuse_real
from scvae_cli.tools.de.options import DeOptions, compared_with_itself
from scvae_cli.tools.de.result import REST, Contrast, DifferentialExpression
from scvae_cli.verb import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_GENES = 20
# Smaller rates depend on the far tails of normal distributions, which say little about real data.
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
        """The table must be a new .csv file."""
        table: Path | None = request.options.table
        if table is None:
            return
        if table.suffix.lower() != ".csv":
            raise ConfigError(f"{table} does not end in .csv", "--table takes a file that ends in .csv")
        check_writable(table)
        if table.exists() and not request.options.force:
            raise DataError(f"{table} exists", "use --force to replace it, or another name")

    def prepare(self) -> None:
        """Find the cells of both groups."""
        refuse_real(self.session.model)
        options, session = self.options, self.session
        inside = np.ones(session.counts.n_cells, dtype=bool)
        # Labels as the data spells them.
        self.within: dict[str, str] = {}
        for key, value in (options.within or {}).items():
            [part] = session.populations([value], groupby=key)
            self.within[key] = part.label
            inside &= self._mask(part)
        named = [options.group] if options.reference is None else [options.group, options.reference]
        groups = session.populations(named, groupby=options.groupby)
        group, reference = groups[0].label, REST if options.reference is None else groups[-1].label
        if options.reference is not None and group == reference:
            raise compared_with_itself(group)
        masks = [self._mask(one) for one in groups]
        if options.reference is None:
            labeled = np.asarray([label is not None for label in session.labels(options.groupby)])
            masks.append(labeled & ~masks[0])
            if not masks[1].any():
                raise DataError(
                    f"{session.store.title}: all cells have obs[{options.groupby!r}] == {group!r}",
                    "there are no other cells to compare them with; choose another column",
                )
        self.contrast = Contrast(
            groupby=options.groupby,
            group=group,
            reference=reference,
            group_cells=np.flatnonzero(masks[0] & inside),
            reference_cells=np.flatnonzero(masks[1] & inside),
        )

    def _mask(self, group: Population) -> np.ndarray:
        return np.isin(np.arange(self.session.counts.n_cells), group.cells)

    def _named(self, result: DifferentialExpression) -> DifferentialExpression:
        """The result with genes named for people."""
        return replace(result, genes=tuple(self.session.genes.shown(result.genes)))

    def answer(self) -> DifferentialExpression:
        """Estimate both groups' means, and shrink their ratios."""
        session = self.session
        return differential_expression(
            session.model, session.counts, self.contrast, self.options, progress=self.shell.progress
        )

    def slots(self, result: DifferentialExpression) -> list[Slot]:
        """The table of genes, as scanpy keeps it."""
        return result.slots(self.names, self.session.store.gene_names)

    def files(self, result: DifferentialExpression) -> AbstractContextManager[None]:
        """The table, if asked for."""
        table = self.options.table
        return contextlib.nullcontext() if table is None else _table_file(self._named(result), table)

    def record(self, result: DifferentialExpression) -> dict[str, Any]:
        """Options, with the labels as the data spells them."""
        reference = None if self.options.reference is None else result.contrast.reference
        labels = {"group": result.contrast.group, "reference": reference, "within": self.within}
        return super().record(result) | labels

    def figure(self, result: DifferentialExpression) -> Figure:
        """Volcano plot, intervals and calls."""
        from scvae_cli.tools.de.figure import de_figure

        return de_figure(self._named(result))

    def facts(self, result: DifferentialExpression) -> dict[str, Any]:
        """Sizes, the common change, and the called genes."""
        options, called, columns = self.options, result.called, self._named(result).columns()
        shown = result.order[: max(SHOWN_GENES, called.sum())]
        return {
            "groupby": options.groupby,
            "group": result.contrast.group,
            "reference": result.contrast.reference,
            "within": self.within,
            "n_group": result.n_group,
            "n_reference": result.n_reference,
            "n_left_out": result.n_left_out,
            "threshold": options.threshold,
            "fdr": options.fdr,
            "centre": result.centre,
            "common_change": result.common_change,
            "near_common_share": result.near_common_share,
            "unchanged_share": result.unchanged_share,
            "n_tested": int(result.tested.sum()),
            "n_genes": len(self.session.store.gene_names),
            "called": int(called.sum()),
            "up": int((called & (result.change_g > 0)).sum()),
            "down": int((called & (result.change_g < 0)).sum()),
            "genes": [{name: columns[name][g] for name in _GENE_COLUMNS} for g in shown],
        }

    def text(self, result: DifferentialExpression, facts: dict[str, Any]) -> str:  # noqa: ARG002
        """The same in words."""
        inside = "".join(f", {key} {value}" for key, value in facts["within"].items())
        lines = [
            f"{facts['group']} ({facts['n_group']:,} cells) against {facts['reference']} ({facts['n_reference']:,})"
            f"{inside}: {facts['called']:,} of {facts['n_tested']:,} genes changed by more than "
            f"{facts['threshold']:g} (log2), {facts['up']:,} up and {facts['down']:,} down, at an expected FDR of "
            f"{facts['fdr']:g}"
        ]
        if facts["n_left_out"]:
            lines.append(f"left out: {facts['n_left_out']:,} cells of batches without two cells of each group")
        use = (
            "it was subtracted, so the changes below are relative to it"
            if facts["centre"] == "bulk"
            else "it was not subtracted, so the changes below are of each gene's share of the counts"
        )
        lines.append(
            f"common change of the genes: {facts['common_change']:+.2f} (log2), with {facts['near_common_share']:.0%} "
            f"of the genes within 0.25 of it; {use}"
        )
        if not_tested := facts["n_genes"] - facts["n_tested"]:
            lines.append(f"not tested: {not_tested:,} genes that the model lacks or that have no counts in these cells")
        lines += _gene_lines(facts["genes"][:SHOWN_GENES])
        return "\n".join(
            [*lines, "(change and raw ratio in log2, the raw ratio without model and shrinkage; means in counts at the "
             "median library size)"]
        )  # fmt: skip

    def next_step(self, result: DifferentialExpression) -> str:
        """Read the table with scanpy."""
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


@contextlib.contextmanager
def _table_file(result: DifferentialExpression, table: Path) -> Iterator[None]:
    """Write all genes, the most certain first and untested ones last; the file appears when the block is left."""
    import pandas as pd

    frame = pd.DataFrame(result.columns())
    with replacing(table) as sibling:
        rows = np.concatenate([result.order, np.flatnonzero(~result.tested)])
        frame.iloc[rows].to_csv(sibling, index=False)
        yield
