"""The steps of `diagnose`, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae_cli.config import RunConfig
from scvae_cli.data.confounded_keys import warn_of_covariates
from scvae_cli.data.counts import Counts
from scvae_cli.data.slots import DEFAULT_KEY
from scvae_cli.evaluation.retraining import with_learnable_labels
from scvae_cli.model.bundle import Model
from scvae_cli.question import Question
from scvae_cli.shell_line import shell_line
from scvae_cli.tools.diagnose.advice import Command
from scvae_cli.tools.diagnose.diagnosis import Diagnosis, diagnose, with_trainings
from scvae_cli.tools.diagnose.embedding_quality import PACKAGES, evaluated_rows, usable_labels
from scvae_cli.tools.diagnose.options import DiagnoseOptions
from scvae_cli.tools.diagnose.predictive import GeneStatistic
from scvae_cli.tools.diagnose.training_command import training_options, unused_folder
from scvae_cli.tools.diagnose.verdict import next_command, page
from scvae_cli.training.fit import Finished, fit
from scvae_cli.training_counts import with_labels_of_training
from scvae_cli.training_progress import follow

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Diagnose(Question[DiagnoseOptions, Diagnosis]):
    """Diagnose the model."""

    def prepare(self) -> None:
        column = self.options.labels
        self.label_n: np.ndarray | None = None
        if column is not None:
            self.label_n = self.session.labels(column, purpose="--labels")
            # Unusable labels are refused before the long computation starts.
            usable_labels(self.label_n[evaluated_rows(len(self.label_n))], column=column)

    @property
    def gene_labels(self) -> tuple[str, ...]:
        """Names by which the model's genes are shown."""
        return tuple(self.session.genes.shown(self.session.model.genes))

    def planned(self) -> list[str]:
        return [f"uns/{self.names.diagnosis}"]

    def answer(self) -> Diagnosis:
        session, options, progress = self.session, self.options, self.shell.progress
        result = diagnose(
            session.model,
            session.counts,
            options,
            gene_labels=self.gene_labels,
            label_n=self.label_n,
            progress=progress,
        )
        if options.quick:
            return result
        counts = with_labels_of_training(session, session.counts, self.shell)
        return with_trainings(result, session.model, counts, options, train=self.train, progress=progress)

    def train(self, title: str, counts: Counts, config: RunConfig) -> Model:
        """Train a model and show the progress of the training."""
        self.shell.info(title)
        counts = with_learnable_labels(counts, config)
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
            "verdicts": [verdict.summary() for verdict in result.verdicts],
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
            "embedding_rank_correlation": distances.get("embedding_rank_correlation"),
            "embedding": result.quality.summary(),
            "baselines": None if result.baselines is None else asdict(result.baselines),
            "stability": None if stability is None else stability.values() | {"heldout_elbo": stability.heldout_elbo},
        }

    def _genes(self, statistic: GeneStatistic) -> dict[str, Any]:
        """Summarize a statistic over the genes, and list the genes whose values deviate most from the model."""
        labels = self.gene_labels
        worst = [{"gene": labels[g], "score": float(statistic.score_g[g])} for g in statistic.worst()]
        return statistic.summary() | {"worst": worst}

    @property
    def of_training(self) -> bool:
        """Whether the data contain at least one cell that was held out of the training."""
        return bool(self.session.model.held_out(self.session.counts.cell_names).any())

    def text(self, result: Diagnosis, facts: dict[str, Any]) -> str:  # noqa: ARG002  # the verdicts have the numbers
        cells = "held-out cells"
        if not result.heldout:
            few = (
                "too few were held out of the training"
                if self.of_training
                else "the data are not those of the training"
            )
            cells = f"cells ({few})"
        return f"evaluated on {result.n_evaluated:,} {cells} of {result.n_cells:,}\n\n{page(result.verdicts)}\n"

    def warnings(self, result: Diagnosis) -> Sequence[str]:  # noqa: ARG002  # the warnings depend on the data alone
        found: list[str] = []
        # The columns of obs also contain the dropped cells, so the columns would not match the batches of the remaining
        # cells.
        if self.session.kept.all():
            data = self.session.model.config.data
            warn_of_covariates(self.session.store, self.session.counts, data, found.append)
        return found

    def notes(self, result: Diagnosis) -> Sequence[str]:
        missing = result.quality.not_installed
        if not missing:
            return ()
        packages = " ".join(PACKAGES[part] for part in missing)
        return [f'pip install {packages} (the extra "compare") adds {" and ".join(missing)} to the comparison']

    def next_step(self, result: Diagnosis) -> str:
        request, options, model = self.request, self.options, self.session.model
        # No training is suggested if the model was trained on other cells, because a training on these cells would not
        # improve the model.
        command = next_command(result.verdicts, model.config) if self.of_training else Command(verb="embed")
        # `embed` can write into the .h5ad output, but needs the path of the model, which is not beside the output.
        data = options.output or request.data
        # The output contains only the genome or modality that was read.
        parts = {} if options.output else {"genome": options.genome, "modality": options.modality}
        if command.verb == "embed":
            embedded = self.session.store.obsm(self.names.embedding) is not None
            if embedded and options.output is None and not command.options:
                return f'sc.pp.neighbors(adata, use_rep="{self.names.embedding}")'
            return shell_line(
                "embed",
                data,
                m=request.model if options.output is None else request.model_folder,
                **command.options,
                layer=options.layer,
                round=options.round,
                **parts,
                allow_missing_genes=options.allow_missing_genes,
                drop_empty=options.drop_empty,
                key_added=None if options.key_added == DEFAULT_KEY else options.key_added,
            )
        own = training_options(model) | dict(command.options)
        own |= parts | {"round": options.round or own.get("round")}
        own |= {"layer": options.layer or own.get("layer"), "drop_empty": options.drop_empty or own.get("drop_empty")}
        if command.verb == "sweep":
            # A sweep over β takes the number of latent dimensions only from a --config file.
            return shell_line("sweep", data, **{name: value for name, value in own.items() if name != "n_latent"})
        return shell_line("train", data, m=unused_folder(request.model_folder), **own)
