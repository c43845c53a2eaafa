"""The diagnosis of a trained model: all measurements, and the verdicts on them.

A diagnosis consists of sections, each with its values and verdicts. Most sections describe only the diagnosed model.
Two more sections take longer, because they compare the diagnosed model with models from further trainings
(`with_trainings`).

Letters in array shapes: n cells, k latent dimensions, g genes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from scvae_cli.brief import brief
from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import Slot, SlotNames
from scvae_cli.errors import DataError
from scvae_cli.evaluation.retraining import Train, model_trained_on, train_silently
from scvae_cli.heldout import MIN_HELDOUT
from scvae_cli.latent.posteriors import known_batches, posteriors
from scvae_cli.latent.selection import even
from scvae_cli.model.bundle import Model
from scvae_cli.model.geometry import Geometry
from scvae_cli.progress import Progress, silent
from scvae_cli.tools.diagnose.baselines import BaselineComparison, compare_with_baselines
from scvae_cli.tools.diagnose.comparison_verdicts import baseline_verdicts, stability_verdict
from scvae_cli.tools.diagnose.distortion import Distortion, distortion
from scvae_cli.tools.diagnose.embedding_quality import EmbeddingQuality, embedding_quality, evaluated_rows
from scvae_cli.tools.diagnose.embedding_verdicts import embedding_verdicts
from scvae_cli.tools.diagnose.gaps import Gaps, gaps
from scvae_cli.tools.diagnose.judged_embedding import embedding_of
from scvae_cli.tools.diagnose.latent_use import AggregatedPosterior, LatentUse, aggregated_posterior, latent_use
from scvae_cli.tools.diagnose.model_verdicts import (
    axes_verdict,
    distance_verdicts,
    gap_verdicts,
    likelihood_verdicts,
    prior_verdict,
    use_verdict,
)
from scvae_cli.tools.diagnose.options import DiagnoseOptions
from scvae_cli.tools.diagnose.predictive import PredictiveCheck, predictive_check
from scvae_cli.tools.diagnose.stability import Stability, stability
from scvae_cli.tools.diagnose.verdict import LEVELS, Verdict

# Largest number of encoded cells. More encoded cells would hardly make covariances and densities more precise.
_MAX_ENCODED = 20_000


class Section(NamedTuple):
    """A part of a diagnosis: a name, measured values, and verdicts. No value is None."""

    name: str
    values: dict[str, Any]
    verdicts: Sequence[Verdict]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The diagnosis of a model.

    Parameters
    ----------
    n_cells, n_evaluated
        Number of cells in the data, and number of cells on which the bounds on log p(x) and the likelihood were
        evaluated.
    heldout
        Whether the evaluated cells were held out of the training. If the data has fewer than ten held-out cells, the
        evaluated cells are chosen from all cells.
    gene_labels
        Names of the model's genes as they appear in the verdicts.
    baselines, stability
        Comparisons with models from further trainings; None if no further models were trained.
    """

    __repr__ = brief

    use: LatentUse
    aggregate: AggregatedPosterior
    gaps: Gaps
    check: PredictiveCheck
    distortion: Distortion
    quality: EmbeddingQuality
    n_cells: int
    n_evaluated: int
    heldout: bool
    beta: float
    likelihood: str
    gene_labels: tuple[str, ...]
    decoder: str = "mlp"
    baselines: BaselineComparison | None = None
    stability: Stability | None = None

    @property
    def sections(self) -> tuple[Section, ...]:
        """All sections, in the order in which they are reported."""
        of_genes = likelihood_verdicts(self.check, self.likelihood, self.gene_labels, decoder=self.decoder)
        sections = [
            Section("usage", self.use.values(), [use_verdict(self.use, self.gaps, self.beta)]),
            Section(
                "aggregate", self.aggregate.values(), [axes_verdict(self.aggregate), prior_verdict(self.aggregate)]
            ),
            Section("gaps", self.gaps.values(), gap_verdicts(self.gaps)),
            Section("predictive", self.check.values(), of_genes),
            Section("distances", self.distortion.values(), distance_verdicts(self.distortion)),
            Section("embedding", self.quality.values(), embedding_verdicts(self.quality)),
        ]
        if self.baselines is not None:
            sections.append(Section("baselines", self.baselines.values(), baseline_verdicts(self.baselines, self.beta)))
        if self.stability is not None:
            sections.append(Section("stability", self.stability.values(), [stability_verdict(self.stability)]))
        return tuple(sections)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """All verdicts, in the order in which they are reported."""
        return tuple(verdict for section in self.sections for verdict in section.verdicts)

    @property
    def level(self) -> str:
        """The worst level of all verdicts."""
        return max((verdict.level for verdict in self.verdicts), key=LEVELS.index)

    def summary(self) -> dict[str, Any]:
        """Return the main facts in a dictionary, such as the number of cells and the worst level of all verdicts."""
        return {name: getattr(self, name) for name in ("n_cells", "n_evaluated", "heldout", "beta", "level")}

    def slots(self, names: SlotNames) -> list[Slot]:
        """List the slots of the data to which the result is written."""
        values = self.summary() | {section.name: section.values for section in self.sections}
        values["verdicts"] = {
            key: np.asarray([verdict.summary()[key] for verdict in self.verdicts], dtype=object)
            for key in ("topic", "level", "sentence", "finding", "remedy")
        }
        return [Slot(group="uns", key=names.diagnosis, value=values)]


