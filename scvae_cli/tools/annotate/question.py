"""The steps of `annotate`, and what the command line prints about the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scvae_cli.amounts import amount
from scvae_cli.data.known_labels import KnownLabels, known_labels
from scvae_cli.errors import one_line
from scvae_cli.question import Question
from scvae_cli.text_table import table_lines
from scvae_cli.tools.annotate.annotation import annotate
from scvae_cli.tools.annotate.back_off import BackOff, CoarseLabels
from scvae_cli.tools.annotate.batches import new_batches
from scvae_cli.tools.annotate.coarse_labels import coarse_labels
from scvae_cli.tools.annotate.expected import Expected
from scvae_cli.tools.annotate.learned_file import learned_of
from scvae_cli.tools.annotate.options import AnnotateOptions
from scvae_cli.tools.annotate.quality import Prediction
from scvae_cli.tools.annotate.result import Annotation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Largest number of labels, and of pairs of confused labels, that the terminal shows.
_SHOWN, _SHOWN_CONFUSIONS = 30, 5
# Share of cells without a counterpart that `map` reports by mistake, by default.
_FALSE_ALARMS = 0.05
_REPEATED = (
    "the data contain training cells. The classifiers have learned the labels of these cells, and mostly repeat these "
    "labels, with too high probabilities. Use --labels-key to predict each labeled cell with a classifier that has not "
    "seen its label"
)


class Annotate(Question[AnnotateOptions, Annotation]):
    """Predict the label of every cell."""

    def prepare(self) -> None:
        options, session = self.options, self.session
        self.reference = None
        if options.reference is not None:
            self.reference = session.alongside(
                options.reference,
                gene_symbols=options.gene_symbols,
                allow_missing_genes=options.allow_missing_genes,
                drop_empty=options.drop_empty,
            )
        labeled = self.reference or session
        fine_key, coarse_key, key_added = options.labels_key, options.coarse_key, self.names.key_added
        self.known: KnownLabels | None = None
        self.coarse: CoarseLabels | None = None
        if fine_key is None:
            learned_of(session.model)  # `learned_of` raises an error if the model has no labels
            return
        self.known = known_labels(
            labeled.store,
            fine_key,
            unlabeled=options.unlabeled,
            kept=labeled.kept,
            warn=self.shell.warn,
            key_added=key_added,
        )
        if coarse_key is not None:
            self.coarse = coarse_labels(self.known, labeled, fine_key, coarse_key, key_added=key_added)

    def planned(self) -> list[str]:
        names = self.names
        columns = [names.label, names.label_probability, names.label_set, names.label_p]
        if self.options.coarse_key is not None:
            columns += [names.label_coarse, names.label_coarse_probability, names.label_backed_off]
        return [*(f"obs/{key}" for key in columns), f"obsm/{names.label_probabilities}", f"uns/{names.label_names}"]

    def answer(self) -> Annotation:
        self.new = new_batches(self.session, self.known, self.reference)
        found = annotate(
            self.session,
            self.known,
            self.options,
            coarse=self.coarse,
            reference=self.reference,
            new_batch_n=self.new.batch_n,
        )
        # The classifiers repeat the labels of training cells, so these cells show nothing about the accuracy.
        return replace(found, expected=None) if self._has_training_cells() else found

    def record(self, result: Annotation) -> dict[str, Any]:
        reference = self.options.reference
        return super().record(result) | {"reference": None if reference is None else str(reference)}

    def figure(self, result: Annotation) -> Figure:
        from scvae_cli.tools.annotate.figure import annotation_figure

        return annotation_figure(result)

    def warnings(self, result: Annotation) -> Sequence[str]:
        found = [
            self.new.warning(),
            _REPEATED if self._has_training_cells() else None,
            self._warning_of_counterparts(result),
        ]
        return [*result.warnings(), *(text for text in found if text is not None)]

    def _has_training_cells(self) -> bool:
        """Whether the cells seem to be the training cells, whose labels the saved classifiers already know."""
        return self.known is None and bool(self.session.model.held_out(self.session.counts.cell_names).any())

    def _warning_of_counterparts(self, result: Annotation) -> str | None:
        """Return a warning if cells got a label, although `scvae map` found no counterpart of them in the training."""
        column = self.names.no_counterpart
        if column not in self.session.store.obs_keys:
            return None
        lacking_n = np.asarray(self.session.store.obs_column(column))[self.session.kept]
        if lacking_n.dtype != bool or lacking_n.mean() <= _FALSE_ALARMS:
            return None
        labeled_n = lacking_n & ~result.unknown_n
        if not labeled_n.any():
            return None
        return (
            f"{int(labeled_n.sum()):,} of {int(lacking_n.sum()):,} cells without a counterpart in the training "
            f"(obs[{column!r}], from scvae map) got a label. The true types of these cells may be missing from the "
            "labels"
        )

    def facts(self, result: Annotation) -> dict[str, Any]:
        quality, sizes = result.quality, result.sizes()
        return {
            "labels_key": self.options.labels_key,
            "reference": None if self.options.reference is None else str(self.options.reference),
            "n_cells": len(result.p_n),
            "n_labeled": int(result.labeled_c.sum()),
            "labels": [
                {"label": name, "n_labeled": int(labeled), "n_predicted": sizes[name]}
                for name, labeled in zip(result.labels, result.labeled_c, strict=True)
            ],
            "n_unknown": int(result.unknown_n.sum()),
            "expected_accuracy": None if result.expected is None else result.expected.accuracy,
            "expected_of_missing_types": None if result.expected is None else result.expected.of_missing_types,
            "expected_of_missing_types_unmapped": None
            if result.expected_unmapped is None
            else result.expected_unmapped.of_missing_types,
            "unknown_rate": result.unknown_rate,
            "coverage": result.coverage,
            "heldout": {
                "n_cells": quality.n_cells,
                **asdict(quality.labels),
                "genes": asdict(quality.genes),
                "coverage": quality.coverage,
                "set_size": quality.set_size,
                "false_alarms": quality.false_alarms,
                "confusion": [[round(float(n), 2) for n in row] for row in quality.confusion_cc],
            },
            "view_weights": result.view_weights,
            "difference": None
            if result.difference is None
            else asdict(result.difference) | {"is_clear": result.difference.is_clear},
            "coarse": None if result.back_off is None else _coarse_facts(result, self.options),
        }

    def text(self, result: Annotation, facts: dict[str, Any]) -> str:
        quality = result.quality
        where = "" if self.reference is None else f" of {one_line(self.reference.store.title)}"
        labeled = "labeled training cell" if self.known is None else "labeled cell"
        lines = [
            (
                f"predicted the labels of {amount(facts['n_cells'], 'cell')} from "
                f"{amount(facts['n_labeled'], labeled)}{where} with {amount(len(result.labels), 'label')}"
            )
        ]
        rows = [("label", "labeled", "predicted")]
        rows += [
            (name, f"{row['n_labeled']:,}", f"{row['n_predicted']:,}")
            for name, row in zip(result.labels[:_SHOWN], facts["labels"], strict=False)
        ]
        rows += [("unknown", "", f"{facts['n_unknown']:,}")] if result.unknown_rate else []
        table = table_lines(rows, indent="  ")
        if len(result.labels) > _SHOWN:
            table.insert(_SHOWN + 1, f"  … and {len(result.labels) - _SHOWN} more labels (--json lists all)")
        lines += table
        lines += [
            f"on {amount(quality.n_cells, 'labeled cell')}, predicted by classifiers that have not seen their labels:",
            f"  labels              {_described(quality.labels)}",
            f"  regression on genes {_described(quality.genes)}",
            f"  prediction sets contain the true label of {quality.coverage:.1%} of held-out cells (requested: "
            f"{result.coverage:.0%}), and {quality.set_size:.2f} labels on average"
            + (" (some sets are empty)" if quality.set_size < 1 else ""),
        ]
        if result.unknown_rate:
            lines.append(
                f"  {quality.false_alarms:.1%} of held-out cells are called unknown by mistake "
                f"(requested: {100 * result.unknown_rate:.2g}%)"
            )
        if result.back_off is not None:
            lines += _coarse_lines(result, result.back_off, self.options)
        lines += _confusions(result)
        if result.expected is not None:
            lines += _expected_lines(result, result.expected)
        return "\n".join(lines)

    def notes(self, result: Annotation) -> Sequence[str]:
        return result.notes()

    def next_step(self, result: Annotation) -> str:  # noqa: ARG002  # the column does not depend on the result
        return self.on_umap(self.names.label)


def _described(quality: Prediction) -> str:
    return (
        f"accuracy {quality.accuracy:.1%}, macro F1 {quality.macro_f1:.3f}, calibration error "
        f"{quality.calibration_error:.3f} ({quality.calibration_error_by_chance:.3f} expected by chance)"
    )


def _coarse_facts(result: Annotation, options: AnnotateOptions) -> dict[str, Any]:
    found = result.back_off
    assert found is not None, "coarse labels were given"
    sure = asdict(found.quality)
    return {
        "coarse_key": options.coarse_key,
        "fine_probability": options.fine_probability,
        "labels": list(found.coarse.names),
        "n_backed_off": int((~found.kept_n & ~result.unknown_n).sum()),
        "heldout": {name: None if value != value else value for name, value in sure.items()},
    }


def _coarse_lines(result: Annotation, found: BackOff, options: AnnotateOptions) -> list[str]:
    quality = found.quality
    lines = [f"  coarse labels       {_described(quality.labels)}"]
    least = f"probability of {options.fine_probability:g} or more"
    kept = f"  {quality.kept:.1%} of held-out cells keep their label ({least})"
    lines.append(kept if quality.kept == 0 else f"{kept}: {quality.kept_right:.1%} of the kept labels are correct")
    if quality.kept < 1:
        lines.append(f"  the other cells get a coarse label: {quality.coarse_right:.1%} of these labels are correct")
    n_backed_off, n = int((~found.kept_n & ~result.unknown_n).sum()), len(found.kept_n)
    return [*lines, f"  of all {n:,} cells, {n_backed_off:,} get a coarse label, since their own label is uncertain"]


def _expected_lines(result: Annotation, expected: Expected) -> list[str]:
    n_others = int((~result.labeled_n).sum())
    differs = result.difference is not None and result.difference.is_clear
    lines = [
        f"on {amount(n_others, 'cell')} without a label: accuracy {expected.accuracy:.1%} is expected"
        + (" (these cells differ from labeled cells, so the estimate is uncertain)" if differs else "")
    ]
    if expected.of_missing_types:
        lines.append(
            f"  about {expected.of_missing_types:.0%} of these cells seem to be of types without labeled cells, and "
            "count as wrong"
        )
    return lines


def _confusions(result: Annotation) -> list[str]:
    """Describe the pairs of labels that are confused most frequently."""
    table_cc = result.quality.confusion_cc
    total_c = table_cc.sum(1)
    wrong = [
        (table_cc[i, j], i, j) for i in range(len(table_cc)) for j in range(len(table_cc)) if i != j and table_cc[i, j]
    ]
    if not wrong:
        return ["  no label is confused with another label"]
    worst = sorted(wrong, key=lambda found: -found[0])[:_SHOWN_CONFUSIONS]
    shown = [one_line(name) for name in result.labels]
    lines = [f"    {shown[i]} predicted as {shown[j]}: {n / total_c[i]:.1%} of {total_c[i]:,.0f}" for n, i, j in worst]
    return ["  most frequent confusions:", *lines]
