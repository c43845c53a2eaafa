"""How `diagnose` runs, and what the command line prints about the result."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from scvae_cli.config import RunConfig
from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import DEFAULT_KEY
from scvae_cli.model.bundle import Model
from scvae_cli.question import Question
from scvae_cli.shell_line import shell_line
from scvae_cli.tools.diagnose.diagnosis import Diagnosis, diagnose, with_trainings
from scvae_cli.tools.diagnose.options import DiagnoseOptions
from scvae_cli.tools.diagnose.predictive import GeneStatistic
from scvae_cli.tools.diagnose.verdict import page
from scvae_cli.training.fit import Finished, fit
from scvae_cli.training_progress import follow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Diagnose(Question[DiagnoseOptions, Diagnosis]):
    """Diagnose the model."""

    @property
    def gene_labels(self) -> tuple[str, ...]:
        """Names by which the model's genes are shown."""
        return tuple(self.session.genes.shown(self.session.model.genes))

    def planned(self) -> list[str]:
        return [f"uns/{self.names.diagnosis}"]

    def answer(self) -> Diagnosis:
        session, options, progress = self.session, self.options, self.shell.progress
        result = diagnose(session.model, session.counts, options, gene_labels=self.gene_labels, progress=progress)
        if options.quick:
            return result
        return with_trainings(result, session.model, session.counts, options, train=self.train, progress=progress)

    def train(self, title: str, counts: Counts, config: RunConfig) -> Model:
        """Train a model and show the progress of the training."""
        self.shell.info(title)
        last = follow(fit(counts, config), self.shell, title="Training", brief=True)
        assert isinstance(last, Finished), "nothing stops this training"
        return last.model

    def figure(self, result: Diagnosis) -> Figure:
        from scvae_cli.tools.diagnose.figure import diagnosis_figure

        return diagnosis_figure(result)

    def facts(self, result: Diagnosis) -> dict[str, Any]:
        use, aggregate, check, stability = result.use, result.aggregate, result.check, result.stability
        distances, axes = result.distortion.values(), aggregate.most_correlated
        return {
            **result.summary(),
            "verdicts": [asdict(verdict) for verdict in result.verdicts],
            "n_latent": len(use.kl_k),
            "active_units": use.n_active,
            "kl_to_prior": aggregate.kl_to_prior,
            "mutual_information": aggregate.mutual_information,
            "total_correlation": aggregate.total_correlation,
            "correlation": aggregate.correlation,
            "correlated_axes": None if axes is None else [axis + 1 for axis in axes],
            "holes": aggregate.holes,
            "gaps": result.gaps.values(),
            "zeros": None if check.zeros is None else self._genes(check.zeros),
            "variances": self._genes(check.variances),
            "condition": distances["condition"],
            "active_condition": distances.get("active_condition"),
            "rank_correlation": distances.get("rank_correlation"),
            "baselines": None if result.baselines is None else asdict(result.baselines),
            "stability": None if stability is None else stability.values() | {"heldout_elbo": stability.heldout_elbo},
        }

    def _genes(self, statistic: GeneStatistic) -> dict[str, Any]:
        """Summarize a statistic over the genes, and list the genes whose values deviate most from the model."""
        labels = self.gene_labels
        worst = [{"gene": labels[g], "score": float(statistic.score_g[g])} for g in statistic.worst()]
        return statistic.summary() | {"worst": worst}

    def text(self, result: Diagnosis, facts: dict[str, Any]) -> str:  # noqa: ARG002  # the verdicts have the numbers
        cells = "held-out cells" if result.heldout else "cells (too few were held out of the training)"
        return f"evaluated on {result.n_evaluated:,} {cells} of {result.n_cells:,}\n\n{page(result.verdicts)}\n"

    def next_step(self, result: Diagnosis) -> str:  # noqa: ARG002
        request, options = self.request, self.options
        # `embed` can always write to the .h5ad output, but needs the model's path: the model is not beside the output.
        model = request.model if options.output is None else request.model_folder
        return shell_line(
            "embed",
            options.output or request.data,
            m=model,
            refine=100,
            layer=options.layer,
            allow_missing_genes=options.allow_missing_genes,
            drop_empty=options.drop_empty,
            key_added=None if options.key_added == DEFAULT_KEY else options.key_added,
        )
