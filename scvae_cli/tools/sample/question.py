"""The steps of `sample`, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae_cli.amounts import amount, beside
from scvae_cli.data.counts import Counts
from scvae_cli.data.labels import positions_in
from scvae_cli.data.new_cells import NewCells
from scvae_cli.heldout import OFF_MANIFOLD
from scvae_cli.latent.decoding_batch import AVERAGE, DRAWN, DecodedWith, decoded_with, fixed_covariates
from scvae_cli.new_cells_question import NewCellsQuestion
from scvae_cli.shell_line import python_text
from scvae_cli.text_table import table_lines
from scvae_cli.tools.sample.agreement import Comparison
from scvae_cli.tools.sample.batches import decoding_batch
from scvae_cli.tools.sample.options import SampleOptions
from scvae_cli.tools.sample.prototype import Prototype, prototype
from scvae_cli.tools.sample.result import Sampled
from scvae_cli.tools.sample.sampling import sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_GENES = 20


class Sample(NewCellsQuestion[SampleOptions, Sampled | Prototype]):
    """Draw new cells, or decode the prototype: the latent position z = 0."""

    # The comparison with real cells; None if drawn counts are neither reported nor plotted.
    comparison: Comparison | None = None

    def prepare(self) -> None:
        label, key = self.options.group, self.options.groupby
        self.group = None if label is None else self.session.populations([label], groupby=key)[0]

    def answer(self) -> Sampled | Prototype:
        session, options, progress = self.session, self.options, self.shell.progress
        if options.prototype:
            return prototype(session.model, session.counts, options, progress=progress)
        self.counts = session.counts_and_batches()
        result = sample(session.model, self.counts, options, group=self.group, progress=progress)
        # The comparison reads all real cells, so it is made only if its result is shown.
        if not options.mean and (self.request.reported or options.plot is not None):
            of_counts = session.model.of_counts
            real = self._real_cells().matrix
            self.comparison = Comparison(real, len(result.z_nk), seed=options.seed, of_counts=of_counts)
        return result

    def _real_cells(self) -> Counts:
        """Return the real cells with which the new cells are compared.

        The real cells are those of the chosen group or, without a group, those of the chosen batch. If neither a group
        nor a batch was chosen, all cells are returned.
        """
        if self.group is not None:
            return self.session.counts.cells(self.group.cells)
        batch_c, model, covariates = self.counts.batch, self.session.model, self.counts.covariates
        batch_as = decoding_batch(model, self.options)
        if batch_as == DRAWN:
            return self.counts
        if model.vae.design is not None and covariates is not None:
            fixed = fixed_covariates(model, batch_as, usual=DRAWN)
            asked = [category is not None for category in fixed.categories]
            code_nq = model.vae.design.code_nq(covariates)
            wanted = [
                -1 if category is None else names.index(category)
                for category, names in zip(fixed.categories, model.vae.design.categories, strict=True)
            ]
            same_n = ((code_nq == wanted) | ~np.asarray(asked)).all(1)
            return self.counts.cells(same_n) if same_n.any() else self.counts
        of_batch_n = None if batch_c is None else positions_in([batch_as], batch_c) == 0
        return self.counts.cells(of_batch_n) if of_batch_n is not None and of_batch_n.any() else self.counts

    def new_cells(self, result: Sampled | Prototype) -> NewCells:
        options = self.options
        blocks: Any = result.blocks if self.comparison is None else self.comparison.watch(result.blocks)
        return NewCells(
            cell_names=result.cell_names(),
            gene_names=self.session.model.genes,
            blocks=blocks,
            dense=options.prototype or options.mean or not self.session.model.of_counts,
            slots=self.slots(result),
        )

    def record(self, result: Sampled | Prototype) -> dict[str, Any]:
        record = super().record(result)
        record |= {"library": self.options.library_or_default, "batch_as": result.batch_as}
        if isinstance(result, Sampled):
            record |= {"drawn_from": result.source, "rejected": result.rejected}
        return record

    def figure(self, result: Sampled | Prototype) -> Figure:
        from scvae_cli.tools.sample.figure import Points, sample_figure

        assert isinstance(result, Sampled), "SampleOptions.check refuses --plot with --prototype"
        assert self.comparison is not None, "answer makes the comparison for a figure"
        points = Points.of(self.session.model, self._real_cells(), result, seed=self.options.seed)
        return sample_figure(points, result, self.comparison.real, self.comparison.samples)

    def warnings(self, result: Sampled | Prototype) -> Sequence[str]:
        if not isinstance(result, Sampled) or result.in_holes <= 0.5:
            return ()
        return [
            f"{result.in_holes:.0%} of the cells lie in holes, where no cells were observed and the decoder "
            "extrapolates: --avoid-holes rejects such draws"
        ]

    def facts(self, result: Sampled | Prototype) -> dict[str, Any]:
        options = self.options
        drawn = result if isinstance(result, Sampled) else None
        scores = None if drawn is None else drawn.scores
        agreement = None
        # Library sizes that differ from the observed ones change the means and variances of the genes, so the
        # comparison would be misleading.
        if self.comparison is not None and options.library_or_default == "observed":
            agreement = self.comparison.agreement()
        return {
            "n_cells": len(result.cell_names()),
            "n_genes": len(self.session.model.genes),
            "source": "prototype" if drawn is None else drawn.source,
            "prior_nats": None if scores is None else scores.prior,
            "density_nats": None if scores is None else scores.density,
            "n_compared": None if scores is None else scores.n_cells,
            "off_manifold": result.in_holes if isinstance(result, Sampled) else result.off_manifold,
            "rejected": 0.0 if drawn is None else drawn.rejected,
            "genes": None if isinstance(result, Sampled) else self._gene_table(result),
            "groupby": options.groupby,
            "group": options.group,
            "batch_as": result.batch_as,
            "decoded_with": asdict(self._decoded_with(result)),
            "mean": options.mean or drawn is None,
            "agreement": None if agreement is None else asdict(agreement),
        }

    def _decoded_with(self, result: Sampled | Prototype) -> DecodedWith:
        usual = DRAWN if isinstance(result, Sampled) else AVERAGE
        return decoded_with(self.session.model, result.batch_as or usual, usual=usual)

    def text(self, result: Sampled | Prototype, facts: dict[str, Any]) -> str:
        decoded = self._decoded_with(result).lines
        if isinstance(result, Sampled):
            return "\n".join([*self._sampled_lines(result, facts), *decoded, *_agreement_lines(facts["agreement"])])
        return "\n".join([*self._prototype_lines(result, facts), *decoded])

    def _sampled_lines(self, result: Sampled, facts: dict[str, Any]) -> list[str]:
        group = f"the cells of {facts['group']}"
        source = {"prior": "the prior", "density": "the density of the training cells", "group": group}[result.source]
        lines = [f"drew {amount(facts['n_cells'], 'cell')} × {amount(facts['n_genes'], 'gene')} from {source}"]
        if (scores := result.scores) is not None:
            real = "held-out cells" if scores.heldout else "cells, held out or not,"
            better, other = ("density", "prior") if scores.better == "density" else ("prior", "density")
            lines.append(
                f"{scores.n_cells:,} {real} are {scores.gain:.2f} nats per cell more likely under the {better} than "
                f"under the {other}"
            )
        if self.options.avoid_holes:
            lines.append(
                f"{result.rejected:.1%} of {result.n_proposed:,} draws were rejected: they lie in holes (off-manifold "
                f"score above {OFF_MANIFOLD})"
            )
        else:
            lines.append(
                f"{result.in_holes:.1%} of the cells lie in holes (off-manifold score above {OFF_MANIFOLD}), "
                "compared with 5% of held-out cells"
            )
        return lines

    def _prototype_lines(self, result: Prototype, facts: dict[str, Any]) -> list[str]:
        library = "" if result.library is None else f", decoded at a library size of {result.library:,.0f}"
        lines = [f"the prototype, z = 0{library}; off-manifold score {beside(result.off_manifold, OFF_MANIFOLD)}"]
        rows = [("gene", "prototype", "average", "change")]
        for row in facts["genes"]:
            rows.append((row["gene"], f"{row['prototype']:.3g}", f"{row['average']:.3g}", f"{row['change']:+.2f}"))
        lines += table_lines(rows)
        unit = "values" if result.library is None else "counts"
        return [
            *lines,
            f"(expected {unit} of the prototype and of the average training cell; change in "
            f"{self.session.distance_unit})",
        ]

    def _gene_table(self, result: Prototype) -> list[dict[str, Any]]:
        """Return one row for each of the genes that differ most from the average training cell."""
        top = result.top_genes(SHOWN_GENES)
        names = self.session.genes.shown([self.session.model.genes[g] for g in top])
        columns = {"prototype": result.mean_g, "average": result.average_g, "change": result.change_g}
        return [
            {"gene": name} | {column: float(value_g[g]) for column, value_g in columns.items()}
            for g, name in zip(top, names, strict=True)
        ]

    def next_step(self, result: Sampled | Prototype) -> str:  # noqa: ARG002  # an argument of every `Question`
        sampled = f"anndata.read_h5ad({python_text(self.output())})"
        return f'anndata.concat({{"real": adata, "sampled": {sampled}}}, label="origin")'


def _agreement_lines(agreement: dict[str, Any] | None) -> list[str]:
    if agreement is None:
        return []
    samples, real, with_what = agreement["samples"], agreement["real"], f"{amount(agreement['n_real'], 'real cell')}"
    table = [(f"compared with {with_what}", "sampled", "other real")]
    of_counts = real["zero_fraction"] is not None
    rows = {
        "mean": "gene means, log2 ratio" if of_counts else "gene means, standard deviations",
        "variance": "gene variances, log2 ratio",
    }
    if of_counts:
        rows["zero_fraction"] = "zero fractions, difference"
    for name, label in rows.items():
        table.append((label, f"{samples[name]:.3f}", f"{real[name]:.3f}"))
    return [
        *table_lines(table),
        f"(root mean squares over the genes; {amount(agreement['n_cells'], 'cell')} in each column)",
    ]
