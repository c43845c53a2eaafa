"""The steps of `perturb`, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from scvae_cli.amounts import amount
from scvae_cli.data.labels import labels_of
from scvae_cli.data.new_cells import NewCells
from scvae_cli.data.slots import Slot
from scvae_cli.errors import ModelError
from scvae_cli.new_cells_question import NewCellsQuestion
from scvae_cli.shell_line import python_text
from scvae_cli.text_table import table_lines
from scvae_cli.tools.perturb.design import design, refuse_explained_away
from scvae_cli.tools.perturb.label_permutation import N_PERMUTATIONS
from scvae_cli.tools.perturb.options import PerturbOptions
from scvae_cli.tools.perturb.perturbation import perturb
from scvae_cli.tools.perturb.result import MEAN, NONE, Accuracy, Perturbation
from scvae_cli.tools.perturb.tested_change import GENE_LEVEL, LEVEL, Tested
from scvae_cli.tools.perturb.validation import LEAST_AGREEMENT
from scvae_cli.training.fit import FitEvent
from scvae_cli.training_counts import with_labels_of_training
from scvae_cli.training_progress import follow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_GENES = 20
_METHODS = {
    "centroid": "shift of the groups' means",
    "ot": "shifts of cells paired by optimal transport",
    MEAN: "mean change of the other groups",
    NONE: "no change",
}
_BASELINES = {"mean_change": "others' mean", "additive": "sum of parts"}
_HEADINGS = {"log2_fold_change": "log2 fold", "change": "change"} | _BASELINES | {"observed": "observed"}


class Perturb(NewCellsQuestion[PerturbOptions, Perturbation]):
    """Predict the response of a group to a perturbation."""

    needs_file: ClassVar[bool] = False
    doing: ClassVar[str] = "Predicting"

    def prepare(self) -> None:
        options, session = self.options, self.session
        batch_keys = session.model.config.data.batch_keys
        if session.model.batches and options.perturbation_key in batch_keys:
            raise ModelError(
                f"the model was trained with --batch-key {options.perturbation_key}, so it removes the perturbation as "
                "a batch effect",
                "train another model without --batch-key: scvae train DATA -m OTHER.scvae",
            )
        session.populations([options.group], groupby=options.groupby)
        group_n, label_n = session.labels(options.groupby), session.labels(options.perturbation_key)
        names, key = (options.group, options.control, options.treated), options.perturbation_key
        self.design = design(*names, group_n=group_n, label_n=label_n, perturbation_key=key)
        self.counts = session.counts_and_batches()
        for key, batch_n in self._batches_by_key().items():
            refuse_explained_away(self.design, batch_n, key)

    def _batches_by_key(self) -> dict[str, np.ndarray]:
        """Return the category of each cell in each batch key; the result is empty if the cells' batches are unknown."""
        keys, covariates = self.session.model.config.data.batch_keys, self.counts.covariates
        if covariates is not None:
            return {key: covariates.category_nq[:, q] for q, key in enumerate(keys)}
        return {} if self.counts.batch is None else {keys[0]: self.counts.batch}

    @property
    def run(self) -> str:
        return f"perturb_{self.design.group}_{self.design.treated}"

    def answer(self) -> Perturbation:
        session, progress, counts = self.session, self.shell.progress, self.counts
        if self.options.retrain:
            counts = with_labels_of_training(session, counts, self.shell)
        asked = (session.model, counts, self.design, self.options)
        return perturb(*asked, cells=session.cells, follow=self._follow, progress=progress)

    def _follow(self, title: str, events: Iterator[FitEvent]) -> FitEvent | None:
        self.shell.info(f"training {title}")
        return follow(events, self.shell, title=title, brief=True)

    def new_cells(self, result: Perturbation) -> NewCells:
        control_names = self.session.counts.cell_names[result.cells]
        return NewCells(
            cell_names=np.asarray([f"{cell}_{result.treated}" for cell in control_names]),
            gene_names=result.genes,
            blocks=result.blocks,
            dense=not (self.options.counts and self.session.model.of_counts),
            slots=[*self._obs(result), *self.slots(result)],
        )

    def _obs(self, result: Perturbation) -> Iterator[Slot]:
        store = self.session.store
        for key in store.obs_keys:
            if key == self.options.perturbation_key:
                yield Slot(group="obs", key=key, value=pd.Categorical([result.treated] * len(result.cells)))
                continue
            values = store.obs_column(key)[self.session.kept][result.cells]
            numeric = values.dtype.kind in "biuf"
            yield Slot(group="obs", key=key, value=values if numeric else pd.Categorical(labels_of(values)))

    def record(self, result: Perturbation) -> dict[str, Any]:
        recipe = result.recipe
        chosen = {"method": recipe.method, "mean_shift_share": recipe.mean_shift_share, "scale": recipe.scale}
        return super().record(result) | chosen

    def figure(self, result: Perturbation) -> Figure:
        from scvae_cli.tools.perturb.figure import perturbation_figure

        z_nk = self.session.model.axes.position(self.session.cells.mean_nk).numpy()
        named = replace(result, genes=tuple(self.session.genes.shown(result.genes)))
        return perturbation_figure(named, z_nk, self.design)

    def warnings(self, result: Perturbation) -> Sequence[str]:
        return [*_nothing(result), *self._disagreement(result)]

    def _disagreement(self, result: Perturbation) -> list[str]:
        agreement = result.model_agreement
        if agreement is None or agreement >= LEAST_AGREEMENT or result.recipe.method == MEAN:
            return []
        if not result.checks:
            extent = f"their correlation is {agreement:.2f}"
        elif agreement <= 0:
            extent = "they do not correlate in this group, or not in the other groups"
        else:
            extent = f"their correlation is {agreement:.0%} of the average correlation in the other groups"
        return [
            f"the model's prediction for {result.group} and the average shift from control to treated cells in the "
            f"other groups disagree ({extent}), so the average shift is used as the prediction"
        ]

    def notes(self, result: Perturbation) -> Sequence[str]:
        if self._disagreement(result) or not result.checks or result.checks[0].held_out:
            return ()
        if result.recipe.method == MEAN or (not result.tested and result.recipe.mean_shift_share == 1):
            return ()
        return [
            (
                "the accuracy is too optimistic, because the model was trained on the treated cells with which the "
                "accuracy was measured; changes of a group without treated cells may be underestimated; --retrain "
                "measures the accuracy for such a group, and corrects the size of the changes"
            )
        ]

    def next_step(self, result: Perturbation) -> str | None:  # noqa: ARG002  # an argument of every `Question`
        output = self.output()
        if output is None:
            return None
        return f'anndata.concat([adata, anndata.read_h5ad({python_text(output)})], label="origin")'

    def facts(self, result: Perturbation) -> dict[str, Any]:
        columns, top = result.changes.columns(), result.top_genes(SHOWN_GENES if result.changed else 0)
        names = ("change", "log2_fold_change", *_BASELINES, "observed")
        return result.facts() | {
            "genes": [
                {"gene": gene} | {name: float(columns[name][g]) if name in columns else None for name in names}
                for g, gene in zip(top, self.session.genes.shown([result.genes[g] for g in top]), strict=True)
            ]
        }

    def text(self, result: Perturbation, facts: dict[str, Any]) -> str:
        of_counts = self.session.model.of_counts
        recipe = result.recipe
        lines = [
            f"{result.group}, {result.control} → {result.treated}: {amount(facts['n_cells'], 'cell')} × "
            f"{amount(facts['n_genes'], 'gene')}, method {recipe.method} ({_METHODS[recipe.method]})",
            *(_verdict(test) for test in result.tests),
        ]
        if not result.changed:
            return "\n".join([*lines, "the prediction is no change: the predicted cells are the control cells"])
        lines += _own_verdict(result)
        lines += [f"learned from {label} in {', '.join(groups)}" for label, groups in result.sources.items()]
        lines.append(_mixture(result, "log ratio of expression" if of_counts else "difference of expression"))
        lines += [*_accuracy_lines(result), *_no_better(result)]
        lines.append(
            f"{result.off_manifold:.1%} of the predicted cells lie off the manifold (off-manifold score above 0.95), "
            "compared with about 5% of observed cells"
        )
        columns = result.changes.columns()
        shown = {name: heading for name, heading in _HEADINGS.items() if name in columns}
        rows = [("gene", *shown.values())]
        rows += [(row["gene"], *(f"{row[name]:+.2f}" for name in shown)) for row in facts["genes"]]
        lines += table_lines(rows)
        of = "mean of log(1 + 10⁴·count/library)" if of_counts else "mean"
        return "\n".join([*lines, f"(changes are differences of the {of})"])


