"""The steps of `de`, and what the command line prints about the result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.atomic import check_writable, replacing
from scvae_cli.data.counts import read_rows, types_of_features
from scvae_cli.data.gene_names import gene_names
from scvae_cli.data.obs_columns import is_missing
from scvae_cli.data.slots import Slot
from scvae_cli.errors import ConfigError, DataError
from scvae_cli.question import Question
from scvae_cli.tools.de.comparison import OtherGenes, differential_expression
from scvae_cli.tools.de.contrast import REST, Contrast
from scvae_cli.tools.de.donor_columns import warning_of_donors
from scvae_cli.tools.de.options import DeOptions, compared_with_itself
from scvae_cli.tools.de.result import COUNTED, DifferentialExpression
from scvae_cli.tools.de.text import SHOWN_GENES, text_of, warnings_of_replicates
from scvae_cli.verb import Request

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GENE_COLUMNS = (
    "gene", "source", "change", "low", "high", "bound", "probability", "expected_fdr", "false_sign", "estimate",
    "error", "raw", "mean", "reference_mean", "called",
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
            raise DataError(f"{table} exists", "use --force to replace the file, or choose another name")

    def prepare(self) -> None:
        options, session = self.options, self.session
        if not session.model.of_counts:
            raise ConfigError(
                "differential expression needs a model of counts, but this model describes real numbers",
                "train a model on the raw counts",
            )
        # `within` holds the labels as the data spell them, and `inside` holds the indices of the cells with these
        # labels.
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
                    "there are no other cells to compare the group with; choose another column",
                )
        replicate_n = None
        if options.replicate_key is not None:
            replicate_n = session.labels(options.replicate_key, purpose="--replicate-key")
        whole = Contrast(
            groupby=options.groupby,
            group=group,
            reference=reference,
            group_cells=np.intersect1d(cells[0], inside),
            reference_cells=np.intersect1d(cells[1], inside),
            replicate_key=options.replicate_key,
            replicate_n=replicate_n,
        )
        self.n_unlabeled = 0 if replicate_n is None else sum(label is None for label in replicate_n[whole.cells])
        self.contrast = whole.drawn(options.max_cells, options.seed)

    @property
    def run(self) -> str:
        verb = self.request.verb.name
        return verb if self.options.name is None else f"{verb}_{self.options.name}"

    def made_of(self) -> dict[str, Any] | None:
        return None if self.options.name is not None else {"groupby": self.options.groupby} | self._labels()

    def _labels(self) -> dict[str, Any]:
        """Return the labels of the compared groups, spelled as in the data."""
        reference = None if self.options.reference is None else self.contrast.reference
        return {"group": self.contrast.group, "reference": reference, "within": self.within}

    @property
    def _key(self) -> str:
        return self.names.comparison(self.options.name)

    def _named(self, result: DifferentialExpression) -> DifferentialExpression:
        """Return the result with the gene names that are shown to users."""
        names = gene_names(self.session.store, self.options.gene_symbols, ids=result.genes)
        return replace(result, genes=tuple(names.shown(result.genes)))

    def planned(self) -> list[str]:
        return [f"uns/{self._key}"]

    def answer(self) -> DifferentialExpression:
        session, progress = self.session, self.shell.progress
        return differential_expression(
            session.model, session.counts, self.contrast, self.options, others=self._other_genes(), progress=progress
        )

    def _other_genes(self) -> OtherGenes | None:
        """Read the counts of the genes that the model lacks, in the compared cells."""
        session, source = self.session, self.session.counts.source
        names = session.store.matrix_genes(source)
        # `adata.raw` may contain genes that are not in `var_names`.
        features = types_of_features(session.store)
        genes = session.store.gene_names if features is None else session.store.gene_names[features.are_genes]
        wanted = set(genes) - set(session.model.genes)
        columns = np.flatnonzero([name in wanted for name in names])
        if not len(columns):
            return None
        rows = np.unique(self.contrast.cells)
        cells, rounding = np.flatnonzero(session.kept)[rows], session.counts.rounding
        matrix = read_rows(session.store, source, cells, columns, rounding=rounding)
        return OtherGenes(names=tuple(map(str, names[columns])), matrix=matrix, rows=rows)

    def slots(self, result: DifferentialExpression) -> list[Slot]:
        return result.slots(self.names, self.session.store.gene_names, self.options.name)

    @contextlib.contextmanager
    def files(self, result: DifferentialExpression) -> Iterator[None]:
        if self.options.table is None:
            yield
            return
        import pandas as pd

        # The untested genes come last.
        rows = np.concatenate([result.ranked, np.flatnonzero(~result.tested)])
        with replacing(self.options.table, force=self.options.force) as sibling:
            pd.DataFrame(self._named(result).columns()).iloc[rows].to_csv(sibling, index=False)
            yield

    def record(self, result: DifferentialExpression) -> dict[str, Any]:
        return super().record(result) | self._labels()

    def warnings(self, result: DifferentialExpression) -> Sequence[str]:
        warned = warnings_of_replicates(result)
        if self.n_unlabeled:
            key = self.options.replicate_key
            warned.append(f"left out: {amount(self.n_unlabeled, 'cell')} without a value in obs[{key!r}]")
        if result.replicates is None:
            sides = (self.contrast.group_cells, self.contrast.reference_cells)
            warning = warning_of_donors(self.session, sides, groupby=self.options.groupby)
            warned += [] if warning is None else [warning]
        if self.writes and (how := self._how_to_make_categories()) is not None:
            groupby = self.options.groupby
            column = f'adata.obs["{groupby}"]'
            warned.append(
                f"scanpy's plots need categories of text in obs[{groupby!r}]. Convert the column: {column} = "
                f"{column}{how}"
            )
        return warned

    def _how_to_make_categories(self) -> str | None:
        """Return Python code that converts the column of groups to text categories, or None if the column has text."""
        store, key = self.session.store, self.options.groupby
        values = store.obs_column(key)
        present = values[~is_missing(values)]
        if not len(present) or isinstance(present[0], str | bytes):
            return None
        # scvae writes whole numbers in labels without decimals: the label of the group 1.0 is "1".
        fractional = isinstance(present[0], float | np.floating)
        if store.obs_categories(key) is not None:
            return ".cat.rename_categories('{:g}'.format)" if fractional else ".cat.rename_categories(str)"
        whole = '.astype("Int64")' if fractional else ""
        return f'{whole}.astype("string").astype("category")'

    def figure(self, result: DifferentialExpression) -> Figure:
        from scvae_cli.tools.de.figure import de_figure

        return de_figure(self._named(result))

    def facts(self, result: DifferentialExpression) -> dict[str, Any]:
        contrast, called, columns = result.contrast, result.called, self._named(result).columns()
        facts: dict[str, Any] = {"name": self.options.name, "groupby": self.options.groupby, "group": contrast.group}
        facts |= {"reference": contrast.reference, "within": self.within}
        facts |= {name: getattr(result, name) for name in ("n_group", "n_reference", "n_left_out")}
        facts |= {"n_unlabeled": self.n_unlabeled}
        facts |= {"replicates": None if result.replicates is None else asdict(result.replicates)}
        facts |= {"threshold": self.options.threshold, "fdr": self.options.fdr, "centre": result.centre}
        facts |= {name: getattr(result, name) for name in ("common_change", "near_common_share", "unchanged_share")}
        facts |= {"n_tested": int(result.tested.sum()), "n_genes": len(self.session.store.gene_names)}
        facts |= {"n_counted": int((result.tested & (result.source_g == COUNTED)).sum()), "sort": self.options.sort}
        facts |= {"called": int(called.sum()), "up": int((called & (result.change_g > 0)).sum())}
        facts |= {"down": int((called & (result.change_g < 0)).sum())}
        shown = result.ranked[: max(SHOWN_GENES, called.sum())]
        return facts | {"genes": [{name: columns[name][g] for name in _GENE_COLUMNS} for g in shown]}

    def text(self, result: DifferentialExpression, facts: dict[str, Any]) -> str:
        return text_of(self._named(result), facts)

    def next_step(self, result: DifferentialExpression) -> str:
        # pvals_adj holds the expected false discovery rates.
        cutoff = f", pval_cutoff={self.options.fdr:g}" if result.called.any() else ""
        return f'sc.get.rank_genes_groups_df(adata, group="{result.contrast.group}", key="{self._key}"{cutoff})'