def diagnose(
    model: Model,
    counts: Counts,
    options: DiagnoseOptions,
    *,
    gene_labels: tuple[str, ...] | None = None,
    label_n: np.ndarray | None = None,
    progress: Progress = silent,
) -> Diagnosis:
    """Diagnose a model without further trainings.

    Parameters
    ----------
    model, counts
        The model, and cells with the model's genes, and with batches if the model has batches. The cells should include
        cells that were held out of the training.
    gene_labels
        Names of the model's genes as they should appear in the verdicts; None for the names in the model.
    label_n
        Label of each cell in the column `options.labels`, with None for a cell without a label, shape (n,); None if
        `options.labels` is None.

    Raises
    ------
    DataError
        If a cell's batch is unknown to the model, if there are fewer than two labels of five or more cells, or if
        there is only one cell.
    """
    known_batches(model, counts)
    if counts.n_cells < 2:
        raise DataError("a diagnosis needs two or more cells", "diagnose the data on which the model was trained")
    all_cells = counts.cells(even(np.arange(counts.n_cells), _MAX_ENCODED))
    of_all = posteriors(model, all_cells, progress=progress)
    rows = np.flatnonzero(model.held_out(counts.cell_names))
    heldout = len(rows) >= MIN_HELDOUT
    rows = rows if heldout else np.arange(counts.n_cells)
    # Encoding takes little time, so the density is evaluated at more cells than are decoded.
    of_heldout = posteriors(model, counts.cells(even(rows, _MAX_ENCODED)), progress=progress)
    some = counts.cells(even(rows, options.max_cells))
    of_some = posteriors(model, some)
    use, seed = latent_use(of_all), options.seed
    compared = evaluated_rows(counts.n_cells)
    cells_compared = counts.cells(compared)
    return Diagnosis(
        use=use,
        aggregate=aggregated_posterior(of_all, of_heldout, model.density, seed=seed),
        gaps=gaps(model, some, options, progress=progress),
        check=predictive_check(model, some, of_some, seed=seed, progress=progress),
        distortion=distortion(
            Geometry(model.vae),
            of_some.mean_nk,
            embedding_of(model, some, of_some.mean_nk),
            use.active_k,
            seed=seed,
            progress=progress,
        ),
        quality=embedding_quality(
            embedding_of(model, cells_compared, posteriors(model, cells_compared).mean_nk),
            cells_compared,
            labels=options.labels,
            label_n=None if label_n is None else label_n[compared],
            seed=seed,
            progress=progress,
        ),
        n_cells=counts.n_cells,
        n_evaluated=some.n_cells,
        heldout=heldout,
        beta=model.config.train.beta,
        likelihood=model.config.model.likelihood,
        decoder=model.config.model.decoder,
        gene_labels=model.genes if gene_labels is None else gene_labels,
    )


def with_trainings(
    diagnosis: Diagnosis,
    model: Model,
    counts: Counts,
    options: DiagnoseOptions,
    *,
    train: Train = train_silently,
    progress: Progress = silent,
) -> Diagnosis:
    """Train further models, and add comparisons with baselines and with trainings that use other random seeds.

    Parameters
    ----------
    model, counts
        The model, and cells with the model's genes, and with batches if the model has batches. If the model was trained
        on other cells, a new model is trained on the given cells and is compared instead.

    Raises
    ------
    ScvaeError
        If a training fails. The errors are those of `scvae_cli.training.fit.fit`.
    """
    model, counts = model_trained_on(model, counts, train=train)
    return replace(
        diagnosis,
        baselines=compare_with_baselines(model, counts, train=train, progress=progress),
        stability=stability(model, counts, n_trainings=options.n_trainings, train=train),
    )