def _verdict(test: Tested) -> str:
    """Say whether a label changes expression in the groups from which the change is learned."""
    groups = amount(len(test.group_p), "group")
    extent = amount(test.n_changed, "gene changes", "genes change") if test.n_changed else "no single gene stands out"
    return (
        f"change under {test.label} in {groups}: p {_p(test.p)} by permuted labels; {extent} "
        f"(family-wise error {GENE_LEVEL:g})"
    )


def _own_verdict(result: Perturbation) -> list[str]:
    test = result.group_test
    if test is None:
        return []
    found = "change" if test.p <= LEVEL else "no change detected"
    return [f"observed in {result.group} itself: {found} (p {_p(test.p)})"]


def _p(p: float) -> str:
    least = 1 / (N_PERMUTATIONS + 1)
    return f"= {p:.2g}" if p > least else f"≤ {least:g}"


def _nothing(result: Perturbation) -> list[str]:
    """Warn that no change was detected, so that no change is predicted."""
    if result.changed:
        return []
    labels = " or ".join(dict.fromkeys(test.label for test in result.tests))
    return [
        f"no change detected: cells under {labels} do not differ from {result.control} cells more than cells with "
        f"permuted labels do (p {_p(min(test.p for test in result.tests))}), so no change is predicted; more cells may "
        "show a weaker change"
    ]


