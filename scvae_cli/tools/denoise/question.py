"""The steps of `denoise`, and what the command line prints about the result."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.config import RunConfig
from scvae_cli.data.slots import Slot
from scvae_cli.errors import DataError
from scvae_cli.latent.decoding_batch import AVERAGE, OBSERVED, DecodedWith, decoded_with
from scvae_cli.question import Question
from scvae_cli.shell_line import python_text
from scvae_cli.text_table import table_lines
from scvae_cli.tools.denoise.denoising import Columns, Denoised, denoise
from scvae_cli.tools.denoise.group_means import FDR, LEAST_CELLS, groups_of
from scvae_cli.tools.denoise.options import DenoiseOptions
from scvae_cli.tools.denoise.plotted_genes import plotted_column, plotted_genes
from scvae_cli.training.recipe import settle

# Largest number of deviating means that are shown on the screen, and largest number in --json.
_SHOWN, _LISTED = 3, 100
# Share of differing means above which advice is shown. After the default training, at most 0.2% of the means differed
# on five data sets, and 0.8% on pbmc4k. On pbmc68k, kang, rnamix, paul15 and pbmc4k, 0.1% to 2.3% differed after 20
# epochs, and 0.1% to 2.2% with two latent dimensions. --estimate cell lowered these shares to a third or less. On
# pbmc4k, more dimensions than by default (1.0%) and more hidden units (0.7%) hardly helped; β = 0.3 gave 0.3%.
MANY = 0.0025


class Denoise(Question[DenoiseOptions, Denoised]):
    """Denoise the counts."""

    def prepare(self) -> None:
        session, options = self.session, self.options
        genes = None if options.genes is None else session.genes.ids_of(options.genes)
        self.genes = genes
        self.columns = Columns.of(session.model, session.store.gene_names, genes, all_genes=options.all_genes)
        self.groupby = options.groupby or self._clusters()
        self.label_n = None if self.groupby is None else session.labels(self.groupby)
        if self.label_n is not None and not groups_of(self.label_n):
            if options.groupby is not None:
                raise DataError(
                    f"{session.store.title}: no group of obs[{options.groupby!r}] has {LEAST_CELLS} cells or more",
                    "the means of smaller groups are too noisy for a comparison; choose another column",
                )
            self.groupby = self.label_n = None

    def _clusters(self) -> str | None:
        """Return the column with the clusters of `embed --leiden`.

        The result is None if the data have no clusters. The result is also None if the batches of the cells were not
        read, because a comparison needs the batches.
        """
        known = self.options.needs_batch or not self.session.model.batches
        return self.names.leiden if known and self.names.leiden in self.session.store.obs_keys else None

    def planned(self) -> list[str]:
        return self.columns.paths(self.names)

    def answer(self) -> Denoised:
        return denoise(
            self.session.model,
            self.session.counts,
            self.columns,
            self.options,
            groupby=self.groupby,
            label_n=self.label_n,
            progress=self.shell.progress,
        )

    def record(self, result: Denoised) -> dict[str, Any]:
        return super().record(result) | {"genes": self.genes, "groupby": self.groupby}

    def slots(self, result: Denoised) -> list[Slot]:
        n_cells, n_genes = result.rows.shape
        mebibytes = result.n_bytes / 2**20
        self.shell.info(f"writing {n_cells:,} × {n_genes:,} values, {mebibytes:,.0f} MiB before compression")
        return result.slots(self.names)

    def facts(self, result: Denoised) -> dict[str, Any]:
        n_cells, n_genes = result.rows.shape[0], len(result.modelled)
        facts: dict[str, Any] = {"n_cells": n_cells, "n_genes": n_genes, "n_genes_modelled": int(result.modelled.sum())}
        facts |= {"n_bytes": result.n_bytes, "decoded_with": asdict(self._decoded_with())}
        return facts | {"group_means": self._comparison(result)}

    def _decoded_with(self) -> DecodedWith:
        batch_as = self.options.batch_as
        return decoded_with(self.session.model, batch_as, usual=OBSERVED if batch_as == OBSERVED else AVERAGE)

    def _comparison(self, result: Denoised) -> dict[str, Any] | None:
        means = result.group_means()
        if means is None:
            return None
        shown = self.session.genes.shown(means.genes)
        worst = [
            {
                "gene": shown[g],
                "group": means.groups[p],
                "n_cells": int(means.n_cells_p[p]),
                "raw": float(means.raw_pg[p, g]),
                "denoised": float(means.denoised_pg[p, g]),
                "error": float(means.error_pg[p, g]),
            }
            for p, g in means.worst[:_LISTED]
        ]
        differ = int(np.sum(means.differs_pg))
        facts: dict[str, Any] = {"groupby": means.groupby, "n_groups": len(means.groups)}
        facts["n_compared"] = means.differs_pg.size
        return facts | {"n_different": differ, "fdr": FDR, "worst": worst}

    def text(self, result: Denoised, facts: dict[str, Any]) -> str:  # noqa: ARG002  # the facts hold all that is shown
        unit = "counts" if self.session.model.of_counts else "values"
        what = "expected counts of single cells" if self.options.estimate == "cell" else f"expected {unit}"
        samples = self.options.n_samples
        how = f"mean of {amount(samples, 'posterior sample')}" if samples else "at the posterior mean"
        lines = [
            f"denoised {amount(facts['n_cells'], 'cell')} × {amount(facts['n_genes_modelled'], 'gene')}: {what}, {how}",
            *self._decoded_with().lines,
        ]
        means = facts["group_means"]
        if means is None:
            return "\n".join(lines)
        other_batch = bool(self.session.model.batches) and self.options.batch_as != OBSERVED
        lines += _comparison_lines(means, own_batches=other_batch)
        if means["n_different"] > MANY * means["n_compared"]:
            lines.append(self._advice())
        return "\n".join(lines)

    def _advice(self) -> str:
        """Say what brings denoised means nearer to raw means, if many of them differ."""
        model, options = self.session.model, self.options
        ways = []
        if not model.vae.n_mapped:
            limit = model.config.train.max_epochs
            if limit is not None and model.facts.get("epochs", 0) >= limit:
                ways.append(f"train longer (the training ended at the limit of --max-epochs, {limit})")
            usual = settle(RunConfig(), model.facts["n_cells"]).model.n_latent or 0
            if model.vae.n_latent < usual:
                ways.append(f"train with more latent dimensions (--n-latent, now {model.vae.n_latent})")
        if model.of_counts and options.estimate == "state":
            ways.append("use --estimate cell, which also uses the counts of each single cell")
        advice = f": {'; or '.join(ways)}" if ways else ""
        return f"  → so many differences show that the model describes some of these groups badly{advice}"

    def warnings(self, result: Denoised) -> list[str]:  # noqa: ARG002  # the warning depends on the model
        if not self.session.model.vae.n_mapped or self.options.batch_as == OBSERVED:
            return []
        return [
            (
                "batches were mapped onto this model, and all cells are decoded in the batch "
                f"{self.options.batch_as!r}. A common batch removes all differences of a mapped batch, including the "
                "effect of a treatment; --batch-as observed keeps these differences"
            )
        ]

    def notes(self, result: Denoised) -> list[str]:  # noqa: ARG002  # the note depends on the options
        if self.groupby is not None:
            return []
        return ["--groupby COLUMN compares the mean denoised and raw counts of each cell type"]

    def next_step(self, result: Denoised) -> str | None:
        session, name = self.session, self.names.denoised
        column = self.groupby or plotted_column(session.store, session.model.config.data.batch_keys)
        label_n = self.label_n if column is None or self.groupby is not None else session.labels(column)
        if column is None or label_n is None:
            return None
        genes = plotted_genes(session.counts, label_n, list(map(str, result.columns.genes)))
        if not genes:
            return None
        drawn = f"[{', '.join(map(python_text, genes))}], groupby={python_text(column)}, layer={python_text(name)}"
        # Expected counts are above 0 in all cells, so the dots of a dot plot would all have the same size.
        drawn += ', standard_scale="var"'
        if result.columns.in_layer:
            return f"sc.pl.matrixplot(adata, {drawn})"
        return (
            f'd = adata[:, adata.uns["{self.names.key_added}"]["denoised_genes"]].copy(); '
            f'd.layers["{name}"] = d.obsm["{name}"]; sc.pl.matrixplot(d, {drawn})'
        )


def _comparison_lines(means: dict[str, Any], *, own_batches: bool) -> list[str]:
    """Describe how the denoised means differ from the raw means.

    `own_batches` says whether cells were decoded in their own batches for the comparison.
    """
    differ, compared = means["n_different"], means["n_compared"]
    where = f"mean counts of {amount(means['n_groups'], 'group')} of obs[{means['groupby']!r}]"
    where += ", with each cell decoded in its own batch for this comparison" if own_batches else ""
    if not differ:
        return [f"{where}: no denoised mean differs from the raw mean by more than the sampling error"]
    lines = [
        f"{where}: {differ:,} of {compared:,} denoised means ({differ / compared:.1%}) differ from the raw mean by "
        f"more than the sampling error (FDR {means['fdr']:.0%}); the worst:"
    ]
    worst = means["worst"][:_SHOWN]
    rows = [
        (
            f"{row['gene']} in {row['group']}",
            f"raw {row['raw']:.3g} ± {row['error']:.2g}, denoised {row['denoised']:.3g}",
        )
        for row in worst
    ]
    return lines + table_lines(rows, left=(0, 1), indent="  ")