def _no_better(result: Perturbation) -> list[str]:
    """Say whether the mean change of the other groups predicts at least as well as the model."""
    if result.recipe.method == MEAN:
        model, mean = result.model_accuracy, result.mean_accuracy("mean_change")
        assert model is not None, "the mean is chosen because it is better than the model"
        assert mean is not None, "the mean is chosen because it is better than the model"
        return [
            "the plain mean of the other groups' changes predicts groups that are left out better than the model "
            f"(correlation {mean.correlation:.2f} / {mean.top_correlation:.2f}, explained {mean.explained:.2f}; model "
            f"{model.correlation:.2f} / {model.top_correlation:.2f}, {model.explained:.2f}), so this mean is the "
            "prediction"
        ]
    if result.checks and result.no_better_than_mean:
        return [
            "the prediction is no more accurate than the mean change of the other groups, within the error of the "
            "comparison"
        ]
    return []


def _mixture(result: Perturbation, measure: str) -> str:
    """Say how the prediction is mixed from the observed mean shift and the decoded change, and how it is scaled."""
    share, scale = result.recipe.mean_shift_share, result.recipe.scale
    scaled = "" if scale == 1 else f"; the prediction is multiplied by {scale:.2f}, as learned from the groups left out"
    if result.recipe.method == MEAN:
        return "the prediction is the plain mean of the changes of the groups that it was learned from"
    if share == 1 and result.treated not in result.sources:
        return (
            f"the prediction is the sum of the average shifts under the parts ({measure}); where the parts change a "
            f"gene in the same direction, the prediction is the mean of this sum and the strongest shift{scaled}"
        )
    if share == 1:
        return (
            "the prediction is the average shift from control to treated cells in the groups that it was learned from "
            f"({measure}){scaled}"
        )
    if share == 0:
        return f"the prediction is the change decoded by the model{scaled}"
    return (
        f"the prediction is a mixture: {share:.0%} average shift from control to treated cells in the groups that "
        f"it was learned from ({measure}), and {1 - share:.0%} change decoded by the model{scaled}"
    )


def _accuracy_lines(result: Perturbation) -> list[str]:
    checks = result.all_checks
    if not checks:
        return ["accuracy: unknown, because no other group has treated cells that can be predicted without using them"]
    headings = {"predicted": "predicted"} | _BASELINES
    columns = [name for name in headings if any(getattr(check, name) is not None for check in checks)]
    held_out = all(check.held_out for check in checks)
    training = "trained without these cells" if held_out else "trained on these cells"
    lines = [
        (
            f"accuracy in groups with treated cells, predicted by {'models' if held_out else 'a model'} {training}: "
            "correlation (r) of predicted and observed changes over all genes / over the 50 most significant genes, "
            "then the slope of the predicted on the observed changes of these 50 genes, and the root mean squared "
            "error (RMSE) over all genes. A slope below 1 means that changes are underestimated."
        ),
    ]
    rows = [("", *("r / r of 50, slope, RMSE" for _ in columns)), ("group", *(headings[name] for name in columns))]

    def row(title: str, found: list[Accuracy | None]) -> tuple[str, ...]:
        return (title, *("-" if one is None else _shown(one) for one in found))

    group_p = {test.label: test.group_p for test in result.tests}
    single = len({check.treated for check in checks}) == 1
    for check in checks:
        title = check.group if single else f"{check.group}, {check.treated}"
        if check is result.group_check:
            title += " (group to predict)"
        elif group_p.get(check.treated, {}).get(check.group, 0) > LEVEL:
            title += " (no change)"
        rows.append(row(title, [getattr(check, name) for name in columns]))
    if len(result.checks) > 1:
        title = "mean of the other groups" if held_out else "mean of others, optimistic"
        title = title if result.tested else "mean, single perturbations"
        rows.append(row(title, [result.mean_accuracy(name) for name in columns]))
    lines += table_lines(rows)
    if not result.tested and result.checks:
        lines.append(
            f"no other group has undergone {result.treated}, so no group shows how well the changes of the parts add up"
        )
    return lines


def _shown(one: Accuracy) -> str:
    return f"{one.correlation:.2f} / {one.top_correlation:.2f}, {one.top_slope:.2f}, {one.rmse:.2f}"
